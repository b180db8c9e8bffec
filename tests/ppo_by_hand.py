"""PPO a second time: an iteration in NumPy float64, gradient steps by PyTorch's own parts, a world.

No expectation here comes from a function of the script.
"""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import worlds
from oracles import log_normal

import ppo_continuous as ppo

LIMIT = 10.0  # of normalised observations and of scaled rewards


# === A world ======================================================================================
class Roaming(gym.Env):
    """Episodes of 2 to 7 steps; each has a name of its own, which it shows.

    It observes name, time and place. The place drifts away from where an episode begins, so that
    the last observation of one is far from the first of the next. Time cuts an episode, or it
    terminates, or both: a die says which. `happened` is what went on, as the world saw it.
    """

    made: list["Roaming"] = []

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 6]))
        self.happened: list[SimpleNamespace] = []
        Roaming.made.append(self)

    def observe(self) -> np.ndarray:
        return np.array([self.name, self.time, self.place], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.name = self.np_random.uniform(-1, 1)
        self.place = self.np_random.uniform(-1, 1)
        self.time = 0
        self.end = self.np_random.integers(2, 8)
        self.die = self.np_random.integers(3)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        before = self.observe()
        self.time += 1
        self.place += 1 + 0.5 * float(action[0])
        reward = 2 * self.name + 0.5 * self.place - 0.2 * float(action[1] - 2) ** 2
        ended = self.time == self.end
        terminated = bool(ended and self.die > 0)
        truncated = bool(ended and self.die < 2)
        step = (before, np.array(action), reward, self.observe(), terminated, truncated)
        names = "obs action reward next_obs terminated truncated".split()
        self.happened.append(SimpleNamespace(**dict(zip(names, step, strict=True))))
        return self.observe(), reward, terminated, truncated, {}


worlds.register("Roaming", Roaming, None)
ROAMING = "ppo_by_hand:Roaming-v0"
LOW, HIGH = np.array([-2.0, 0.0]), np.array([2.0, 6.0])  # its actions

# A run of three iterations: 16 steps in each of three environments.
SMALL: dict[str, Any] = {"env_id": ROAMING, "num_envs": 3, "num_steps": 16, "total_timesteps": 144}
SMALL |= {"num_minibatches": 4, "update_epochs": 3, "hidden_dim": 8, "learning_rate": 0.01}
SMALL |= {"log_frequency": 1, "eval_frequency": 0, "eval_episodes": 0, "clip_coef": 0.1}
SMALL |= {"kl_coef": 2.0, "kl_coef_target": 0.02}


def small(tmp_path: Any = "", **changes: Any) -> ppo.Args:
    """Its settings, but for the changes."""
    return ppo.Args(**SMALL | {"runs_dir": str(tmp_path)} | changes)


def true_steps(world: Roaming, first: int, last: int) -> SimpleNamespace:
    """What happened in these steps of the world, one array for each kind of thing."""
    steps = world.happened[first:last]
    names = vars(steps[0])
    return SimpleNamespace(**{n: np.stack([getattr(step, n) for step in steps]) for n in names})


def in_own_units(action: np.ndarray) -> np.ndarray:
    """What the world gets for this action of the policy."""
    return LOW + (HIGH - LOW) * (np.clip(action, -1, 1) + 1) / 2


# === What a run does ==============================================================================
def numbers(agent: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of everything that is saved with the agent, in float64."""
    state = agent.state_dict()
    return {name: value.detach().double().numpy().copy() for name, value in state.items()}


def in_float64(rollout: ppo.Rollout) -> ppo.Rollout:
    return ppo.Rollout(*(x.double().numpy().copy() for x in rollout))


def watch_updates(monkeypatch: Any) -> list[SimpleNamespace]:
    """Every update of the runs of this test: rollout, numbers before and after, learning rate."""
    seen: list[SimpleNamespace] = []
    update = ppo.update

    def watched(agent: Any, rollout: Any, args: Any, *rest: Any) -> Any:
        one = SimpleNamespace(rollout=in_float64(rollout), before=numbers(agent))
        one.rate = agent.optimizer.lr.item()
        one.returned = update(agent, rollout, args, *rest)
        one.after = numbers(agent)
        seen.append(one)
        return one.returned

    monkeypatch.setattr(ppo, "update", watched)
    return seen


def wild_agent(args: ppo.Args, obs_dim: int = 3, action_dim: int = 2) -> ppo.Agent:
    """An agent in float64 whose weights are all large enough to matter."""
    torch.manual_seed(3)
    agent = ppo.Agent(obs_dim, action_dim, args).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.normal_(std=0.4)
        agent.optimizer.lr.fill_(args.learning_rate)
        agent.kl_coef.fill_(args.kl_coef * (args.surrogate == "kl-penalty"))
    return agent


def made_up_rollout(args: ppo.Args, agent: ppo.Agent, seed: int = 0) -> ppo.Rollout:
    """In float64, with ends of all kinds. Nothing in it is like anything else in it."""
    rng = np.random.default_rng(seed)
    shape = (args.num_steps, args.num_envs)
    action_dim = len(agent.actor.log_std)
    obs_dim = len(agent.actor.moments.mean)
    terminated, truncated = rng.random((2, *shape)) < 0.2
    terminated[2:5, 0] = [True, False, True]  # one of each kind at least
    truncated[2:5, 0] = [False, True, True]
    obs, next_obs = 1 + 2 * rng.normal(size=(2, *shape, obs_dim))
    action = rng.normal(size=(*shape, action_dim))
    reward = 3 * rng.normal(size=shape) + obs[..., 0]
    columns = (obs, action, reward, next_obs, terminated, terminated | truncated)
    return ppo.Rollout(*(torch.from_numpy(np.asarray(x, np.float64)) for x in columns))


# === Formulas =====================================================================================
def network(values: dict[str, Any], name: str, x: Any, tanh: Any = np.tanh) -> Any:
    """Two hidden layers of tanh and a last one that is linear."""
    for layer in (0, 2, 4):
        x = x @ values[f"{name}.{layer}.weight"].T + values[f"{name}.{layer}.bias"]
        if layer < 4:
            x = tanh(x)
    return x


def advantages(
    rollout: ppo.Rollout, value: np.ndarray, next_value: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """The sum of (gamma lambda)^k delta_t+k, in two loops, up to the end of the episode."""
    result = np.zeros_like(value)
    steps, envs = value.shape
    for i in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                rest = 0.0 if rollout.terminated[k, i] else gamma * next_value[k, i]
                result[t, i] += weight * (rollout.reward[k, i] + rest - value[k, i])
                if rollout.ended[k, i]:
                    break
                weight *= gamma * lam
    return result


def divergence(
    old_mean: np.ndarray, old_log_std: np.ndarray, mean: np.ndarray, log_std: np.ndarray
) -> np.ndarray:
    """KL(old||new): log(s/s_old) + (s_old^2 + (m_old - m)^2) / (2 s^2) - 1/2, summed."""
    old_std, std = np.exp(old_log_std), np.exp(log_std)
    each = np.log(std / old_std) + (old_std**2 + (old_mean - mean) ** 2) / (2 * std**2) - 0.5
    return each.sum(-1)


class ByHand:
    """Iterations of a run, one after the other, from rollouts and weights.

    It keeps all observations and all discounted returns that were seen: their mean and deviation
    are computed at one blow.
    """

    def __init__(self, args: ppo.Args):
        self.args = args
        self.seen: list[np.ndarray] = []  # observations of the iterations before
        self.brought: list[np.ndarray] = []  # discounted returns until each step
        self.running = np.zeros(args.num_envs)
        self.beta = args.kl_coef if args.surrogate == "kl-penalty" else 0.0
        self.at_the_border = 0.0  # share of ratios that float32 may count otherwise

    def begin_anew(self) -> None:
        """Every environment begins a new episode: the run is resumed."""
        self.running = np.zeros(self.args.num_envs)

    def normalise(self, obs: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
        """By the mean and the deviation of what was seen."""
        if not self.args.norm_obs:
            return obs
        seen = np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen])
        return np.clip((obs - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -LIMIT, LIMIT)

    def scaled(self, rollout: ppo.Rollout) -> ppo.Rollout:
        """With rewards in units of the deviation of the discounted return so far."""
        if not self.args.norm_reward:
            return rollout
        for reward, ended in zip(rollout.reward, rollout.ended, strict=True):
            brought = reward + self.args.gamma * self.running
            self.brought.append(brought)
            self.running = np.where(ended, 0.0, brought)
        unit = np.sqrt(np.var(self.brought) + 1e-8)
        return rollout._replace(reward=np.clip(rollout.reward / unit, -LIMIT, LIMIT))

    def look_back(self, rollout: ppo.Rollout, before: dict[str, np.ndarray]) -> SimpleNamespace:
        """All steps, (T N, ...), as the policy that acted saw them. Then the next may come."""
        args = self.args
        seen = self.seen or [rollout.obs]
        state = self.normalise(rollout.obs, seen)
        value = network(before, "critic", state)[..., 0]
        next_value = network(before, "critic", self.normalise(rollout.next_obs, seen))[..., 0]
        scaled = self.scaled(rollout)
        advantage = advantages(scaled, value, next_value, args.gamma, args.gae_lambda)
        steps = SimpleNamespace(state=state, action=rollout.action, value=value)
        steps.returns = advantage + value
        steps.advantage = advantage
        if args.norm_adv:
            steps.advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        steps.mean = network(before, "actor.net", state)
        steps.log_std = np.broadcast_to(before["actor.log_std"], steps.mean.shape)
        std = np.exp(steps.log_std)
        steps.log_prob = log_normal(rollout.action, steps.mean, std).sum(-1)
        for name, x in vars(steps).items():
            setattr(steps, name, x.reshape(-1, *x.shape[2:]))
        self.seen.append(rollout.obs)
        return steps

    def columns(self, steps: SimpleNamespace, after: dict[str, np.ndarray]) -> dict[str, float]:
        """What metrics.csv shows of this iteration. Then the penalty's weight adapts."""
        args = self.args
        mean, log_std = network(after, "actor.net", steps.state), after["actor.log_std"]
        log_prob = log_normal(steps.action, mean, np.exp(log_std)).sum(-1)
        ratio = np.exp(log_prob - steps.log_prob)
        kl = divergence(steps.mean, steps.log_std, mean, log_std).mean()
        plain = ratio * steps.advantage
        clipped = np.clip(ratio, 1 - args.clip_coef, 1 + args.clip_coef) * steps.advantage
        gain = {"clip": np.minimum(plain, clipped), "clip-no-min": clipped}
        gain = gain.get(args.surrogate, plain).mean() - self.beta * kl
        value = network(after, "critic", steps.state)[:, 0]
        error = (value - steps.returns) ** 2
        if args.clip_vloss:
            near = np.clip(value, steps.value - args.clip_coef, steps.value + args.clip_coef)
            error = np.maximum(error, (near - steps.returns) ** 2)
        left = np.var(steps.returns - steps.value)
        row = {"policy_loss": -gain, "value_loss": error.mean() / 2, "v": steps.value.mean()}
        row["explained_variance"] = 1 - left / np.var(steps.returns)
        row["entropy"] = np.sum(log_std + 0.5 * np.log(2 * np.pi * np.e))
        row |= {"kl": kl, "kl_coef": self.beta}
        row["clip_fraction"] = np.mean(abs(ratio - 1) > args.clip_coef)
        self.at_the_border = np.mean(abs(abs(ratio - 1) - args.clip_coef) < 1e-5)
        if kl > 1.5 * args.kl_coef_target:
            self.beta = 2 * self.beta
        elif kl < args.kl_coef_target / 1.5:
            self.beta = self.beta / 2
        return row


class Learner:
    """The gradient steps a second time: distributions, Adam and clipping are PyTorch's own."""

    def __init__(self, before: dict[str, np.ndarray], args: ppo.Args):
        self.args = args
        names = [name for name in before if name.startswith(("actor.net", "actor.log", "critic"))]
        self.weights = {name: torch.tensor(before[name], requires_grad=True) for name in names}
        assert len(names) == 13, "three layers of two networks, and the deviation"
        self.optimizer: torch.optim.Adam | None = None

    def policy(self, state: torch.Tensor) -> torch.distributions.Normal:
        mean = network(self.weights, "actor.net", state, torch.tanh)
        return torch.distributions.Normal(mean, self.weights["actor.log_std"].exp())

    def loss(self, steps: Any, rows: Any, beta: float) -> torch.Tensor:
        """Of these rows of the steps, to be made small."""
        args = self.args
        names = ppo.Steps._fields
        part = SimpleNamespace(**{n: torch.tensor(getattr(steps, n)[rows]) for n in names})
        new = self.policy(part.state)
        old = torch.distributions.Normal(part.mean, part.log_std.exp())
        ratio = torch.exp(new.log_prob(part.action).sum(-1) - part.log_prob)
        if args.surrogate in ("clip", "clip-no-min"):
            low, high = 1 - args.clip_coef, 1 + args.clip_coef
            gain = torch.clip(ratio, low, high) * part.advantage
            if args.surrogate == "clip":
                gain = torch.min(gain, ratio * part.advantage)
        else:
            gain = ratio * part.advantage
        gain = torch.mean(gain)
        if args.surrogate == "kl-penalty":
            gain = gain - beta * torch.distributions.kl_divergence(old, new).sum(-1).mean()
        value = network(self.weights, "critic", part.state, torch.tanh).squeeze(-1)
        error = (value - part.returns) ** 2
        if args.clip_vloss:
            change = torch.clip(value - part.value, -args.clip_coef, args.clip_coef)
            error = torch.max(error, (part.value + change - part.returns) ** 2)
        entropy = new.entropy().sum(-1).mean()
        return -gain + args.vf_coef * 0.5 * error.mean() - args.ent_coef * entropy

    def gradients(self, steps: Any, beta: float) -> dict[str, torch.Tensor]:
        """Of the loss of all steps, before they are cut."""
        loss = self.loss(steps, slice(None), beta)
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        return dict(zip(self.weights, gradients, strict=True))

    def step(self, steps: Any, rows: Any, beta: float) -> None:
        if self.optimizer is None:
            rate = self.args.learning_rate
            self.optimizer = torch.optim.Adam(self.weights.values(), lr=rate, eps=1e-5)
        self.optimizer.zero_grad()
        self.loss(steps, rows, beta).backward()
        if self.args.max_grad_norm > 0:
            weights = self.weights.values()
            torch.nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm)
        self.optimizer.step()
