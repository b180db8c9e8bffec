"""What the scripts learn where the answer can be written down, each number beside its exact value.

test_closed_forms.py asserts it, closed_forms_table.py makes a page of it. Nothing here runs a
training loop: the replay holds transitions from a known distribution, and the only thing that
happens is `module.update` on batches drawn from it. That is quick, and the answer is exact, since
an off-policy method must find it from any transitions that show enough.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import regulator
import torch
from regulator import LINE, PLANE, Problem, Solution
from torch import Tensor, nn

DOCS = Path(__file__).resolve().parents[1] / "docs"
NAMES = {
    "ddpg_continuous": "DDPG",
    "td3_continuous": "TD3",
    "sac_continuous": "SAC",
    "sac_v1_value_net": "SAC of 2018",
}
STOCHASTIC = ["sac_continuous", "sac_v1_value_net"]
SEEDS = [1, 2, 3]
DRAWS = 100_000  # samples of a policy, where it is to be known to a part in a hundred


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that was learnt. `tolerance` is the largest difference that passes."""

    what: str
    exact: float
    learnt: float
    tolerance: float

    def is_right(self) -> bool:
        return abs(self.learnt - self.exact) <= self.tolerance


# --- training -----------------------------------------------------------------------------------


def settings(module: ModuleType, **chosen: Any) -> Any:
    """Args of this script, with those of the chosen values that it has."""
    has = {field.name for field in dataclasses.fields(module.Args)}
    return module.Args(**{name: value for name, value in chosen.items() if name in has})


def train(module: ModuleType, agent: nn.Module, replay: Any, args: Any, updates: int) -> None:
    """So many updates on batches from the replay.

    In the second half the learning rates fall to nothing, so that the noise of the batches does.
    """
    optimizers = [part for part in agent.children() if hasattr(part, "lr")]
    first = [optimizer.lr.item() for optimizer in optimizers]
    for number in range(1, updates + 1):
        share = min(1.0, 2 * (1 - number / (updates + 1)))
        for optimizer, lr in zip(optimizers, first, strict=True):
            optimizer.lr.fill_(share * lr)
        batch = replay.sample(args.batch_size)
        if hasattr(args, "policy_frequency"):
            module.update(agent, batch, args, number)
        else:
            module.update(agent, batch, args)


@torch.no_grad()
def q_of(agent: nn.Module, state: Any, action: Any) -> float:
    """Q(s, a), the mean of both critics where there are two."""
    critics = [getattr(agent, name) for name in ("q", "q1", "q2") if hasattr(agent, name)]
    inputs = [torch.as_tensor(x, dtype=torch.float32).reshape(1, -1) for x in (state, action)]
    return float(np.mean([critic(*inputs).item() for critic in critics]))


@torch.no_grad()
def v_of(agent: nn.Module, state: Any) -> float:
    return agent.v(torch.as_tensor(state, dtype=torch.float32).reshape(1, -1)).item()


@torch.no_grad()
def draws_of(agent: nn.Module, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Many actions of the policy in one state, and log pi of them."""
    one = torch.as_tensor(state, dtype=torch.float32).reshape(1, -1)
    action, log_prob = agent.actor.sample(one.expand(DRAWS, -1))
    return action.double().numpy(), log_prob.double().numpy()


# --- the regulator ------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """x -> x and all products of two of its numbers, for |x_i| up to width_i.

    The numbers are made orthogonal over that box (Legendre polynomials): Adam is then quick.
    """

    def __init__(self, widths: list[float]):
        super().__init__()
        self.widths = torch.tensor(widths)
        self.first, self.second = torch.triu_indices(len(widths), len(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = x / self.widths
        products = 3 * x[..., self.first] * x[..., self.second]
        squares = self.first == self.second
        products = torch.where(squares, (products - 1) * math.sqrt(5) / 2, products)
        return torch.cat([math.sqrt(3) * x, products], dim=-1)


@contextlib.contextmanager
def quadratic_networks(module: ModuleType, widths: list[float]) -> Iterator[None]:
    """Agents made meanwhile have networks that can hold the regulator's solution exactly.

    Q and V are quadratic, the actor's network is linear. What is wrong then is the algorithm's.
    """

    def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        if outputs > 1:  # the actor's
            return nn.Sequential(nn.Linear(inputs, outputs))
        features = inputs + inputs * (inputs + 1) // 2
        last = nn.Linear(features, outputs)
        for parameter in last.parameters():  # a large wrong Q would lead the actor far away
            nn.init.uniform_(parameter, -0.01, 0.01)
        return nn.Sequential(Quadratic(widths[:inputs]), last)

    with mock.patch.object(module, "mlp", mlp):
        yield


def regulator_replay(
    module: ModuleType,
    problem: Problem,
    env_id: str,
    width: float,
    pairs: int,
    inside: bool,
    seed: int,
) -> Any:
    """A replay with every outcome of so many pairs of state and action, all drawn uniformly.

    States are in [-1, 1]^O and actions in [-width, width]^A. A pair is left out if its next state
    could be outside, where no state of the replay is. All outcomes of w are equally likely: with
    each of them in the replay, a mean over the replay is an expectation, without an error.
    """
    rng = np.random.default_rng(seed)
    env = module.make_env(env_id)
    obs_dim, action_dim = problem.b.shape
    outcomes = problem.outcomes()
    replay = module.ReplayBuffer(pairs * len(outcomes), obs_dim, action_dim)
    while len(replay) < pairs * len(outcomes):
        state = rng.uniform(-1, 1, obs_dim)
        action = rng.uniform(-width, width, action_dim)
        expected = problem.a @ state + problem.b @ (problem.unit * action)
        if inside and np.abs(expected).max() + problem.push > 1:
            continue
        for push in outcomes:
            obs, _ = env.reset(options={"state": state, "push": np.array(push)})
            next_obs, reward, terminated, _, _ = env.step(action)
            replay.add(obs, action, reward, next_obs, terminated)
    env.close()
    return replay


def measure(
    agent: nn.Module, solution: Solution, states: np.ndarray, relative: dict[str, float]
) -> Iterator[Number]:
    """The gain, Q, and where there is one the policy's distribution and V.

    `relative` has the tolerances: of the gain and the standard deviation, as a share of the
    largest; of R^2; and of Q and V, as a share of the range that V has over the states.
    """
    inputs = torch.as_tensor(states, dtype=torch.float32)
    with torch.no_grad():
        actions = agent.actor(inputs).double().numpy()
    best = solution.action(states)
    with_constant = np.c_[states, np.ones(len(states))]
    slopes = np.linalg.lstsq(with_constant, actions, rcond=None)[0].T[:, :-1]
    tolerance = relative["policy"] * np.abs(solution.gain).max()
    for (i, j), exact in np.ndenumerate(solution.gain):
        index = f"_{{{i + 1}{j + 1}}}" if solution.gain.size > 1 else ""
        yield Number(f"gain $K{index}$", exact, -slopes[i, j], tolerance)
    unexplained = ((actions - best) ** 2).sum() / (best**2).sum()
    yield Number("$R^2$ of $-Ks$", 1.0, 1 - unexplained, relative["r2"])

    values = [solution.v(state) for state in states]
    tolerance = relative["value"] * np.ptp(values)
    middle, corner = np.zeros(states.shape[1]), states[0]
    away = solution.action(corner) + 0.5 * np.abs(solution.gain).max()
    yield Number(
        "$Q(0, 0)$", solution.q(middle, 0 * best[0]), q_of(agent, middle, 0 * best[0]), tolerance
    )
    at_best = solution.action(corner)
    exact = solution.q(corner, at_best)
    yield Number("$Q$ in a corner, best action", exact, q_of(agent, corner, at_best), tolerance)
    exact = solution.q(corner, away)
    yield Number("$Q$ in a corner, another action", exact, q_of(agent, corner, away), tolerance)
    if solution.alpha == 0:
        return

    action, log_prob = draws_of(agent, corner)
    std = solution.std()
    for j, exact in enumerate(std):
        index = f"_{j + 1}" if len(std) > 1 else ""
        learnt = action[:, j].std()
        yield Number(
            f"standard deviation $\\sigma{index}$", exact, learnt, relative["policy"] * std.max()
        )
    # A standard deviation that is wrong by a share of p changes an entropy by p per dimension.
    entropy = solution.entropy()
    yield Number("entropy $H$", entropy, -log_prob.mean(), relative["policy"] * len(std))
    if hasattr(agent, "v"):
        yield Number("$V(0)$", solution.v(middle), v_of(agent, middle), tolerance)
        yield Number("$V$ in a corner", solution.v(corner), v_of(agent, corner), tolerance)


def grid(dimensions: int, count: int) -> np.ndarray:
    """The points of a grid over [-0.8, 0.8]^dimensions, the first of them a corner."""
    axis = np.linspace(-0.8, 0.8, count)
    return np.stack(np.meshgrid(*[axis] * dimensions), axis=-1).reshape(-1, dimensions)


PLANE_ALPHA, PLANE_NOISE = 0.1, (0.04, 0.06)  # temperature; policy_noise and noise_clip
PLANE_TOLERANCE = {"policy": 0.05, "r2": 0.01, "value": 0.05}


def plane(script: str, seed: int, tuned: bool = False, updates: int = 1200) -> list[Number]:
    """Two states, two actions, and networks that can hold the solution."""
    module = importlib.import_module(script)
    chosen = {"gamma": PLANE.gamma, "tau": 0.2, "q_lr": 0.03, "policy_lr": 0.004, "batch_size": 128}
    chosen |= {"policy_noise": PLANE_NOISE[0], "noise_clip": PLANE_NOISE[1]}
    chosen |= {"alpha": PLANE_ALPHA, "autotune": False}
    if tuned:
        chosen |= {"alpha": 0.2, "autotune": True, "alpha_lr": 0.005, "target_entropy_scale": 2.0}
    args = settings(module, **chosen)
    width = 0.15
    torch.manual_seed(seed)
    replay = regulator_replay(module, PLANE, "regulator:Plane-v0", width, 600, False, seed)
    with quadratic_networks(module, [1.0, 1.0, width, width]):
        agent = module.Agent(2, 2, args)
    if script in STOCHASTIC:  # begin with actions such as the replay's
        nn.init.constant_(agent.actor.net[-1].bias[2:], math.log(width / 2))
    train(module, agent, replay, args, updates)

    problem = PLANE.in_action_units()
    smoothing = 0.0
    if hasattr(args, "policy_noise"):
        smoothing = regulator.clipped_variance(args.policy_noise, args.noise_clip)
    alpha = getattr(args, "alpha", 0.0)
    numbers = []
    if tuned:
        alpha = regulator.best_temperature(problem, -args.target_entropy_scale * 2)
        learnt = agent.log_alpha.exp().item()
        numbers.append(Number("temperature $\\alpha$", alpha, learnt, 0.05 * alpha))
    solution = Solution(problem, alpha, smoothing)
    return numbers + list(measure(agent, solution, grid(2, 9), PLANE_TOLERANCE))


LINE_ALPHA, LINE_NOISE = 0.05, (0.1, 0.15)
LINE_TOLERANCE = {"policy": 0.12, "r2": 0.04, "value": 0.1}


def line(script: str, seed: int, updates: int = 1500) -> list[Number]:
    """One state, one action, and the script's own networks."""
    module = importlib.import_module(script)
    chosen = {"gamma": LINE.gamma, "tau": 0.1, "q_lr": 3e-3, "policy_lr": 3e-3, "batch_size": 256}
    chosen |= {"policy_noise": LINE_NOISE[0], "noise_clip": LINE_NOISE[1], "hidden_dim": 64}
    chosen |= {"alpha": LINE_ALPHA, "autotune": False}
    args = settings(module, **chosen)
    torch.manual_seed(seed)
    replay = regulator_replay(module, LINE, "regulator:Line-v0", 0.7, 3000, True, seed)
    agent = module.Agent(1, 1, args)
    train(module, agent, replay, args, updates)

    smoothing = 0.0
    if hasattr(args, "policy_noise"):
        smoothing = regulator.clipped_variance(args.policy_noise, args.noise_clip)
    solution = Solution(LINE.in_action_units(), getattr(args, "alpha", 0.0), smoothing)
    return list(measure(agent, solution, grid(1, 33), LINE_TOLERANCE))
