"""NumPy float64 versions of what the scripts compute, and a record of what update() computes."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from torch import nn

B, OBS, ACT = 7, 5, 3  # odd sizes: a (B,) that meets a (B, 1) cannot hide


class Shapes(worlds.Corridor):
    def __init__(self):
        super().__init__()
        self.shape = (OBS,)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.shape, np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (ACT,), np.float32)


worlds.register("Shapes", Shapes, 5)
WORLD = "worlds:Shapes-v0"


# --- formulas -----------------------------------------------------------------------------------


def log_slope(u):
    """log(1 - tanh(u)^2) = log 4 - 2 log(e^u + e^-u)."""
    return np.log(4) - 2 * np.logaddexp(u, -u)


def log_normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def weights(network):
    return [p.detach().double().numpy().copy() for p in network.parameters()]


def mlp(weights, x):
    w1, b1, w2, b2, w3, b3 = weights
    h = np.maximum(x @ w1.T + b1, 0)
    h = np.maximum(h @ w2.T + b2, 0)
    return h @ w3.T + b3


def q_value(weights, obs, action):
    return mlp(weights, np.concatenate([obs, action], axis=1))[:, 0]


def gaussian_sample(weights, obs, noise):
    """The squashed Gaussian's action and log pi of it."""
    mean, log_std = np.split(mlp(weights, obs), 2, axis=1)
    std = np.exp(np.clip(log_std, -20, 2))
    u = mean + std * noise
    return np.tanh(u), (log_normal(u, mean, std) - log_slope(u)).sum(1)


def assert_slopes(objective, weights, gradients, **tolerance):
    """These are the slopes of objective() in some weights of every layer: central differences."""
    rng, step = np.random.default_rng(0), 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        for index in rng.integers(weight.size, size=4):
            old, values = weight.flat[index], []
            for sign in (1, -1):
                weight.flat[index] = old + sign * step
                values.append(objective())
            weight.flat[index] = old
            slope = (values[0] - values[1]) / (2 * step)
            assert np.ravel(gradient)[index] == pytest.approx(slope, **tolerance)


# --- a record -----------------------------------------------------------------------------------


def numbers(agent: nn.Module) -> dict[str, list[np.ndarray]]:
    """Copies of all that an agent learns, by network; a bare parameter is a network of its own."""
    copies = {}
    for name, parameter in agent.named_parameters():
        copy = parameter.detach().double().numpy().copy()
        copies.setdefault(name.split(".")[0], []).append(copy)
    return copies


@contextlib.contextmanager
def gradients_of(optimizer: Any) -> Iterator[list]:
    """A list of what the optimizer's step gets: pairs of a parameter and its gradient."""
    seen, step = [], type(optimizer).step

    def watched(self, gradients):
        if self is optimizer:
            seen.extend(zip(self.params, gradients, strict=True))
        step(self, gradients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(optimizer), "step", watched)
        yield seen


def random_batch(module: ModuleType) -> Any:
    obs, next_obs = torch.randn(2, B, OBS).unbind()
    terminated = torch.tensor([0, 1, 0, 1, 0, 0, 1]).float()
    return module.Batch(obs, 2 * torch.rand(B, ACT) - 1, torch.randn(B), next_obs, terminated)


def watch(
    module: ModuleType, update: Callable, agent: nn.Module, batch: Any, *rest: Any
) -> SimpleNamespace:
    """One update of the module: what went in, what it returned, and what happened in between.

    before, after   the numbers of all networks
    noise           what was drawn for the batch, (B, ACT) each
    targets         of critics and value network, in the order of their losses
    steps           of the optimizers in their order: the numbers before it, the loss, and the
                    gradients that it left, by network
    """
    seen = SimpleNamespace(batch=batch, noise=[], targets=[], steps=[], before=numbers(agent))
    gradient_step, randn_like = module.gradient_step, torch.randn_like

    def draw(like):
        noise = randn_like(like)
        seen.noise.append(noise.double().numpy())
        return noise

    def step(optimizer, loss, max_grad_norm):
        before, gradients = numbers(agent), {}
        names = {parameter: name.split(".")[0] for name, parameter in agent.named_parameters()}
        with gradients_of(optimizer) as pairs:
            gradient_step(optimizer, loss, max_grad_norm)
        for parameter, gradient in pairs:
            copy = gradient.double().numpy().copy()
            gradients.setdefault(names[parameter], []).append(copy)
        seen.steps.append(SimpleNamespace(before=before, loss=loss.item(), gradients=gradients))

    def note_target(loss):
        def noted(prediction, target, *weight):
            assert not target.requires_grad
            seen.targets.append(target.numpy().copy())
            return loss(prediction, target, *weight)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "gradient_step", step)
        for name in {"critic_loss", "value_loss"} & vars(module).keys():
            patch.setattr(module, name, note_target(getattr(module, name)))
        patch.setattr(torch, "randn_like", draw)
        seen.returned = update(agent, batch, *rest)
    seen.after = numbers(agent)
    return seen


def spread_out(agent: nn.Module, std: float = 0.4) -> None:
    """Every network, a target too, gets weights of its own, drawn as wide as this."""
    for network in agent.children():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=std)


def record(module: ModuleType, spread: float = 0.4, **settings: Any) -> tuple:
    """A new agent, and the first two updates of it, on two batches that are made up.

    Unless the settings say otherwise, learning rates and tau are 0, so that all of it belongs to
    the same weights.
    """
    fixed = {"hidden_dim": 8, "batch_size": B, "tau": 0.0, "q_lr": 0.0, "policy_lr": 0.0}
    args = module.Args(**fixed | settings)
    torch.manual_seed(args.seed)
    agent = module.Agent(OBS, ACT, args)
    spread_out(agent, spread)
    updates = []
    for number in (1, 2):
        rest = (args, number) if hasattr(args, "policy_frequency") else (args,)
        updates.append(watch(module, module.update, agent, random_batch(module), *rest))
        for name, value in updates[-1].returned.items():
            assert not value.requires_grad and value.shape[:1] in ((), (B,)), name
    return agent, updates


def assert_targets_followed(update: SimpleNamespace, tau: float) -> None:
    """The slow copies are tau of the networks as they are now, and the rest of themselves."""
    slow = [name for name in update.after if name.endswith("_target")]
    assert slow
    for name in slow:
        current, old = update.after[name.removesuffix("_target")], update.before[name]
        for got, now, before in zip(update.after[name], current, old, strict=True):
            np.testing.assert_allclose(got, tau * now + (1 - tau) * before, atol=1e-6)
