"""NumPy float64 versions of what the scripts compute, and a record of what train() computes."""

import copy
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


def random_batch(module: ModuleType) -> Any:
    obs, next_obs = torch.randn(2, B, OBS).unbind()
    terminated = torch.tensor([0, 1, 0, 1, 0, 0, 1]).float()
    return module.Batch(obs, 2 * torch.rand(B, ACT) - 1, torch.randn(B), next_obs, terminated)


def record(module: ModuleType, tmp_path, spread: float = 0.4, **settings: Any) -> SimpleNamespace:
    """The first two updates that train() makes: what went in and what came out.

    networks    copies; each, a target too, has weights of its own, drawn as wide as `spread`
    batches     one per update, made up
    noise       what was drawn for a batch, (B, ACT) each
    targets     of critics and value network, in the order of their losses
    steps       of the optimizers in their order: the loss, and gradients by network

    The learning rates and tau are 0, so that all of it belongs to the same weights.
    """
    seen = SimpleNamespace(networks={}, batches=[], noise=[], targets=[], steps=[])
    start, gradient_step, randn_like = module.Run.start, module.gradient_step, torch.randn_like
    live = {}

    def begin(run, env):
        live.update({k: v for k, v in run.parts.items() if isinstance(v, nn.Module)})
        for name, network in live.items():
            for parameter in network.parameters() if name != "temperature" else ():
                nn.init.normal_(parameter, std=spread)
        seen.networks = copy.deepcopy(live)
        return start(run, env)

    def sample(replay, batch_size):
        seen.batches.append(random_batch(module))
        return seen.batches[-1]

    def draw(like):
        noise = randn_like(like)
        if noise.ndim == 2:  # it has one dimension where the environment is acted in
            seen.noise.append(noise.double().numpy())
        return noise

    def step(optimizer, loss, max_grad_norm):
        for network in live.values():
            network.zero_grad(set_to_none=True)
        gradient_step(optimizer, loss, max_grad_norm)
        gradients = {name: [p.grad for p in part.parameters()] for name, part in live.items()}
        touched = {k: v for k, v in gradients.items() if any(g is not None for g in v)}
        copies = {k: [g.double().numpy().copy() for g in v] for k, v in touched.items()}
        seen.steps.append((loss.item(), copies))

    def note_target(loss):
        def noted(prediction, target):
            assert not target.requires_grad
            seen.targets.append(target.numpy().copy())
            return loss(prediction, target)

        return noted

    fixed = {"env_id": WORLD, "num_threads": 1, "hidden_dim": 8, "eval_episodes": 1}
    fixed |= {"learning_starts": 1, "total_timesteps": 3, "batch_size": B, "tau": 0.0}
    fixed |= {"q_lr": 0.0, "policy_lr": 0.0, "runs_dir": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "start", begin)
        patch.setattr(module.ReplayBuffer, "sample", sample)
        patch.setattr(module, "gradient_step", step)
        for name in {"critic_loss", "value_loss"} & vars(module).keys():
            patch.setattr(module, name, note_target(getattr(module, name)))
        patch.setattr(torch, "randn_like", draw)
        module.train(module.Args(**fixed | settings))
    assert len(seen.batches) == 2
    return seen
