"""What the scripts learn where the answer can be written down, each number beside its exact value.

test_closed_forms.py asserts it, closed_forms_table.py makes a page of it. Nothing here runs a
training loop: the replay holds transitions from a known distribution, and the only thing that
happens is `module.update` on batches drawn from it. That is quick, and the answer is exact, since
an off-policy method must find it from any transitions that show enough. PPO draws its own.
"""

import contextlib
import copy
import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import regulator
import torch
from bandit import BEST, KINDS, Bandit
from regulator import LINE, PLANE, Problem, Solution
from torch import Tensor, nn

METHODS = {
    "ddpg_continuous": "DDPG",
    "td3_continuous": "TD3",
    "sac_continuous": "SAC",
    "sac_v1_value_net": "SAC of 2018",
    "ppo_continuous": "PPO",
}
OFF_POLICY = ["ddpg_continuous", "td3_continuous", "sac_continuous", "sac_v1_value_net"]
STOCHASTIC = ["sac_continuous", "sac_v1_value_net"]
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

    In the second half the learning rates fall to nothing, and the noise of the batches with them.
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


def row(numbers: Any) -> Tensor:
    """A batch of one."""
    return torch.as_tensor(numbers, dtype=torch.float32).reshape(1, -1)


@torch.no_grad()
def q_of(agent: nn.Module, state: Any, action: Any) -> float:
    """Q(s, a), the mean of both critics where there are two."""
    critics = [getattr(agent, name) for name in ("q", "q1", "q2") if hasattr(agent, name)]
    return float(np.mean([critic(row(state), row(action)).item() for critic in critics]))


@torch.no_grad()
def draws_of(agent: nn.Module, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Many actions of the policy in one state, and log pi of them."""
    action, log_prob = agent.actor.sample(row(state).expand(DRAWS, -1))
    return action.double().numpy(), log_prob.double().numpy()


@torch.no_grad()
def v_of(agent: nn.Module, state: Any, alpha: float) -> float:
    """V(s): of the value network, or the mean of Q(s, a) - alpha log pi(a|s) over many actions."""
    if hasattr(agent, "v"):
        return agent.v(row(state)).item()
    many = row(state).expand(DRAWS, -1)
    action, log_prob = agent.actor.sample(many)
    smaller = torch.minimum(agent.q1(many, action), agent.q2(many, action))
    return (smaller - alpha * log_prob).double().mean().item()


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
        layers = [nn.Linear(inputs, outputs)]  # the actor's
        if outputs == 1:
            features = inputs + inputs * (inputs + 1) // 2
            layers = [Quadratic(widths[:inputs]), nn.Linear(features, 1)]
        for parameter in layers[-1].parameters():  # begin with actions such as the replay's
            nn.init.uniform_(parameter, -0.01, 0.01)
        return nn.Sequential(*layers)

    with mock.patch.object(module, "mlp", mlp):
        yield


def regulator_replay(
    module: ModuleType, env_id: str, width: float, pairs: int, seed: int, inside: bool = False
) -> Any:
    """A replay with every outcome of so many pairs of state and action, all drawn uniformly.

    States are in [-1, 1]^O, actions in [-width, width]^A. All outcomes of w are equally likely:
    with each of them in the replay, a mean over the replay is an expectation, without an error.
    With `inside`, a pair is left out if its next state could be where no state of the replay is.
    """
    env = module.make_env(env_id)
    problem: Problem = env.unwrapped.problem
    obs_dim, action_dim = problem.b.shape
    outcomes = problem.outcomes()
    replay = module.ReplayBuffer(pairs * len(outcomes), obs_dim, action_dim)
    rng = np.random.default_rng(seed)
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


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What passes in a regulator's numbers."""

    policy: float  # of gain and standard deviation, as a share of the largest of them
    fit: float  # of R^2
    value: float  # of Q and V, as a share of the range that V has over the states


def solution_for(problem: Problem, args: Any, alpha: float | None = None) -> Solution:
    """What this script should come to: with its temperature, or with its target smoothing."""
    if alpha is None:
        alpha = getattr(args, "alpha", 0.0)
    smoothing = 0.0
    if hasattr(args, "policy_noise"):
        smoothing = regulator.clipped_variance(args.policy_noise, args.noise_clip)
    return Solution(problem.in_action_units(), alpha, smoothing)


def measure(
    agent: nn.Module, solution: Solution, states: np.ndarray, tolerance: Tolerance
) -> list[Number]:
    """The gain, Q, and of a policy with entropy its distribution and V."""
    numbers = measure_gain(agent, solution, states, tolerance)
    values = [solution.v(state) for state in states]
    within = tolerance.value * np.ptp(values)
    numbers += measure_q(agent, solution, states[0], within)
    if solution.alpha > 0:
        numbers += measure_policy(agent, solution, states[0], tolerance)
        for where, state in (("(0)", 0 * states[0]), (" in a corner", states[0])):
            learnt = v_of(agent, state, solution.alpha)
            numbers.append(Number(f"$V${where}", solution.v(state), learnt, within))
    return numbers


def measure_gain(
    agent: nn.Module, solution: Solution, states: np.ndarray, tolerance: Tolerance
) -> list[Number]:
    """The regression of the actor's actions on the states, and how well -K s explains them."""
    with torch.no_grad():
        actions = agent.actor(torch.as_tensor(states, dtype=torch.float32)).double().numpy()
    with_constant = np.c_[states, np.ones(len(states))]
    slopes = np.linalg.lstsq(with_constant, actions, rcond=None)[0].T
    numbers = []
    for (i, j), exact in np.ndenumerate(solution.gain):
        index = f"_{{{i + 1}{j + 1}}}" if solution.gain.size > 1 else ""
        within = tolerance.policy * np.abs(solution.gain).max()
        numbers.append(Number(f"gain $K{index}$", exact, -slopes[i, j], within))
    best = solution.action(states)
    unexplained = ((actions - best) ** 2).sum() / (best**2).sum()
    return [*numbers, Number("$R^2$ of $-Ks$", 1.0, 1 - unexplained, tolerance.fit)]


def measure_q(
    agent: nn.Module, solution: Solution, corner: np.ndarray, within: float
) -> list[Number]:
    """At three pairs of state and action."""
    best = solution.action(corner)
    pairs = [
        ("$Q(0, 0)$", 0 * corner, 0 * best),
        ("$Q$ in a corner, best action", corner, best),
        ("$Q$ in a corner, another action", corner, best + 0.5 * np.abs(solution.gain).max()),
    ]
    return [
        Number(what, solution.q(state, action), q_of(agent, state, action), within)
        for what, state, action in pairs
    ]


def measure_policy(
    agent: nn.Module, solution: Solution, state: np.ndarray, tolerance: Tolerance
) -> list[Number]:
    """Standard deviation and entropy of many actions in one state."""
    action, log_prob = draws_of(agent, state)
    std = solution.std()
    numbers = []
    for j, exact in enumerate(std):
        index = f"_{j + 1}" if len(std) > 1 else ""
        what = f"standard deviation $\\sigma{index}$"
        numbers.append(Number(what, exact, action[:, j].std(), tolerance.policy * std.max()))
    # An entropy is off by p where one standard deviation is off by the share p.
    within = tolerance.policy * len(std)
    return [*numbers, Number("entropy $H$", solution.entropy(), -log_prob.mean(), within)]


def grid(dimensions: int, count: int) -> np.ndarray:
    """The points of a grid over [-0.8, 0.8]^dimensions, the first of them a corner."""
    axis = np.linspace(-0.8, 0.8, count)
    return np.stack(np.meshgrid(*[axis] * dimensions), axis=-1).reshape(-1, dimensions)


PLANE_SETTINGS = {"gamma": PLANE.gamma, "tau": 0.2, "q_lr": 0.03, "policy_lr": 0.01}
PLANE_SETTINGS |= {"batch_size": 128, "policy_noise": 0.06, "noise_clip": 0.06}
PLANE_TOLERANCE = Tolerance(policy=0.08, fit=0.02, value=0.08)


def plane(script: str, seed: int, updates: int = 1200) -> list[Number]:
    """Two states, two actions, a fixed temperature, and networks that can hold the solution."""
    module = importlib.import_module(script)
    args = settings(module, **PLANE_SETTINGS, alpha=0.1, autotune=False)
    agent = trained_in_the_plane(module, args, seed, updates)
    return measure(agent, solution_for(PLANE, args), grid(2, 9), PLANE_TOLERANCE)


def trained_in_the_plane(module: ModuleType, args: Any, seed: int, updates: int) -> nn.Module:
    torch.manual_seed(seed)
    width = 0.15
    replay = regulator_replay(module, "regulator:Plane-v0", width, 600, seed)
    with quadratic_networks(module, [1.0, 1.0, width, width]):
        agent = module.Agent(2, 2, args)
    if hasattr(agent.actor, "sample"):  # begin with actions such as the replay's
        nn.init.constant_(agent.actor.net[-1].bias[2:], math.log(width / 2))
    train(module, agent, replay, args, updates)
    return agent


def temperature(script: str, seed: int, updates: int = 1200) -> list[Number]:
    """The same with a temperature that is tuned, to an entropy of -2 nats per dimension."""
    module = importlib.import_module(script)
    tuning = {"alpha": 0.2, "autotune": True, "alpha_lr": 0.005, "target_entropy_scale": 2.0}
    args = settings(module, **PLANE_SETTINGS, **tuning)
    agent = trained_in_the_plane(module, args, seed, updates)
    exact = regulator.best_temperature(PLANE.in_action_units(), -2.0 * 2)
    learnt = agent.log_alpha.exp().item()
    solution = solution_for(PLANE, args, exact)
    numbers = measure(agent, solution, grid(2, 9), PLANE_TOLERANCE)
    return [Number("temperature $\\alpha$", exact, learnt, 0.05 * exact), *numbers]


LINE_SETTINGS = {"gamma": LINE.gamma, "tau": 0.1, "q_lr": 3e-3, "policy_lr": 1e-3}
LINE_SETTINGS |= {"batch_size": 256, "hidden_dim": 128, "policy_noise": 0.2, "noise_clip": 0.3}
LINE_TOLERANCE = Tolerance(policy=0.12, fit=0.04, value=0.1)


def line(script: str, seed: int, updates: int = 2000) -> list[Number]:
    """One state, one action, and the script's own networks."""
    module = importlib.import_module(script)
    args = settings(module, **LINE_SETTINGS, alpha=0.05, autotune=False)
    torch.manual_seed(seed)
    replay = regulator_replay(module, "regulator:Line-v0", 0.7, 3000, seed, inside=True)
    agent = module.Agent(1, 1, args)
    train(module, agent, replay, args, updates)
    return measure(agent, solution_for(LINE, args), grid(1, 33), LINE_TOLERANCE)


# --- one state, and an action that fills its interval -------------------------------------------

# Points and weights of a mean over a standard normal number.
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def squashed_entropy(m: float, s: float) -> float:
    """Of tanh(u), u ~ N(m, s^2): the density of u is divided by tanh's slope, 1 - tanh(u)^2."""
    u = m + s * POINTS
    log_slope = math.log(4) - 2 * np.logaddexp(u, -u)
    return math.log(s * math.sqrt(2 * math.pi * math.e)) + float(WEIGHTS @ log_slope)


def worth(reward: Callable, alpha: float, m: float, s: float) -> float:
    """E[reward(a)] + alpha H of a = tanh(u), u ~ N(m, s^2)."""
    return float(WEIGHTS @ reward(np.tanh(m + s * POINTS))) + alpha * squashed_entropy(m, s)


def best_squashed(reward: Callable, alpha: float) -> tuple[float, float]:
    """The m and s that are worth most, by a search whose grid shrinks by half."""
    m, log_s, width = 0.0, 0.0, 2.0
    while width > 1e-6:
        steps = np.linspace(-width, width, 9)
        choices = [(m + x, log_s + y) for x in steps for y in steps]
        worths = [worth(reward, alpha, x, math.exp(y)) for x, y in choices]
        m, log_s = choices[int(np.argmax(worths))]
        width /= 2
    return m, math.exp(log_s)


def near_a_half(action: Any) -> Any:
    """A reward."""
    return -((action - 0.5) ** 2)


SQUASH_ALPHA = 0.5


def squash(script: str, seed: int, updates: int = 800) -> list[Number]:
    """One state, reward -(a - 1/2)^2, and so much entropy that the bounds are felt."""
    module = importlib.import_module(script)
    chosen = {"gamma": 0.8, "tau": 0.2, "q_lr": 5e-3, "policy_lr": 5e-3, "hidden_dim": 32}
    args = settings(module, **chosen, batch_size=128, alpha=SQUASH_ALPHA, autotune=False)
    torch.manual_seed(seed)
    state = np.zeros(1)
    replay = module.ReplayBuffer(1000, 1, 1)
    for action in np.linspace(-1, 1, 1000):
        replay.add(state, action, near_a_half(action), state, False)
    agent = module.Agent(1, 1, args)
    train(module, agent, replay, args, updates)

    m, s = best_squashed(near_a_half, SQUASH_ALPHA)
    v = worth(near_a_half, SQUASH_ALPHA, m, s) / (1 - args.gamma)
    _, log_prob = draws_of(agent, state)
    with torch.no_grad():
        middle = agent.actor(row(state)).item()
    numbers = [
        Number("best action $\\tanh m$", math.tanh(m), middle, 0.05),
        Number("entropy $H$", squashed_entropy(m, s), -log_prob.mean(), 0.05),
        Number("$V(s)$", v, v_of(agent, state, SQUASH_ALPHA), 0.06),
    ]
    for action, name in ((0.5, "1/2"), (-1.0, "-1")):
        exact = near_a_half(action) + args.gamma * v
        numbers.append(Number(f"$Q(s, {name})$", exact, q_of(agent, state, action), 0.06))
    return numbers


# --- V of the policy, and V of the replay -------------------------------------------------------


def values_from_replay(script: str, seed: int, updates: int = 600) -> list[Number]:
    """One state; action 1 earns 1, action -1 nothing, and the replay holds as many of each.

    The best policy always earns 1, which is worth 10. What the replay earned is worth 5: a V that
    is fitted to its rewards comes to that. SAC of 2018 fits V to fresh actions.
    """
    module = importlib.import_module(script)
    chosen = {"gamma": 0.9, "tau": 0.2, "q_lr": 5e-3, "policy_lr": 1e-2, "hidden_dim": 32}
    args = settings(module, **chosen, batch_size=64, alpha=0.0)
    torch.manual_seed(seed)
    state = np.zeros(1)
    replay = module.ReplayBuffer(2, 1, 1)
    replay.add(state, 1.0, 1.0, state, False)
    replay.add(state, -1.0, 0.0, state, False)
    agent = module.Agent(1, 1, args)
    train(module, agent, replay, args, updates)
    wrong = fitted_to_rewards(module, args, replay, updates)
    return [
        Number("$V(s)$", 10.0, v_of(agent, state, 0.0), 0.1),
        Number("$Q(s, 1)$", 10.0, q_of(agent, state, 1.0), 0.1),
        Number("$Q(s, -1)$", 9.0, q_of(agent, state, -1.0), 0.1),
        Number("$V$ fitted to replayed rewards", 5.0, wrong, 0.1),
    ]


def fitted_to_rewards(module: ModuleType, args: Any, replay: Any, updates: int) -> float:
    """The mistake, made of the script's own parts: the target of V has the replayed reward."""
    v = module.Value(1, args.hidden_dim)
    v_target = copy.deepcopy(v)
    optimizer = module.Adam(v.parameters(), args.q_lr)
    batch = replay.gather(torch.arange(len(replay)))  # all of it
    for _ in range(updates):
        with torch.no_grad():
            next_value = v_target(batch.next_obs)
        y = module.bellman_target(batch.reward, batch.terminated, next_value, args.gamma)
        module.gradient_step(optimizer, module.value_loss(v(batch.obs), y), 0.0)
        module.update_target(v_target, v, args.tau)
    return v(torch.zeros(1, 1)).item()


# --- PPO ----------------------------------------------------------------------------------------


def bandit(script: str, seed: int, updates: int = 60) -> list[Number]:
    """One state, reward -(a - 1/2)^2, and a bonus for entropy, with each of the four surrogates.

    A Gaussian policy with mean m and standard deviation s is worth -(m - 1/2)^2 - s^2 + c ln s,
    where c is --ent-coef, and some constant. That is largest at m = 1/2 and s = sqrt(c / 2).
    """
    bonus = 0.5
    std = math.sqrt(bonus / 2)
    numbers = []
    for kind in KINDS:
        chosen = {"norm_adv": False, "ent_coef": bonus, "update_epochs": 4, "learning_rate": 0.02}
        learner = Bandit(seed, surrogate=kind, **chosen)
        for done in range(updates):
            remaining = min(1.0, 2 * (1 - done / updates))
            learner.agent.optimizer.lr.fill_(learner.args.learning_rate * remaining)
            learner.update()
        mean, deviation = learner.policy()
        with torch.no_grad():
            value = learner.agent.critic(torch.zeros(1, 1)).item()
        numbers.append(Number(f"mean, `{kind}`", BEST, mean, 0.03))
        numbers.append(Number(f"standard deviation, `{kind}`", std, deviation, 0.02))
        numbers.append(Number(f"$V(s)$, `{kind}`", -(std**2), value, 0.02))
    return numbers


# --- one policy that does not learn -------------------------------------------------------------


def told_what_to_do(module: ModuleType) -> nn.Module:
    """The script's actor, which takes mean and log standard deviation from its observation."""
    actor = module.Actor(1, 1, 4)
    actor.net = nn.Identity()
    return actor


def slopes(script: str, seed: int, draws: int = 1_000_000) -> list[Number]:
    """The slope of E[-(a - 1)^2] in the mean of a ~ N(0, 1), which is 2, from samples.

    By the chain rule through the sample, as SAC: each is 2 (1 - e), with variance 4. By the score
    function, as REINFORCE: each is -(e - 1)^2 e, with variance 30. The sample is the script's,
    with a standard deviation of 1/1000, where tanh is the identity, and in units of that.
    """
    module = importlib.import_module(script)
    torch.manual_seed(seed)
    unit = 1e-3
    mean = torch.zeros(draws, 1, requires_grad=True)
    log_std = torch.full((draws, 1), math.log(unit))
    action, _ = told_what_to_do(module).sample(torch.cat([mean * unit, log_std], dim=1))
    action = action / unit
    reward = -((action - 1) ** 2)
    (through,) = torch.autograd.grad(reward.sum(), mean)
    score = (reward * action).detach()  # d log N(a; mean, 1) / d mean = a - mean
    through, score = through.double(), score.double()
    return [
        Number("slope, through the sample", 2.0, through.mean().item(), 0.02),
        Number("its variance", 4.0, through.var().item(), 0.05),
        Number("slope, by the score function", 2.0, score.mean().item(), 0.05),
        Number("its variance", 30.0, score.var().item(), 1.5),
    ]


def entropy(script: str, seed: int, draws: int = 1_000_000) -> list[Number]:
    """Of a squashed Gaussian: the mean of -log pi, and the same by counting.

    A density's entropy is that of the cells of a histogram plus the logarithm of their width.
    """
    module = importlib.import_module(script)
    torch.manual_seed(seed)
    m, s = 0.3, 0.8
    with torch.no_grad():
        policy = row([m, math.log(s)]).expand(draws, -1)
        action, log_prob = told_what_to_do(module).sample(policy)
    cells = 400
    counts, _ = np.histogram(action.numpy(), bins=cells, range=(-1, 1))
    shares = counts[counts > 0] / draws
    counted = -(shares * np.log(shares)).sum() + math.log(2 / cells)
    exact = squashed_entropy(m, s)
    return [
        Number("mean of $-\\log \\pi$", exact, -log_prob.double().mean().item(), 0.01),
        Number("counted in 400 cells", exact, float(counted), 0.01),
    ]


# --- all of them --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured, for which scripts."""

    numbers: Callable[..., list[Number]]  # of a script and a seed
    scripts: list[str]
    shortest: dict[str, int]  # with this there is nothing learnt; exact values stay as they are


CASES = {
    "plane": Case(plane, OFF_POLICY, {"updates": 1}),
    "temperature": Case(temperature, ["sac_continuous"], {"updates": 1}),
    "line": Case(line, OFF_POLICY, {"updates": 1}),
    "squash": Case(squash, STOCHASTIC, {"updates": 1}),
    "replay": Case(values_from_replay, ["sac_v1_value_net"], {"updates": 1}),
    "bandit": Case(bandit, ["ppo_continuous"], {"updates": 1}),
    "slopes": Case(slopes, STOCHASTIC, {"draws": 10}),
    "entropy": Case(entropy, STOCHASTIC, {"draws": 10}),
}
