# MIT licence. Part of Marginalia.
"""What a slip does to a number that is known: numbers.csv, for the slips of docs/slips.md.

    python docs/slips/measure.py              # what numbers.csv lacks; all of it takes six minutes
    python docs/slips/measure.py --check      # only say what it lacks

Each function below takes a script, right or with a slip in it, and returns numbers with the values
that they should have. A row's mark is that of the texts that were run: a number is measured again
where the script, the slip or the function has changed, and only there.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import closed_forms
import gymnasium as gym
import numpy as np
import torch
import worlds  # noqa: F401  registers its environments
from slip_tables import Slip, on_the_page, read_tables
from slipped import mark_of, module_with, script_of
from torch import Tensor, nn

TABLE = Path(__file__).resolve().parent / "numbers.csv"
COLUMNS = ["slip", "measure", "what", "exact", "right", "wrong", "mark"]


@dataclasses.dataclass(frozen=True)
class Number:
    """A number, and what it should be; None where only the comparison says something."""

    what: str
    exact: float | None
    value: float


# --- what is learnt where the answer is known ---------------------------------------------------


def shown(numbers: list, *names: str) -> list[Number]:
    """Those of closed_forms.py that have these names."""
    return [Number(x.what, float(x.exact), float(x.learnt)) for x in numbers if x.what in names]


def plane(module: ModuleType) -> list[Number]:
    """A regulator whose solution the networks can hold; docs/closed_forms.md has more of it."""
    names = ["gain $K_{11}$", "$Q(0, 0)$", "standard deviation $\\sigma_1$", "entropy $H$"]
    return shown(closed_forms.plane(module.__name__, seed=1), *names)


def temperature(module: ModuleType) -> list[Number]:
    """The same with a temperature that is tuned."""
    numbers = closed_forms.temperature(module.__name__, seed=1)
    return shown(numbers, "temperature $\\alpha$", "entropy $H$", "gain $K_{11}$")


def squash(module: ModuleType) -> list[Number]:
    """One state, and so much entropy that the policy feels its bounds."""
    numbers = closed_forms.squash(module.__name__, seed=1)
    return shown(numbers, "best action $\\tanh m$", "entropy $H$", "$V(s)$")


def replay(module: ModuleType) -> list[Number]:
    """Action 1 earns 1, action -1 nothing, and the replay holds as many of each."""
    numbers = closed_forms.values_from_replay(module.__name__, seed=1)
    return shown(numbers, "$V(s)$", "$Q(s, 1)$")


def trained_in(module: ModuleType, world: str, **settings: Any) -> Any:
    """The agent after a short run, and what its replay was given."""
    small = {"hidden_dim": 32, "batch_size": 64, "learning_starts": 100, "gamma": 0.9}
    small |= {"tau": 0.1, "q_lr": 3e-3, "policy_lr": 3e-3, "alpha": 0.0, "autotune": False}
    small |= {"eval_frequency": 0, "checkpoint_frequency": 0, "eval_episodes": 1}
    stored: list[tuple] = []
    add = module.ReplayBuffer.add

    def remember(self: Any, *transition: Any) -> None:
        stored.append(transition)
        add(self, *transition)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(module.ReplayBuffer, "add", remember),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        chosen = small | {"env_id": world, "runs_dir": folder} | settings
        results = module.train(closed_forms.settings(module, **chosen))
    return results["agent"], stored


def q_at(agent: nn.Module, time: float) -> float:
    """What the first critic thinks of what the actor does then."""
    obs = torch.full((1, 3), float(time))
    with torch.no_grad():
        return agent.q1(obs, agent.actor(obs)).item()


def forever(module: ModuleType) -> list[Number]:
    """Reward 1 at every step, a time limit after 5, and observations that do not tell the time."""
    agent, _ = trained_in(module, "worlds:Forever-v0", total_timesteps=800, tau=0.2)
    return [Number("Q where each step earns 1 for ever, $\\gamma$ = 0.9", 10.0, q_at(agent, 0))]


def ending(module: ModuleType) -> list[Number]:
    """Reward 1 at every step, and a true end after 5."""
    agent, _ = trained_in(module, "worlds:Both-v0", total_timesteps=1500)
    first = (1 - 0.9**5) / (1 - 0.9)
    return [
        Number("Q of the last step, which earns 1 and ends", 1.0, q_at(agent, 4)),
        Number("Q of the first of five steps", first, q_at(agent, 0)),
    ]


def ending_with_entropy(module: ModuleType) -> list[Number]:
    """The same, where a nat of entropy is worth 1/2: after the end there is none."""
    agent, _ = trained_in(module, "worlds:Both-v0", total_timesteps=1500, alpha=0.5)
    return [Number("Q of the last step, which earns 1 and ends", 1.0, q_at(agent, 4))]


# --- what is stored, and what is done with it ---------------------------------------------------


def stored_steps(module: ModuleType) -> list[Number]:
    """The observation is the step's number, so that each leads to the next one."""
    _, stored = trained_in(module, "worlds:Endless-v0", total_timesteps=120)
    jumps = [abs(float(next_obs[0] - obs[0])) for obs, _, _, next_obs, _ in stored]
    return [Number("longest way from an observation to its next one", 1.0, max(jumps))]


def stored_actions(module: ModuleType) -> list[Number]:
    """Of the warm-up on Pendulum, whose own actions are between -2 and 2."""
    _, stored = trained_in(module, "Pendulum-v1", total_timesteps=1000, learning_starts=1000)
    actions = [float(action[0]) for _, action, *_ in stored]
    exact = 1 / math.sqrt(3)
    return [Number("deviation of stored actions, uniform in [-1, 1]", exact, np.std(actions))]


def perfect_critic(module: ModuleType) -> list[Number]:
    """The targets are the critic's own values, as the replay and the target have them: (B,)."""
    torch.manual_seed(0)
    critic = module.Critic(1, 1, 8)
    q = critic(torch.randn(256, 1), torch.randn(256, 1)).detach()
    target = q.flatten()
    loss = module.critic_loss(q, target)
    return [Number("loss of a perfect critic, in units of the variance of Q", 0.0, loss / q.var())]


def two_estimates(module: ModuleType) -> list[Number]:
    """Each action is worth 0, and each critic has an error of its own, N(0, 1)."""
    torch.manual_seed(0)
    q1, q2 = torch.randn(2, 100_000, 10).unbind()
    value = module.soft_value(q1, q2, torch.zeros(()), torch.zeros(()))
    best = value.amax(-1).mean().item()
    return [Number("value of the best of 10 actions that are worth 0", 0.0, best)]


def slow_copy(module: ModuleType) -> list[Number]:
    """A network of one weight, 1, and its copy, which begins with 0; 100 updates, tau 0.005."""
    network, copy = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    nn.init.zeros_(copy.weight)
    for _ in range(100):
        module.update_target(copy, network, 0.005)
    return [
        Number("the copy after 100 updates, from 0", 1 - 0.995**100, copy.weight.item()),
        Number("the network, which is 1", 1.0, network.weight.item()),
    ]


# --- SAC's density ------------------------------------------------------------------------------


def log_density(module: ModuleType, mean: float, std: float, noise: Tensor) -> tuple:
    """Actions and log pi of them from the script's sample(), for noise that is given: (N, A)."""
    actor = closed_forms.told_what_to_do(module)
    each = [torch.full_like(noise, mean), torch.full_like(noise, math.log(std))]
    with mock.patch.object(torch, "randn_like", lambda like: noise), torch.no_grad():
        return actor.sample(torch.cat(each, dim=1))


def density(module: ModuleType) -> list[Number]:
    """A density's integral is 1. Of two independent numbers it is one over a square."""
    points = torch.linspace(-8, 8, 2001)
    action, log_prob = log_density(module, 0.3, 0.8, points[:, None])
    line = torch.trapezoid(log_prob.double().exp(), action[:, 0].double())
    points = points[::5]
    action, log_prob = log_density(module, 0.3, 0.8, torch.cartesian_prod(points, points))
    axis = action[: len(points), 1].double()
    table = log_prob.double().exp().reshape(len(points), len(points))
    square = torch.trapezoid(torch.trapezoid(table, axis), axis)
    _, far = log_density(module, 10.0, 1.0, torch.zeros(1, 1))
    log_slope = math.log(4) - 2 * np.logaddexp(10, -10)
    exact = -0.5 * math.log(2 * math.pi) - log_slope
    return [
        Number("integral of the density of one number", 1.0, line.item()),
        Number("integral of the density of two", 1.0, square.item()),
        Number("$\\log \\pi$ where $u$ = 10 is the mean", exact, far.item()),
    ]


# --- TD3 ----------------------------------------------------------------------------------------


def smoothing(module: ModuleType) -> list[Number]:
    torch.manual_seed(0)
    action = 2 * torch.rand(100_000, 1) - 1
    largest = module.smooth(action, 0.2, 0.5).abs().max().item()
    return [Number("largest action that the target critic is asked about", 1.0, largest)]


def actor_steps(module: ModuleType) -> list[Number]:
    """One update at each of 100 steps; the actor is to learn at every second one."""
    agent, _ = trained_in(module, "worlds:Endless-v0", total_timesteps=200)
    return [Number("steps of the actor in 100 updates", 50.0, agent.actor_optimizer.t.item())]


def slow_twins(module: ModuleType) -> list[Number]:
    """The slow critics say 3 and 1 of everything, and the reward is 0."""
    args = module.Args(hidden_dim=8)
    agent = module.Agent(2, 1, args)
    for critic, says in ((agent.q1_target, 3.0), (agent.q2_target, 1.0)):
        nn.init.zeros_(critic.net[-1].weight)
        nn.init.constant_(critic.net[-1].bias, says)
    targets = []
    loss = module.critic_loss

    def remember(q: Tensor, target: Tensor) -> Tensor:
        targets.append(target.mean().item())
        return loss(q, target)

    nothing = torch.zeros(4)
    batch = module.Batch(torch.zeros(4, 2), torch.zeros(4, 1), nothing, torch.zeros(4, 2), nothing)
    with mock.patch.object(module, "critic_loss", remember):
        module.update(agent, batch, args, 1)
    what = "target where the slow critics say 3 and 1, $\\gamma$ = 0.99"
    return [Number(what, 0.99, targets[0])]


# --- prioritised replay -------------------------------------------------------------------------


def fit_with_priorities(module: ModuleType) -> list[Number]:
    """Half of the targets are 1 and drawn four times as often as the others, which are 0.

    With beta = 1 the weights make up for that. The constant is where the loss's slope is 0.
    """
    torch.manual_seed(0)
    replay = module.PrioritizedReplayBuffer(1000, 1, 1)
    for number in range(1000):
        replay.add(np.zeros(1), np.zeros(1), float(number < 500), np.zeros(1), False)
    rows = np.arange(1000)
    replay.update_priorities(rows, np.where(rows < 500, 4.0, 1.0))
    batch, _, probability = replay.sample(100_000)
    weight = module.importance_weight(probability, len(replay), 1.0)
    slopes = []
    for constant in (0.0, 1.0):
        q = torch.full((100_000,), constant, requires_grad=True)
        (slope,) = torch.autograd.grad(module.critic_loss(q, batch.reward, weight), q)
        slopes.append(slope.sum().item())
    best = slopes[0] / (slopes[0] - slopes[1])
    return [Number("constant that fits 500 times 1 and 500 times 0", 0.5, best)]


def drawn_by_error(module: ModuleType) -> list[Number]:
    """Too low and too high by 1, of both critics."""
    errors = torch.tensor([-1.0, 1.0])
    with np.errstate(invalid="ignore"):
        found = module.priority([errors, errors], 0.6)
    exact = 1.01**0.6
    names = ["priority of an error of -1", "priority of an error of +1"]
    return [Number(name, exact, value) for name, value in zip(names, found, strict=True)]


def returned_errors(module: ModuleType) -> list[Number]:
    """The same update with weights of 1 and of 1/4: a weight is not part of an error."""
    errors = []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        args = module.Args(hidden_dim=8)
        agent = module.Agent(2, 1, args)
        obs, next_obs = torch.randn(2, 16, 2).unbind()
        batch = module.Batch(obs, torch.rand(16, 1), torch.randn(16), next_obs, torch.zeros(16))
        _, (first, _) = module.update(agent, batch, torch.full((16,), weight), args, 1)
        errors.append(first)
    ratio = (errors[1] / errors[0]).mean().item()
    return [Number("error for the priorities at a weight of 1/4, by that at 1", 1.0, ratio)]


# --- hindsight ----------------------------------------------------------------------------------


class Walk(gym.Env):
    """The state goes up by 1 at each step; what is wanted, -1, is never reached."""

    observation_space = gym.spaces.Dict(
        dict.fromkeys(
            ["observation", "achieved_goal", "desired_goal"], gym.spaces.Box(-1, 99, (1,))
        )
    )
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        return self.observation_space.sample(), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return -np.float32(np.abs(achieved - desired)[..., 0] > 0.5)

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return np.abs(achieved - desired)[..., 0] < 0.5


LENGTH = 10  # steps of an episode


def relabelled(module: ModuleType) -> tuple[Any, Tensor]:
    """A large batch from hindsight with k = 4, and which of its rows have another goal."""
    torch.manual_seed(0)
    env = module.FlattenGoal(Walk())
    replay = module.HindsightReplayBuffer(module.ReplayBuffer(200, 3, 1), env)
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(20):
            for time in range(LENGTH):
                obs = [time, time, -1]
                replay.add(obs, [0.0], -1.0, [time + 1, time + 1, -1], False)
            replay.end_episode()
    batch = replay.sample(100_000)
    return batch, batch.next_obs[:, 2] != -1


def hindsight(module: ModuleType) -> list[Number]:
    """A goal is met where it is what this step led to: one of the T - t that may be chosen."""
    batch, other = relabelled(module)
    met = sum(1 / (LENGTH - time) for time in range(LENGTH)) / LENGTH
    whole = (batch.obs[:, 0] == batch.obs[:, 1])[other].float().mean().item()
    share = other.float().mean().item()
    return [
        Number("share of rows with another goal, k = 4", 0.8, share),
        Number("share of these that meet it", met, (batch.reward[other] == 0).float().mean()),
        Number("share of these whose state is one that was seen", 1.0, whole),
    ]


def hindsight_ends(module: ModuleType) -> list[Number]:
    batch, other = relabelled(module)
    met = other & (batch.reward == 0)
    ended = batch.terminated[met].mean().item()
    return [Number("share of met goals at which the episode ends", 1.0, ended)]


# --- PPO ----------------------------------------------------------------------------------------


def rollout_of(module: ModuleType, terminates: bool) -> Any:
    """Two episodes of five steps that earn 1 each, one after the other in one environment."""
    zeros = torch.zeros(10, 1, 1)
    ended = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0, 1.0])[:, None]
    terminated = ended if terminates else 0 * ended
    return module.Rollout(zeros, zeros, torch.ones(10, 1), zeros, terminated, ended)


def advantages(module: ModuleType) -> list[Number]:
    """With values that are right nothing is better than expected. With none, all rewards count."""
    ten = torch.full((10, 1), 10.0)
    left = torch.tensor([5, 4, 3, 2, 1] * 2)[:, None]
    value = (1 - 0.9**left) / (1 - 0.9)
    after = torch.where(left > 1, (1 - 0.9 ** (left - 1)) / (1 - 0.9), ten)  # ten: never learnt
    cut, ending = rollout_of(module, False), rollout_of(module, True)
    at_limit = module.gae(cut, ten, ten, 0.9, 0.95).abs().max().item()
    at_end = module.gae(ending, value, after, 0.9, 0.95).abs().max().item()
    sums = module.gae(cut, 0 * ten, 0 * ten, 0.9, 1.0)
    exact = (1 - 0.9**5) / (1 - 0.9)
    return [
        Number("largest advantage with true values, time limit", 0.0, at_limit),
        Number("largest advantage with true values, termination", 0.0, at_end),
        Number("sum of an episode's five rewards", exact, sums[0, 0].item()),
    ]


PLAIN = {"norm_obs": False, "norm_reward": False, "hidden_dim": 8, "max_grad_norm": 0.0}


def silent(module: ModuleType, **settings: Any) -> Any:
    """An agent whose mean action and whose value are 0, and its settings."""
    args = module.Args(**PLAIN | settings)
    torch.manual_seed(0)
    agent = module.Agent(1, 1, args)
    for layer in (agent.actor.net[-1], agent.critic[-2]):
        nn.init.zeros_(layer.weight)
    return agent, args


def returns(module: ModuleType) -> list[Number]:
    """Five steps that earn 1 each: on average the first of five, four, ... one rewards."""
    agent, args = silent(module, gamma=0.9, gae_lambda=1.0)
    with torch.no_grad():
        steps = module.look_back(agent, rollout_of(module, True), args)
    exact = np.mean([(1 - 0.9**left) / (1 - 0.9) for left in range(1, 6)])
    return [Number("mean of the returns that V is to learn", exact, steps.returns.mean().item())]


def evaluation(module: ModuleType) -> list[Number]:
    """Observations whose mean is 5 and whose deviation is 2, as the normaliser knows."""
    torch.manual_seed(0)
    actor = module.Actor(3, 1, 64)
    nn.init.orthogonal_(actor.net[-1].weight, 0.5)
    actor.moments.mean.fill_(5.0)
    actor.moments.var.fill_(4.0)
    obs = 5 + 2 * torch.randn(1000, 3)
    with torch.no_grad():
        off = actor(obs) - actor.net((obs - 5) / 2).clamp(-1, 1)
    return [Number("how far evaluation's action is from the policy's mean", 0.0, off.abs().mean())]


def divergence(module: ModuleType) -> list[Number]:
    """From N(0, 1/4) to N(0, 1)."""
    agent, args = silent(module)
    one, zero = torch.ones(4, 1), torch.zeros(4, 1)
    old = math.log(0.5) * one
    steps = module.Steps(zero, zero, one[:, 0], one[:, 0], one[:, 0], zero, old, one[:, 0])
    with torch.no_grad():
        *_, kl = module.losses(agent, steps, args, with_kl=True)
    exact = math.log(2) + 0.5**2 / 2 - 0.5
    return [Number("KL(old\\|\\|new), deviation from 1/2 to 1", exact, kl.item())]


def bandit_with(module: ModuleType, bonus: float) -> list[Number]:
    """One state, reward -(a - 1/2)^2, 15 iterations of 500 actions with 30 epochs each."""
    changes = {"num_steps": 500, "num_minibatches": 1, "update_epochs": 30}
    agent, args = silent(module, **changes)
    agent.optimizer.lr.fill_(0.01)
    nothing, end = torch.zeros(500, 1, 1), torch.ones(500, 1)
    divergences = []
    for _ in range(15):
        with torch.no_grad():
            mean = agent.actor.net(torch.zeros(1, 1)).item()
            action = mean + agent.actor.log_std.exp() * torch.randn(500, 1, 1)
        reward = bonus - ((action[..., 0] - 0.5) ** 2)
        rollout = module.Rollout(nothing, action, reward, nothing, end, end)
        divergences.append(module.update(agent, rollout, args)["kl"].item())
    mean = agent.actor.net(torch.zeros(1, 1)).item()
    std = agent.actor.log_std.exp().item()
    return [
        Number("mean action, of which 1/2 is the best", 0.5, mean),
        Number("its standard deviation, which is to fall", None, std),
        Number("KL(old\\|\\|new) of the first iteration", None, divergences[0]),
    ]


def bandit(module: ModuleType) -> list[Number]:
    return bandit_with(module, 0.0)


def bandit_far(module: ModuleType) -> list[Number]:
    """With 10 more for every action, which V has yet to learn: all advantages are above 0."""
    return bandit_with(module, 10.0)


# --- the table ----------------------------------------------------------------------------------


def measures_of(slip: Slip) -> list[str]:
    return [name for name in slip.page.measures if name != "curve"]


def read_rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with open(TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def missing(rows: list[dict[str, str]], slips: list[Slip]) -> Iterator[tuple[Slip, str]]:
    """Which measurements the table has not, for the texts as they are."""
    done = {(row["slip"], row["measure"], row["mark"]) for row in rows}
    for slip in slips:
        for measure in measures_of(slip):
            if (slip.name, measure, mark_of(slip, measure)) not in done:
                yield slip, measure


def measured(slip: Slip | None, script: str, measure: str) -> list[Number]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of shapes: the slip is what is measured
        with module_with(script, slip) as module:
            return globals()[measure](module)


def text(value: float | None) -> str:
    if value is None:
        return ""
    value = float(value)
    return "0" if abs(value) < 1e-5 else f"{value:.4g}"


def compare(slip: Slip, measure: str) -> list[dict[str, str]]:
    """The rows of one measurement, right beside wrong."""
    script = script_of(slip)
    rows = []
    both = measured(None, script, measure), measured(slip, script, measure)
    for right, wrong in zip(*both, strict=True):
        row = {"slip": slip.name, "measure": measure, "what": right.what}
        row |= {"exact": text(right.exact), "right": text(right.value), "wrong": text(wrong.value)}
        rows.append(row | {"mark": mark_of(slip, measure)})
    return rows


def write_rows(rows: list[dict[str, str]], slips: list[Slip]) -> None:
    """In the order of the tables, without what they do not ask for any more."""
    wanted = [(slip.name, measure) for slip in slips for measure in measures_of(slip)]
    rows = [row for row in rows if (row["slip"], row["measure"]) in wanted]
    rows.sort(key=lambda row: wanted.index((row["slip"], row["measure"])))
    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    slips = on_the_page(read_tables())
    to_do = list(missing(read_rows(), slips))
    for slip, measure in to_do:
        print(f"{slip}: {measure}", flush=True)
        if check:
            continue
        old = [row for row in read_rows() if (row["slip"], row["measure"]) != (slip.name, measure)]
        new = compare(slip, measure)
        for row in new:
            print(*(f"{row[name]:>12}" for name in ("exact", "right", "wrong")), row["what"])
        write_rows(old + new, slips)
    print(f"{len(to_do)} measurements were missing")
    if check and to_do:
        sys.exit(1)


if __name__ == "__main__":
    main()
