"""The updates of DDPG, TD3 and both SACs, written a second time from the papers, in float64.

Nothing here is taken from the scripts but an agent's first weights. A network is a list of six
tensors, the steps are those of PyTorch's own Adam, and the gradients come from backward().
"""

import contextlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from oracles import ACT, OBS, B, spread_out
from torch import Tensor, nn

Networks = dict[str, list[Tensor]]
LOG_STD = (-20, 2)  # the bounds of the SAC authors' code


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Everything that is made meanwhile is in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- what goes in ---------------------------------------------------------------------------------


def new_agent(module: ModuleType, args: Any, spread: float = 0.4) -> nn.Module:
    """An agent of the script. Every network of it has other weights, a target too."""
    torch.manual_seed(args.seed)
    agent = module.Agent(OBS, ACT, args)
    spread_out(agent, spread)
    return agent


def new_batch(module: ModuleType, size: int = B) -> Any:
    """Random transitions; about a third of them terminated."""
    obs, next_obs = torch.randn(2, size, OBS).unbind()
    action = 2 * torch.rand(size, ACT) - 1
    terminated = (torch.arange(size) % 3 == 1).to(obs.dtype)
    return module.Batch(obs, action, torch.randn(size), next_obs, terminated)


def new_weight(size: int = B) -> Tensor:
    """Weights of importance, the largest of them 1."""
    weight = 0.1 + torch.rand(size)
    return weight / weight.max()


def rest_of_call(module: ModuleType, args: Any, number: int, size: int = B) -> tuple:
    """What the script's update() is given after the batch."""
    rest = (args,)
    if hasattr(module, "importance_weight"):
        rest = (new_weight(size), *rest)
    if hasattr(args, "policy_frequency"):
        rest = (*rest, number)
    return rest


# --- the updates ----------------------------------------------------------------------------------


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    """Two hidden layers of rectified linear units."""
    weight_1, bias_1, weight_2, bias_2, weight_3, bias_3 = weights
    x = torch.relu(F.linear(x, weight_1, bias_1))
    x = torch.relu(F.linear(x, weight_2, bias_2))
    return F.linear(x, weight_3, bias_3)


def value_of(weights: list[Tensor], *inputs: Tensor) -> Tensor:
    """Q(s, a) or V(s), one number for each transition."""
    return network(weights, torch.cat(inputs, dim=1))[:, 0]


def gaussian(weights: list[Tensor], obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The squashed action and its log density, by PyTorch's own distributions."""
    mean, log_std = network(weights, obs).chunk(2, dim=1)
    normal = torch.distributions.Normal(mean, log_std.clamp(*LOG_STD).exp())
    u = mean + normal.scale * noise
    squash = torch.distributions.transforms.TanhTransform()
    action = squash(u)
    log_prob = normal.log_prob(u) - squash.log_abs_det_jacobian(u, action)
    return action, log_prob.sum(1)


def half_square(q: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return (weight * (q - target) ** 2 / 2).mean()


def descend(optimizer: torch.optim.Adam, loss: Tensor, limit: float) -> None:
    """One step of PyTorch's Adam, with PyTorch's clipping of the norm of all gradients."""
    params = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward(inputs=params)
    if limit > 0:
        nn.utils.clip_grad_norm_(params, limit)
    optimizer.step()


class Paper:
    """An algorithm with the weights of an agent. A subclass has its update()."""

    def __init__(self, agent: nn.Module, args: Any):
        self.args = args
        self.networks: Networks = {}
        for name, parameter in agent.named_parameters():
            copy = parameter.detach().clone().requires_grad_()
            self.networks.setdefault(name.split(".")[0], []).append(copy)
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.adam("actor", args.policy_lr, "actor")

    def adam(self, name: str, lr: float, *networks: str) -> None:
        params = [weight for network in networks for weight in self.networks[network]]
        self.optimizers[name] = torch.optim.Adam(params, lr)

    def descend(self, name: str, loss: Tensor) -> None:
        descend(self.optimizers[name], loss, self.args.max_grad_norm)

    @torch.no_grad()
    def follow(self, name: str) -> None:
        """The slow copy of this network moves a share tau towards it."""
        tau = self.args.tau
        slow, fast = self.networks[f"{name}_target"], self.networks[name]
        for old, new in zip(slow, fast, strict=True):
            old.copy_(tau * new + (1 - tau) * old)


class Td3(Paper):
    """[2018] Fujimoto et al., Algorithm 1. One critic and no tricks: DDPG. With weights: PER."""

    def __init__(self, agent: nn.Module, args: Any):
        super().__init__(agent, args)
        self.critics = ["q"] if "q" in self.networks else ["q1", "q2"]
        if not getattr(args, "double_q", True):
            self.critics = ["q1"]
        self.adam("critics", args.q_lr, *self.critics)

    def update(self, batch: Any, number: int, weight: Tensor | float = 1.0) -> list[Tensor]:
        """Returns the TD errors of the critics before their step."""
        args, networks = self.args, self.networks
        obs, action, reward, next_obs, terminated = batch
        policy_noise = getattr(args, "policy_noise", 0)
        with torch.no_grad():
            next_action = network(networks["actor_target"], next_obs).tanh()
            if policy_noise > 0:
                noise = policy_noise * torch.randn(*next_action.shape)
                noise = noise.clamp(-args.noise_clip, args.noise_clip)
                next_action = (next_action + noise).clamp(-1, 1)
            values = [
                value_of(networks[f"{q}_target"], next_obs, next_action) for q in self.critics
            ]
            target = reward + args.gamma * (1 - terminated) * torch.stack(values).amin(0)
        loss = torch.zeros(())
        errors = []
        for q in self.critics:
            value = value_of(networks[q], obs, action)
            loss = loss + half_square(value, target, weight)
            errors.append((value - target).detach())
        self.descend("critics", loss)
        if number % getattr(args, "policy_frequency", 1) == 0:
            action = network(networks["actor"], obs).tanh()
            self.descend("actor", -value_of(networks[self.critics[0]], obs, action).mean())
            for name in networks:
                if f"{name}_target" in networks:
                    self.follow(name)
        return errors


class Sac2018(Paper):
    """[2018] Haarnoja et al., Algorithm 1, in the order of the script's box: Q, pi, V, Vbar."""

    def __init__(self, agent: nn.Module, args: Any):
        super().__init__(agent, args)
        self.adam("critics", args.q_lr, "q1", "q2")
        self.adam("value", args.q_lr, "v")

    def update(self, batch: Any, number: int) -> None:
        args, networks = self.args, self.networks
        obs, action, reward, next_obs, terminated = batch
        with torch.no_grad():
            next_value = value_of(networks["v_target"], next_obs)
            target = args.reward_scale * reward + args.gamma * (1 - terminated) * next_value
        values = [value_of(networks[q], obs, action) for q in ("q1", "q2")]
        self.descend("critics", half_square(values[0], target) + half_square(values[1], target))

        noise = torch.randn(len(obs), ACT)
        new_action, log_prob = gaussian(networks["actor"], obs, noise)
        smaller = torch.min(*(value_of(networks[q], obs, new_action) for q in ("q1", "q2")))
        soft_value = smaller - args.alpha * log_prob
        mean, log_std = network(networks["actor"], obs).chunk(2, dim=1)
        small = (mean**2).mean() + (log_std**2).mean()
        self.descend("actor", args.policy_reg * small - soft_value.mean())
        self.descend("value", half_square(value_of(networks["v"], obs), soft_value.detach()))
        self.follow("v")


class Sac2019(Paper):
    """[2019] Haarnoja et al., Algorithm 1, with the temperature of the update's beginning."""

    def __init__(self, agent: nn.Module, args: Any):
        super().__init__(agent, args)
        self.adam("critics", args.q_lr, "q1", "q2")
        self.adam("temperature", args.alpha_lr, "log_alpha")

    def update(self, batch: Any, number: int) -> None:
        args, networks = self.args, self.networks
        obs, action, reward, next_obs, terminated = batch
        (log_alpha,) = networks["log_alpha"]
        alpha = math.exp(log_alpha.item())
        with torch.no_grad():
            noise = torch.randn(len(obs), ACT)
            next_action, next_log_prob = gaussian(networks["actor"], next_obs, noise)
            values = [value_of(networks[q], next_obs, next_action) for q in SLOW]
            next_value = torch.stack(values).amin(0) - alpha * next_log_prob
            target = reward + args.gamma * (1 - terminated) * next_value
        values = [value_of(networks[q], obs, action) for q in ("q1", "q2")]
        self.descend("critics", half_square(values[0], target) + half_square(values[1], target))

        noise = torch.randn(len(obs), ACT)
        new_action, log_prob = gaussian(networks["actor"], obs, noise)
        smaller = torch.min(*(value_of(networks[q], obs, new_action) for q in ("q1", "q2")))
        self.descend("actor", (alpha * log_prob - smaller).mean())
        if args.autotune:
            target_entropy = -args.target_entropy_scale * ACT
            distance = (log_prob.detach() + target_entropy).mean()
            self.descend("temperature", -log_alpha.exp() * distance)
        self.follow("q1")
        self.follow("q2")


SLOW = ("q1_target", "q2_target")
PAPERS = {
    "ddpg_continuous": Td3,
    "td3_continuous": Td3,
    "td3_per_continuous": Td3,
    "sac_v1_value_net": Sac2018,
    "sac_continuous": Sac2019,
    "sac_her_continuous": Sac2019,
}
