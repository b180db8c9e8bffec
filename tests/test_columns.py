"""Every column of the off-policy scripts' metrics.csv, recomputed in NumPy.

From a batch, the noise, and the weights before and after the update: once as update() returns them,
in float64, over three updates in which everything moves; and once as they arrive in metrics.csv.
A column that is not recomputed here is a failure.
"""

import csv
import importlib
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from helpers import OFF_POLICY
from oracles import ACT, OBS, gaussian_sample, mlp, numbers, q_value, spread_out, watch
from papers import in_float64, new_agent, new_batch, rest_of_call

# Every network moves at a pace of its own, so that before and after an update differ.
GAMMA, TAU = 0.9, 0.2
RATES = {"policy_lr": 0.02, "q_lr": 0.03, "tau": TAU, "gamma": GAMMA, "hidden_dim": 8}


# === What each column should be ===================================================================
def half_square(error, weight=1.0):
    return np.mean(weight * error**2) / 2


def policy_values(update, noise):
    """log pi and both critics at a fresh action: the actor before its step, critics after theirs.

    Of them nothing else moves in an update, so they are those of its beginning and of its end.
    """
    obs = update.batch.obs.double().numpy()
    action, log_prob = gaussian_sample(update.before["actor"], obs, noise)
    return log_prob, [q_value(update.after[q], obs, action) for q in ("q1", "q2")]


def replayed_values(update, names):
    """Of the critics before the update, at the replayed actions."""
    obs, action = update.batch.obs.double().numpy(), update.batch.action.double().numpy()
    return {name: q_value(update.before[name], obs, action) for name in names}


def bellman(update, next_value, scale=1.0):
    reward, terminated = update.batch.reward.double(), update.batch.terminated.double()
    return scale * reward.numpy() + GAMMA * (1 - terminated.numpy()) * next_value


def sac_columns(update, args):
    next_obs = update.batch.next_obs.double().numpy()
    next_noise, noise = update.noise
    alpha = np.exp(update.before["log_alpha"][0])
    next_action, next_log_prob = gaussian_sample(update.before["actor"], next_obs, next_noise)
    slow = [q_value(update.before[q], next_obs, next_action) for q in ("q1_target", "q2_target")]
    target = bellman(update, np.min(slow, axis=0) - alpha * next_log_prob)
    values = replayed_values(update, ["q1", "q2"])
    log_prob, new_values = policy_values(update, noise)
    columns = values | {
        "critic_loss": sum(half_square(value - target) for value in values.values()),
        "actor_loss": np.mean(alpha * log_prob - np.min(new_values, axis=0)),
        "entropy": -log_prob,
        "alpha": alpha,
    }
    if args.autotune:
        target_entropy = -args.target_entropy_scale * ACT
        columns["temperature_loss"] = -alpha * np.mean(log_prob + target_entropy)
    return columns


def v1_columns(update, args):
    obs, next_obs = (x.double().numpy() for x in (update.batch.obs, update.batch.next_obs))
    (noise,) = update.noise
    next_value = mlp(update.before["v_target"], next_obs)[:, 0]
    target = bellman(update, next_value, args.reward_scale)
    values = replayed_values(update, ["q1", "q2"])
    log_prob, new_values = policy_values(update, noise)
    soft_value = np.min(new_values, axis=0) - args.alpha * log_prob
    mean, log_std = np.split(mlp(update.before["actor"], obs), 2, axis=1)
    small = args.policy_reg * (np.mean(mean**2) + np.mean(log_std**2))
    v = mlp(update.before["v"], obs)[:, 0]
    return values | {
        "critic_loss": sum(half_square(value - target) for value in values.values()),
        "actor_loss": small - np.mean(soft_value),
        "entropy": -log_prob,
        "value_loss": half_square(v - soft_value),
        "v": v,
    }


def td_errors(update, args):
    """Of TD3's and DDPG's critics, before their step; and what they say of the replayed actions."""
    next_obs = update.batch.next_obs.double().numpy()
    next_action = np.tanh(mlp(update.before["actor_target"], next_obs))
    for noise in update.noise:
        noise = np.clip(args.policy_noise * noise, -args.noise_clip, args.noise_clip)
        next_action = np.clip(next_action + noise, -1, 1)
    critics = ["q"] if "q" in update.before else ["q1", "q2"]
    if not getattr(args, "double_q", True):
        critics = ["q1"]
    slow = [q_value(update.before[f"{q}_target"], next_obs, next_action) for q in critics]
    target = bellman(update, np.min(slow, axis=0))
    values = replayed_values(update, critics)
    return [value - target for value in values.values()], values


def deterministic_columns(update, args, number, weight=1.0):
    obs = update.batch.obs.double().numpy()
    errors, values = td_errors(update, args)
    first = next(iter(values))
    columns = {"critic_loss": sum(half_square(error, weight) for error in errors)}
    columns[first] = values[first]
    if number % getattr(args, "policy_frequency", 1) == 0:
        action = np.tanh(mlp(update.before["actor"], obs))
        columns["actor_loss"] = -np.mean(q_value(update.after[first], obs, action))
        columns["at_bound"] = (abs(action) > 0.99).astype(float)
    return columns


def columns_of(script, update, args, number, weight=None):
    if script in ("sac_continuous", "sac_her_continuous"):
        return sac_columns(update, args)
    if script == "sac_v1_value_net":
        return v1_columns(update, args)
    if script == "td3_per_continuous":
        return deterministic_columns(update, args, number, weight) | {"weight": weight}
    return deterministic_columns(update, args, number)


# === As update() returns them =====================================================================
SAC = {"alpha": 0.3, "alpha_lr": 0.05, "target_entropy_scale": 0.5}
# By script and variant: the settings that differ from RATES.
CASES = {
    "sac_continuous": SAC,
    "sac_continuous-fixed": SAC | {"autotune": False},
    "sac_continuous-no_entropy": {"autotune": False, "alpha": 0.0},
    "sac_her_continuous": SAC,
    "sac_v1_value_net": {"alpha": 0.3, "reward_scale": 2.5},
    "sac_v1_value_net-regularised": {"alpha": 0.3, "policy_reg": 0.1},
    "td3_continuous": {"policy_noise": 0.6},
    "td3_continuous-no_delay": {"policy_frequency": 1},
    "td3_continuous-one_critic": {"double_q": False},
    "ddpg_continuous": {},
    "td3_per_continuous": {"policy_noise": 0.6},
    "td3_per_continuous-no_delay": {"policy_frequency": 1},
    "td3_per_continuous-one_critic": {"double_q": False},
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_update_returns(case):
    """Every number of it, for every transition, in four updates with real steps."""
    script, settings = case.split("-")[0], CASES[case]
    module = importlib.import_module(script)
    args = module.Args(**RATES | settings)
    with in_float64():
        agent = new_agent(module, args, spread=0.6)
        for number in range(1, 5):
            rest = rest_of_call(module, args, number, size=40)
            batch = new_batch(module, size=40)
            update = watch(module, module.update, agent, batch, *rest)
            returned, weight = update.returned, None
            if script == "td3_per_continuous":
                returned, errors = update.returned
                weight = rest[0].numpy()
                expected, _ = td_errors(update, args)
                assert len(errors) == len(expected)
                for got, error in zip(errors, expected, strict=True):
                    np.testing.assert_allclose(got, error, rtol=1e-9, atol=1e-9)
            columns = columns_of(script, update, args, number, weight)
            assert returned.keys() == columns.keys()
            for name, value in returned.items():
                assert value.shape == np.shape(columns[name]), name
                assert not value.requires_grad, name
                close = {"rtol": 1e-9, "atol": 1e-9, "err_msg": f"{name} of update {number}"}
                np.testing.assert_allclose(value, columns[name], **close)


@pytest.mark.parametrize("script", ["td3_continuous", "ddpg_continuous", "td3_per_continuous"])
def test_at_bound_counts_the_actions_within_one_hundredth_of_a_bound(script):
    """Below and above, and each dimension for itself."""
    module = importlib.import_module(script)
    args = module.Args(**RATES)
    with in_float64():
        agent = new_agent(module, args)
        with torch.no_grad():
            agent.actor.net[-1].weight.zero_()
            agent.actor.net[-1].bias.copy_(torch.tensor([0.989, -0.991, 0.9905]).atanh())
        update = watch(
            module, module.update, agent, new_batch(module), *rest_of_call(module, args, 2)
        )
    returned = update.returned[0] if script == "td3_per_continuous" else update.returned
    assert returned["at_bound"].tolist() == [[0, 1, 1]] * len(update.batch.obs)


# === As they arrive in metrics.csv ================================================================
class Diary(gym.Env):
    """A point that is pushed. Each instance remembers its episodes, and when its steps were."""

    made: list["Diary"] = []
    ticks = 0  # steps of all instances

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)
        low, high = np.array([-2, 0, 1], np.float32), np.array([1, 3, 5], np.float32)
        self.action_space = gym.spaces.Box(low, high)
        self.rewards: list[list[float]] = []  # of each episode
        self.times: list[tuple[int, int]] = []  # of each step: ticks before and after it
        Diary.made.append(self)

    def observe(self) -> np.ndarray:
        return np.array([self.x, self.time / 5, self.x**2, np.sin(self.x), self.start])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rewards.append([])
        self.time, self.start = 0, self.np_random.uniform(-1, 1)
        self.x = self.start
        return self.observe(), {}

    def step(self, action):
        self.times.append((Diary.ticks, Diary.ticks + 1))
        Diary.ticks += 1
        self.time += 1
        push, drag, wind = action.tolist()
        self.x = 0.8 * self.x + 0.2 * push - 0.1 * drag + 0.05 * wind
        reward = 1 - (self.x - 0.5) ** 2 - 0.05 * drag
        self.rewards[-1].append(reward)
        # An episode that began above 0 terminates after 4 steps, another is cut off after 6.
        return self.observe(), reward, self.start > 0 and self.time == 4, False, {}


worlds.register("Diary", Diary, 6)


def clock_at(ticks):
    """Seconds, which pass faster and faster."""
    return 50.0 + 0.001 * ticks**1.5


class Priorities:
    """The largest |TD error| of each row, kept as the paper says, in float64 and without a tree."""

    def __init__(self, capacity, alpha):
        self.capacity, self.alpha, self.added = capacity, alpha, 0
        self.p = np.zeros(0)

    def add(self):
        largest = self.p.max() if len(self.p) else 1.0
        row = self.added % self.capacity
        if row == len(self.p):
            self.p = np.append(self.p, largest)
        self.p[row] = largest
        self.added += 1

    def weight(self, rows, beta):
        weight = (len(self.p) * self.p[rows] / self.p.sum()) ** -beta
        return weight / weight.max()

    def learn(self, rows, errors):
        self.p[rows] = (np.max(np.abs(errors), axis=0) + 0.01) ** self.alpha


def recorded_run(script, patch, tmp_path, **settings):
    """A short run, and what its columns should be: of updates by step, of evaluations by step."""
    module = importlib.import_module(script)
    args = module.Args(
        env_id="test_columns:Diary-v0", total_timesteps=60, learning_starts=13, batch_size=9,
        buffer_size=41, updates_per_step=1.5, log_frequency=7, eval_frequency=20, eval_episodes=3,
        num_threads=1, runs_dir=str(tmp_path), **RATES | settings,
    )  # fmt: skip
    patch.setattr(Diary, "made", [])
    patch.setattr(Diary, "ticks", 0)
    patch.setattr(time, "perf_counter", lambda: clock_at(Diary.ticks))
    updates, evaluations, drawn = {}, {}, []
    per = script == "td3_per_continuous"
    priorities = Priorities(args.buffer_size, args.per_alpha) if per else None
    count = 0
    buffer = module.PrioritizedReplayBuffer if per else module.ReplayBuffer
    start, evaluation = module.Run.start, module.Run.evaluation
    original_update, add, sample = module.update, buffer.add, buffer.sample

    def noted_start(run, env, agent, replay):
        spread_out(agent)
        return start(run, env, agent, replay)

    def noted_evaluation(run):
        evaluations[run.step] = numbers(run.agent)
        return evaluation(run)

    def noted_add(replay, *transition):
        if per:
            priorities.add()
        add(replay, *transition)

    def noted_sample(replay, batch_size):
        result = sample(replay, batch_size)
        if per:
            drawn.append(result[1])
        return result

    def noted_update(agent, batch, *rest):
        nonlocal count
        count += 1
        step = len(Diary.made[0].times)
        weight = None
        if per:
            beta = args.per_beta + (1 - args.per_beta) * step / args.total_timesteps
            weight = priorities.weight(drawn[-1], beta)
        update = watch(module, original_update, agent, batch, *rest)
        columns = columns_of(script, update, args, count, weight)
        if per:
            priorities.learn(drawn[-1], td_errors(update, args)[0])
        updates[step] = updates.get(step, {}) | columns
        return update.returned

    patch.setattr(module.Run, "start", noted_start)
    patch.setattr(module.Run, "evaluation", noted_evaluation)
    patch.setattr(buffer, "add", noted_add)
    patch.setattr(buffer, "sample", noted_sample)
    patch.setattr(module, "update", noted_update)
    results = module.train(args)
    assert count == int((60 - 13) * 1.5)
    return args, results, updates, evaluations


def played(nets, args):
    """The evaluation's columns, of these weights, in an environment of their own."""
    env = gym.make("test_columns:Diary-v0")
    space = env.action_space
    returns, errors = [], []
    stochastic = nets["actor"][-1].size == 2 * ACT
    critic = "q" if "q" in nets else "q1"

    def act(obs):
        output = mlp(nets["actor"], obs[None])[0]
        return np.tanh(output[:ACT] if stochastic else output)

    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=1_000_000 + episode)
        rewards, values, ended = [], [], False
        while not ended:
            action = act(obs)
            values.append(q_value(nets[critic], obs[None], action[None])[0])
            scaled = space.low + (space.high - space.low) * (action + 1) / 2
            obs, reward, terminated, truncated, _ = env.step(scaled.astype(np.float32))
            rewards.append(reward)
            ended = terminated or truncated
        returns.append(sum(rewards))
        rest = 0 if terminated else q_value(nets[critic], obs[None], act(obs)[None])[0]
        length = len(rewards)
        for t in range(length if terminated else length // 2):
            later = [GAMMA ** (k - t) * rewards[k] for k in range(t, length)]
            errors.append(values[t] - sum(later) - GAMMA ** (length - t) * rest)
    columns = {"eval_return_mean": np.mean(returns), "eval_return_std": np.std(returns)}
    columns["eval_episodes"] = len(returns)
    if not stochastic:
        columns["q_bias"] = np.mean(errors)
    return columns


def bookkeeping(training, step, last_step):
    """What the training environment has seen until this step, and since the last row."""
    (began, _), (_, now) = training.times[0], training.times[step - 1]
    seconds = clock_at(now) - clock_at(began)
    columns = {"global_step": step, "seconds": round(seconds, 3), "sps": round(step / seconds, 1)}
    ends = np.cumsum([len(rewards) for rewards in training.rewards[:-1]])
    columns["episodes"] = int(np.sum(ends <= step))
    finished = []
    for rewards, end in zip(training.rewards, ends, strict=False):
        if last_step < end <= step:
            finished.append(rewards)
    if finished:
        columns["episodic_return"] = np.mean([sum(rewards) for rewards in finished])
        columns["episodic_length"] = np.mean([len(rewards) for rewards in finished])
    return columns


RUNS = {
    "sac_continuous": SAC,
    "sac_continuous-fixed": SAC | {"autotune": False},
    "sac_v1_value_net": {"alpha": 0.3, "reward_scale": 2.5, "policy_reg": 0.1},
    "td3_continuous": {"policy_noise": 0.6, "policy_frequency": 4},
    "td3_continuous-one_critic": {"double_q": False},
    "ddpg_continuous": {},
    # Without noise, so that a transition that is drawn twice in a batch has one error.
    "td3_per_continuous": {"policy_noise": 0.0, "policy_frequency": 4},
}


@pytest.mark.parametrize("case", RUNS)
def test_what_arrives_in_the_table(case, tmp_path, monkeypatch):
    """Every cell of every row: the last update before it, the episodes since the row before it.

    What only some updates compute stays until it is computed again. No column is left out.
    """
    script, settings = case.split("-")[0], RUNS[case]
    args, results, updates, evaluations = recorded_run(script, monkeypatch, tmp_path, **settings)
    with open(results["run_dir"] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["global_step"]) for row in rows]
    assert steps == [7, 14, 20, 21, 28, 35, 40, 42, 49, 56, 60]
    assert sorted(evaluations) == [20, 40, 60]
    training, last, filled = Diary.made[0], 0, set()
    lengths = [len(rewards) for rewards in training.rewards[:-1]]
    assert set(lengths) == {4, 6}
    for row, step in zip(rows, steps, strict=True):
        expected = bookkeeping(training, step, last)
        for number in sorted(updates):
            if number <= step:
                expected |= updates[number]
        if step in evaluations:
            expected |= played(evaluations[step], args)
        for name, cell in row.items():
            assert (cell != "") == (name in expected), f"{name} in step {step}"
            if cell != "":
                value = float(np.mean(expected[name]))
                close = pytest.approx(value, rel=2e-4, abs=2e-5)
                assert float(cell) == close, f"{name} in step {step}"
                filled.add(name)
        for name in ("global_step", "episodes", "seconds", "sps"):
            assert float(row[name]) == expected[name], name
        assert set(expected) <= set(row)
        last = step
    assert filled == set(rows[0]), "a column that was never filled was never recomputed"
    shown = {name: value for name, value in results.items() if name.startswith(("eval", "q_b"))}
    for name, value in shown.items():
        assert value == pytest.approx(float(rows[-1][name]), rel=1e-6), name


@pytest.mark.parametrize("script", OFF_POLICY)
def test_every_column_is_recomputed_by_one_of_these_runs(script):
    """A script without a case here would have columns that nobody looks at."""
    assert script in RUNS and script in CASES
