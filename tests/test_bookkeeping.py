"""What surrounds the loop, line by line: what is counted, kept, closed and gone on with.

The runs are of a walk in which everything is drawn or depends on the action, so that no two of its
numbers are alike. It notes what is done to it. Time is that of a clock that the walks drive.
"""

import csv
import importlib.machinery
import itertools
import json
import math
import random
import re
import shutil
import signal
import sys
import time
import types
import typing
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from helpers import FIRST, LAST, OFF_POLICY, main, metrics, read_checkpoint, run_dir, same, scripts
from processes import at_call

SAC, TD3, PPO = "sac_continuous", "td3_continuous", "ppo_continuous"
# The bookkeeping of the off-policy scripts is one text. PPO's is its own.
each_kind = scripts(SAC, PPO)
each_script = scripts(SAC, TD3, PPO)
off_policy = scripts(SAC, TD3)
ppo_only = scripts(PPO)

LIMIT = 7  # the longest episode
TICK = 0.25  # seconds of a step
EVALUATION = 1_000_000  # seed of the first episode of every evaluation


class Walk(gym.Env):
    """Where it starts and every push are drawn; it ends far from 0, or is cut after seven steps."""

    made: list["Walk"] = []

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(np.float32([-1]), np.float32([3]))
        self.seeds, self.episodes, self.closed = [], [], 0
        Walk.made.append(self)

    def observe(self):
        return np.array([self.place, len(self.episodes[-1])], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episodes.append([])
        self.place = float(self.np_random.uniform(-1, 1))
        self.running = True
        return self.observe(), {}

    def step(self, action):
        assert self.running, "a step after the end"
        assert self.action_space.contains(action)
        self.place += 0.3 * float(action[0] - 1) + float(self.np_random.normal(0, 0.3))
        reward = 1 - self.place**2
        self.episodes[-1].append(reward)
        terminated = abs(self.place) > 1.5
        self.running = not terminated and len(self.episodes[-1]) < LIMIT
        return self.observe(), reward, terminated, False, {}

    def close(self):
        self.closed += 1


worlds.register("Walk", Walk, LIMIT)
WALK = "test_bookkeeping:Walk-v0"


@pytest.fixture(autouse=True)
def walks(monkeypatch):
    """Those that this test makes: first a run's own, then that of its evaluations."""
    monkeypatch.setattr(Walk, "made", [])
    return Walk.made


@pytest.fixture
def clock(module, monkeypatch):
    """It goes on with every step of every walk. `began` is what it shows before the first."""
    clock = SimpleNamespace(began=5.0)
    steps = lambda: sum(len(e) for walk in Walk.made for e in walk.episodes)  # noqa: E731
    now = lambda: clock.began + TICK * steps()  # noqa: E731
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=now, time=time.time))
    return clock


def table(folder):
    """Rows of metrics.csv as numbers; an empty cell is None."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(cell) if cell else None for name, cell in row.items()} for row in rows]


# === Settings =====================================================================================
def numbers_with_limits(module):
    """(name, type, limits) of each setting that is a number; and what else to set with it."""
    for name, kind in typing.get_type_hints(module.Args, include_extras=True).items():
        if typing.get_origin(kind) is typing.Annotated:
            number, limits = typing.get_args(kind)
            others = {"buffer_size": 10**12} if hasattr(module.Args, "buffer_size") else {}
            if name == "buffer_size":
                others = {"batch_size": 1}
            yield name, number, limits, others


@each_script
def test_the_limits_themselves_are_allowed(module):
    """Each number may be its smallest and its largest value, and comes out as its plain type."""
    count = 0
    for name, number, limits, others in numbers_with_limits(module):
        for limit in limits:
            args = module.Args(**others | {name: np.float64(limit)})
            checked = getattr(module.check_args(args), name)
            assert checked == limit and type(checked) is number, name
            count += 1
    assert count > 20


@each_script
def test_what_lies_just_beyond_a_limit_is_refused(module):
    for name, number, (low, high), others in numbers_with_limits(module):
        step = 1 if number is int else 1e-6 * high
        for value in (low - step, high + step, math.nan):
            with pytest.raises(module.RunError, match=f"^--{name.replace('_', '-')} must be"):
                module.check_args(module.Args(**others | {name: value}))


@each_kind
def test_a_choice_that_does_not_exist(module):
    """Also one that PyTorch would take: nothing can be computed on the device `meta`."""
    for name, kind in typing.get_type_hints(module.Args).items():
        if typing.get_origin(kind) is typing.Literal:
            for choice in typing.get_args(kind):
                assert getattr(module.check_args(module.Args(**{name: choice})), name) == choice
            for wrong in ("meta", "", None):
                with pytest.raises(module.RunError, match=f"^--{name} must be one of"):
                    module.check_args(module.Args(**{name: wrong}))


@off_policy
def test_a_batch_may_be_as_large_as_the_buffer(module):
    args = module.Args(batch_size=20, buffer_size=20)
    assert module.check_args(args).batch_size == 20
    with pytest.raises(module.RunError, match="--batch-size 21 exceeds --buffer-size 20"):
        module.check_args(module.Args(batch_size=21, buffer_size=20))


@each_kind
def test_the_callers_settings_stay_as_they_are(module):
    """What the run uses is a copy, in plain Python."""
    given = {"seed": np.int64(3), "gamma": np.float32(0.5), "resume": Path("x"), "runs_dir": Path()}
    args = module.Args(**given)
    checked = module.check_args(args)
    for name, value in given.items():
        assert getattr(args, name) is value
        assert type(getattr(checked, name)) in (int, float, str)
        assert getattr(checked, name) == (str(value) if isinstance(value, Path) else value)


@each_kind
def test_a_path_may_be_a_path(tiny_run, tmp_path, capsys):
    """The checkpoint of such a run can be read, and gone on from instead of begun anew."""
    folder = tiny_run(WALK, total_timesteps=30, runs_dir=tmp_path / "runs")["run_dir"]
    again = tiny_run(WALK, resume=folder / "checkpoint.pt", runs_dir=tmp_path / "runs")
    assert "note: total_timesteps is now 60, not 30" in capsys.readouterr().out
    assert read_checkpoint(folder)["progress"]["step"] == 60
    assert again["run_dir"] == folder.resolve()


# === An environment as the networks see it ========================================================
class Told(gym.Env):
    """It returns what it is told, and keeps what it is given."""

    def __init__(self, acted, obs):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space, self.obs = acted, np.array(obs, float)
        self.reward, self.ends, self.given = 0.0, (False, False), []

    def reset(self, *, seed=None, options=None):
        self.given.append((seed, options))
        return self.obs, {}

    def step(self, action):
        self.given.append(action)
        return self.obs, self.reward, *self.ends, {}


def adapted(module, acted=None, obs=(1, 2, 3)):
    """An Adapter, and the environment inside."""
    inner = Told(acted or gym.spaces.Box(-1, 1, (1,), np.float32), obs)
    return module.Adapter(inner, "Told-v0"), inner


ZERO = np.zeros(1, np.float32)


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_one_number_that_is_not_finite_is_enough(bad, module):
    """At a reset and at a step; 1e39 is finite in float64, but not to the networks."""
    env, inner = adapted(module)
    assert env.reset()[0].tolist() == [1, 2, 3]
    inner.obs[1] = bad
    for use in (env.reset, lambda: env.step(ZERO)):
        with pytest.raises(module.RunError, match="Told-v0: an observation is not finite"):
            use()


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite(bad, module):
    env, inner = adapted(module)
    env.reset()
    inner.reward = bad
    with pytest.raises(module.RunError, match="Told-v0: a reward is not finite"):
        env.step(ZERO)


@each_kind
def test_what_a_step_returns_is_plain(module):
    """A reward is a Python number, an end a bool, and each end is its own."""
    env, inner = adapted(module)
    env.reset()
    for terminated, truncated in itertools.product([False, True], repeat=2):
        inner.reward, inner.ends = np.float32([2.5]), (np.bool_(terminated), int(truncated))
        obs, reward, *ends, _ = env.step(ZERO)
        assert type(reward) is float and reward == 2.5
        assert ends[0] is terminated and ends[1] is truncated
        assert obs.dtype == np.float32 and obs.shape == (3,)


@each_kind
def test_an_observation_is_a_copy(module):
    """What the environment does with its array afterwards does not reach the replay."""
    env, inner = adapted(module)
    first, _ = env.reset()
    inner.obs += 1
    second, *_ = env.step(ZERO)
    inner.obs += 1
    assert (first.tolist(), second.tolist()) == ([1, 2, 3], [2, 3, 4])


@each_kind
def test_a_seed_reaches_every_generator(module):
    """The environment's own, Python's and NumPy's; without a seed, none of them is touched."""
    env, inner = adapted(module)
    env.reset(seed=5, options={"x": 1})
    assert inner.given == [(5, {"x": 1})]
    assert random.random() == random.Random(5).random()
    assert np.random.random() == np.random.RandomState(5).random_sample()
    states = random.getstate(), np.random.get_state()
    env.reset()
    assert inner.given[-1] == (None, None)
    assert random.getstate() == states[0]
    same([*np.random.get_state()[1]], [*states[1][1]])


@each_kind
def test_whole_numbers_are_the_nearest(module):
    """-3.9 becomes -4: it is rounded, not cut to -3. Every whole number has its fair share."""
    env, inner = adapted(module, gym.spaces.Box(-4, 6, (1,), np.int64))
    env.reset()
    for action in (-0.98, -0.72, -0.3, 0.17, 0.55, 0.93):
        env.step(np.float32([action]))
    exact = [-3.9, -2.6, -0.5, 1.85, 3.75, 5.65]
    given = [int(action[0]) for action in inner.given[1:]]
    assert all(abs(a - b) <= 0.5 + 1e-6 for a, b in zip(given, exact, strict=True))


# === Evaluation ===================================================================================
def actor_of(module):
    """An actor with weights of its own, for the walk."""
    args = module.Args(hidden_dim=8, eval_episodes=8)
    torch.manual_seed(4)
    agent = module.Agent(2, 1, args)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.normal_(std=0.3)
    return agent.actor, args


@each_script
def test_evaluation_by_hand(module):
    """Eight episodes, step by step: the mean action on what is seen, cut at the time limit."""
    actor, args = actor_of(module)
    env = module.make_env(WALK)
    trajectories = module.evaluate(actor, env, args)
    assert len(trajectories) == 8
    for number, trajectory in enumerate(trajectories):
        world = Walk()
        obs, _ = world.reset(seed=EVALUATION + number)
        for step in trajectory:
            with torch.no_grad():
                action = actor(torch.from_numpy(obs)).numpy()
            scaled = (-1 + 2 * (action.astype(float) + 1)).astype(np.float32)
            after, reward, terminated, _, _ = world.step(scaled)
            np.testing.assert_allclose(step[0], obs, rtol=1e-5)
            np.testing.assert_allclose(step[1], action, rtol=1e-5)
            assert step[2] == pytest.approx(reward, rel=1e-4)
            np.testing.assert_allclose(step[3], after, rtol=1e-5)
            assert step[4] == terminated
            obs = after
        assert not world.running
    assert {trajectory[-1][4] for trajectory in trajectories} == {False, True}, "ends of both kinds"


@each_kind
def test_evaluation_leaves_all_random_numbers_alone(module, monkeypatch):
    """Also where the environment draws from the generators that all code shares."""

    def noisy(self, action):
        noise = random.random() + np.random.random() + torch.rand(()).item()
        obs, reward, *rest = step(self, action)
        return obs, reward + noise, *rest

    step = Walk.step
    monkeypatch.setattr(Walk, "step", noisy)
    actor, args = actor_of(module)
    env = module.make_env(WALK)
    before = random.getstate(), [*np.random.get_state()[1]], torch.get_rng_state()
    module.evaluate(actor, env, args)
    assert random.getstate() == before[0]
    same([*np.random.get_state()[1]], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


class Still(torch.nn.Module):
    """An actor that does nothing, quickly."""

    def forward(self, obs):
        return torch.zeros(2)


worlds.register("EndsAt10000", worlds.Corridor, None, ends=10_000)
worlds.register("EndsAt10002", worlds.Corridor, None, ends=10_002)
worlds.register("CutAt10002", worlds.Corridor, 10_002)


@pytest.mark.slow_but("ppo_continuous")
@scripts(SAC, PPO)
@pytest.mark.parametrize("name, length", [("EndsAt10000", 10_000), ("CutAt10002", 10_002)])
def test_a_long_episode_is_evaluated_to_its_end(name, length, module):
    """Ten thousand steps are no reason to complain, nor are more if there is a time limit."""
    args = module.Args(eval_episodes=1)
    (trajectory,) = module.evaluate(Still(), module.make_env(f"{name}-v0"), args)
    assert len(trajectory) == length


@scripts(SAC, PPO)
def test_an_episode_that_may_have_no_end(module):
    """Without a limit, more than ten thousand steps are too many."""
    args = module.Args(eval_episodes=1)
    with pytest.raises(module.RunError, match="no end after 10000 steps: set --max-episode-steps"):
        module.evaluate(Still(), module.make_env("EndsAt10002-v0"), args)


@each_script
def test_every_episode_has_a_start_of_its_own(tiny_run, walks, script):
    """Not that of another episode, nor of an evaluation, nor of a run with another seed."""
    seeds = []
    for seed in (1, 2):
        walks.clear()
        tiny_run(WALK, seed=seed, eval_frequency=30, eval_episodes=2, **more_worlds(script))
        *training, evaluation = walks
        drawn = [seed for walk in training for seed in walk.seeds if seed is not None]
        assert len(drawn) == (3 if script == PPO else len(training[0].episodes))
        seeds.append(drawn)
        first = [EVALUATION, EVALUATION + 1]
        assert evaluation.seeds == [EVALUATION, *first, *first]
        assert all(len(walk.episodes) >= 3 for walk in training)
    both = [*seeds[0], *seeds[1]]
    assert len(set(both)) == len(both)


def more_worlds(script):
    return {"num_envs": 3, "num_steps": 10} if script == PPO else {}


@each_kind
def test_all_generators_begin_with_the_seed(tiny_run, walks, monkeypatch):
    """Before the environment is made, which may draw from any of them."""
    drawn, init = [], Walk.__init__

    def noted(self):
        init(self)
        drawn.append((random.random(), np.random.random(), torch.rand(()).item()))

    monkeypatch.setattr(Walk, "__init__", noted)
    for seed in (7, 8):
        torch.manual_seed(0)
        tiny_run(WALK, seed=seed, total_timesteps=10)
        generator = torch.Generator().manual_seed(seed)
        expected = random.Random(seed).random(), np.random.RandomState(seed).random_sample()
        assert drawn[0] == (*expected, torch.rand((), generator=generator).item())
        drawn.clear()


# === Columns ======================================================================================
def ended_in(rewards, first, last):
    """(return, length) of the episodes that end after step `first`, and not after `last`."""
    ended, step = [], 0
    for episode in rewards:
        step += len(episode)
        if first < step <= last:
            ended.append((sum(episode), len(episode)))
    return ended


@each_kind
def test_the_header(tiny_run, script):
    """The columns that every script has, in this order, then its own as they come; whole rows."""
    header, rows = table_as_it_is(tiny_run(WALK)["run_dir"])
    assert header[:9] == [*FIRST, *LAST] and len(header) > 12
    assert len(set(header)) == len(header)
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows] == ["10", "20", "30", "40", "50", "60"]


@each_kind
def test_a_column_that_comes_late(tiny_run, module, monkeypatch):
    """It is the last one, empty in the rows before."""
    original, numbers = module.update, itertools.count(1)

    def update(*args):
        late = {"late": torch.tensor(7.0)} if next(numbers) > 3 else {}
        return original(*args) | late

    monkeypatch.setattr(module, "update", update)
    rare = {"updates_per_step": 0.1} if hasattr(module.Args, "updates_per_step") else {}
    header, rows = table_as_it_is(tiny_run(WALK, **rare)["run_dir"])
    late = [row[-1] for row in rows]
    assert header[-1] == "late" and {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows] == ["10", "20", "30", "40", "50", "60"]
    assert late[:3] == ["", "", ""] and late[-1] == "7.0"


def table_as_it_is(folder):
    with open(folder / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@off_policy
def test_every_column_of_the_bookkeeping(tiny_run, walks, clock):
    """Recomputed from what the walks saw: steps, time, episodes since the last row, evaluations."""
    settings = {"log_frequency": 9, "eval_frequency": 12, "eval_episodes": 3}
    rows = table(tiny_run(WALK, total_timesteps=50, **settings)["run_dir"])
    own, other = walks
    evaluations = iter(other.episodes[1:])  # the first of all is played before the run begins
    before, evaluated = 0, 0
    assert [row["global_step"] for row in rows] == [9, 12, 18, 24, 27, 36, 45, 48, 50]
    finished = own.episodes[:-1]
    for row in rows:
        step = int(row["global_step"])
        assert row["seconds"] == pytest.approx(TICK * (step + evaluated), abs=1e-3)
        assert row["sps"] == pytest.approx(step / row["seconds"], abs=0.051)
        assert row["episodes"] == len(ended_in(finished, 0, step))
        ended = ended_in(finished, before, step)
        for number, name in enumerate(["episodic_return", "episodic_length"]):
            expected = np.mean([pair[number] for pair in ended]) if ended else None
            assert row[name] == (expected and pytest.approx(expected)), (step, name)
        cells = [row[name] for name in ("eval_return_mean", "eval_return_std", "eval_episodes")]
        if step % 12 == 0 or step == 50:
            played = list(itertools.islice(evaluations, 3))
            returns = [sum(episode) for episode in played]
            assert cells == pytest.approx([np.mean(returns), np.std(returns), 3])
            evaluated += sum(len(episode) for episode in played)
        else:
            assert cells == [None] * 3
        before = step
    assert any(len(ended_in(finished, a, a + 9)) > 1 for a in range(0, 45, 9))
    assert next(evaluations, None) is None


@off_policy
def test_cells_of_an_update_are_means_of_the_last_one(tiny_run, module, monkeypatch):
    """Of its batch; where an update is rare, those of the last one before the row stay."""
    original, steps, returned = module.update, itertools.count(1), {}

    def update(*args):
        metrics = original(*args)
        number = next(steps)
        returned[number] = {name: value.clone() for name, value in metrics.items()}
        return metrics

    monkeypatch.setattr(module, "update", update)
    rows = table(tiny_run(WALK, log_frequency=3, updates_per_step=0.5)["run_dir"])
    checked = 0
    for row in rows:
        last = {}
        for number in range(1, int(0.5 * (row["global_step"] - 20)) + 1):
            last |= returned[number]
        for name, value in last.items():
            assert row[name] == pytest.approx(value.double().mean().item(), rel=1e-5), name
            checked += 1
    assert checked > 50 and len(returned) == 20


@each_kind
def test_the_last_value_of_each_column_is_returned(tiny_run, script, capsys):
    """Also of one that the last row leaves empty, as no episode has ended since the one before."""
    settings = {"eval_episodes": 0, "log_frequency": 1, "total_timesteps": 61}
    if script == PPO:
        settings |= {"num_steps": 2, "num_minibatches": 1}
    results = tiny_run("worlds:Regulator-v0", **settings)  # an episode ends after step 60
    *_, line = capsys.readouterr().out.splitlines()
    rows = table(results["run_dir"])
    assert rows[-1]["episodic_return"] is None
    while rows[-1]["episodic_return"] is None:
        rows.pop()
    for name in ("episodes", "episodic_return", "episodic_length"):
        assert results[name] == rows[-1][name]
    rows = table(results["run_dir"])
    assert results["global_step"] == rows[-1]["global_step"]
    assert results["seconds"] == rows[-1]["seconds"]
    shown = {name: value for name, value in results.items() if name not in ("agent", "actor")}
    assert line == "final " + " ".join(f"{name}={value}" for name, value in shown.items())
    expected = ["episodes", "episodic_return", "episodic_length", "global_step", "seconds"]
    assert [*shown] == [*expected, "run_dir"]


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite(bad, tiny_run, module, monkeypatch):
    """It is named, and its row is not written."""
    original = module.update

    def update(*args):
        return original(*args) | {"mine": torch.tensor([1.0, bad])}

    monkeypatch.setattr(module, "update", update)
    with pytest.raises(module.RunError, match=r"^step \d+: mine is not finite$"):
        tiny_run(WALK)


@each_kind
def test_equal_evaluations_keep_the_first_networks(tiny_run, module, monkeypatch):
    """Better is what replaces best_model.pt, not as good."""
    written = []
    original = module.write_file

    def write_file(path, content):
        written.append(path.name)
        original(path, content)

    monkeypatch.setattr(module, "write_file", write_file)
    tiny_run("worlds:Endless-v0", eval_frequency=10)  # each evaluation returns 5
    assert written.count("best_model.pt") == 1


# === Files ========================================================================================
@each_kind
def test_a_file_is_whole_on_the_disk_before_it_has_its_name(module, tmp_path, monkeypatch):
    """All of it has been handed to the system, and then the system is asked to write it."""
    events = []
    fsync, replace = module.os.fsync, module.os.replace

    def noted_fsync(number):
        events.append(("fsync", module.os.fstat(number).st_size))
        fsync(number)

    def noted_replace(old, new):
        events.append(("replace", Path(old).stat().st_size))
        replace(old, new)

    monkeypatch.setattr(module.os, "fsync", noted_fsync)
    monkeypatch.setattr(module.os, "replace", noted_replace)
    path = tmp_path / "model.pt"
    path.write_text("the old one")
    module.write_file(path, {"numbers": torch.arange(1000)})
    size = path.stat().st_size
    assert events == [("fsync", size), ("replace", size)]
    assert [*tmp_path.iterdir()] == [path]
    assert torch.equal(torch.load(path)["numbers"], torch.arange(1000))


@each_kind
@pytest.mark.parametrize("what", [OSError("full"), RuntimeError("half")])
def test_a_file_that_cannot_be_written(what, module, tmp_path, monkeypatch):
    """One message; the old file stays, and nothing else is left."""

    def save(content, file):
        file.write(b"half")
        raise what

    monkeypatch.setattr(torch, "save", save)
    path = tmp_path / "model.pt"
    path.write_text("the old one")
    with pytest.raises(module.RunError, match=f"cannot write {re.escape(str(path))}, the last"):
        module.write_file(path, {})
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "the old one"


@each_kind
def test_a_checkpoint_when_one_is_due_and_not_else(tiny_run, module, monkeypatch):
    """At each multiple, and where the run ends; model.pt comes with it."""
    written, original = [], module.write_file

    def write_file(path, content):
        step = content["progress"]["step"] if "progress" in content else None
        written.append((path.name, step))
        original(path, content)

    monkeypatch.setattr(module, "write_file", write_file)
    tiny_run(WALK, checkpoint_frequency=20, total_timesteps=70, eval_episodes=0)
    names = [name for name, _ in written]
    assert names == ["model.pt", "checkpoint.pt"] * 4
    assert [step for _, step in written if step] == [20, 40, 60, 70]


@off_policy
def test_a_buffer_beyond_the_memory_is_a_message(module, tmp_path, monkeypatch):
    """And no folder."""

    def full(*_):
        raise MemoryError("Unable to allocate 28 TiB")

    monkeypatch.setattr(module.ReplayBuffer, "__init__", full)
    with pytest.raises(SystemExit) as left:
        module.main([f"--env-id={WALK}", f"--runs-dir={tmp_path / 'runs'}"])
    assert left.value.code == "error: Unable to allocate 28 TiB"
    assert not (tmp_path / "runs").exists()


# === Opened and closed ============================================================================
@each_script
@pytest.mark.parametrize("how", ["whole", "broken", "refused"])
def test_every_environment_is_closed(how, tiny_run, module, walks, script, monkeypatch):
    """After the end, after a fault, and where the run is refused while it opens."""
    settings = {"eval_frequency": 30} | more_worlds(script)
    number = 4 if script == PPO else 2
    if how == "whole":
        tiny_run(WALK, **settings)
    elif how == "broken":
        at_call(monkeypatch, module.Run, "record", 2, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_run(WALK, **settings)
    else:
        monkeypatch.setattr(module, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(module.RunError, match="evaluation fails"):
            tiny_run(WALK, **settings)
    assert len(walks) == number
    assert all(walk.closed for walk in walks)


@each_kind
def test_a_close_that_fails_keeps_none_of_the_others_open(tiny_run, walks, monkeypatch):
    def close(self):
        self.closed += 1
        raise ConnectionError("it is gone already")

    monkeypatch.setattr(Walk, "close", close)
    assert tiny_run(WALK, eval_frequency=30)["global_step"] == 60
    assert len(walks) == 2 and all(walk.closed for walk in walks)


@each_kind
def test_a_run_to_the_end_was_not_stopped(tiny_run, capsys):
    """Its last line is that of its results."""
    tiny_run(WALK)
    out = capsys.readouterr().out
    assert "stopped at" not in out and out.splitlines()[-1].startswith("final ")


@pytest.fixture
def wandb(monkeypatch):
    """Instead of Weights & Biases: what it is told, in `calls`."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def init(**options):
        fake.calls.append(("init", options))
        log = lambda row, step: fake.calls.append(("log", step, dict(row)))  # noqa: E731
        finish = lambda: fake.calls.append(("finish",))  # noqa: E731
        return SimpleNamespace(log=log, finish=finish)

    fake.init = init
    return fake


@each_kind
def test_what_is_tracked(tiny_run, module, wandb):
    """Every row at its step, under the folder's name; a resumed run goes on with the same one."""
    folder = tiny_run(WALK, total_timesteps=30, track=True)["run_dir"]
    assert read_checkpoint(folder)["args"]["track"] is True
    first, *logs, last = wandb.calls
    about = json.loads((folder / "args.json").read_text())
    assert first[0] == "init"
    options = {"id": folder.name, "dir": folder, "config": about, "resume": "allow"}
    assert first[1] == options
    assert last == ("finish",)
    rows = table(folder)
    assert [(kind, step) for kind, step, _ in logs] == [("log", row["global_step"]) for row in rows]
    for (_, _, told), row in zip(logs, rows, strict=True):
        assert told == {name: value for name, value in row.items() if value is not None}

    wandb.calls.clear()
    module.resume(str(folder / "checkpoint.pt"), total_timesteps=60)
    first, *logs, last = wandb.calls
    assert (first[1]["id"], first[1]["resume"]) == (folder.name, "allow")
    assert [step for _, step, _ in logs] == [30, 40, 50, 60] and last == ("finish",)


@each_kind
def test_tracking_ends_where_a_run_breaks(tiny_run, module, wandb, monkeypatch):
    at_call(monkeypatch, module.Run, "record", 2, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_run(WALK, track=True)
    assert [call[0] for call in wandb.calls] == ["init", "finish"]


# === Signals ======================================================================================
@off_policy
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_an_update_waits_for_the_step(name, tiny_run, module, tmp_path, monkeypatch):
    """Both updates of the step are made. The next signal would be the caller's own."""
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    number, handlers, taken = getattr(signal, name), [], []
    before = signal.signal(number, lambda *_: taken.append(1))
    own = signal.getsignal(number)
    original = module.update

    def update(*args):
        handlers.append(signal.getsignal(number))
        if len(handlers) == 7:
            signal.raise_signal(number)
            assert signal.getsignal(number) is own
        return original(*args)

    monkeypatch.setattr(module, "update", update)
    try:
        with pytest.raises(KeyboardInterrupt):
            tiny_run(WALK, updates_per_step=2, runs_dir=tmp_path)
        assert signal.getsignal(number) is own and not taken
    finally:
        signal.signal(number, before)
    assert len(handlers) == 8 and own not in handlers[:7]
    content = read_checkpoint(run_dir(tmp_path))
    assert content["progress"]["step"] == 24
    assert content["parts"]["agent"]["q_optimizer.t"] == 8


@ppo_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_ppos_update_goes_back_to_the_iteration_before(
    name, tiny_run, module, tmp_path, monkeypatch
):
    """At once. What the checkpoint holds is as it was before the update had begun."""
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    number, seen = getattr(signal, name), []
    original = module.gradient_step

    def gradient_step(*args):
        original(*args)
        seen.append(1)
        if len(seen) == 7:  # the first of the fourth iteration
            signal.raise_signal(number)

    kept = []
    whole = module.Run.mark_whole

    def mark_whole(run):
        whole(run)
        kept.append({name: value.clone() for name, value in run.agent.state_dict().items()})

    monkeypatch.setattr(module, "gradient_step", gradient_step)
    monkeypatch.setattr(module.Run, "mark_whole", mark_whole)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(WALK, runs_dir=tmp_path)
    content = read_checkpoint(run_dir(tmp_path))
    assert len(seen) == 7 and content["progress"]["step"] == 30
    same(dict(content["parts"]["agent"]), kept[-1])
    model = torch.load(run_dir(tmp_path) / "model.pt", weights_only=True)
    same(dict(model), kept[-1])


@each_kind
def test_a_run_of_the_command_line_that_is_stopped(script, module, tmp_path, monkeypatch):
    """It exits with 1, and what went before is in the file."""
    flags = ["--total-timesteps=60", "--hidden-dim=8", "--eval-frequency=0", "--eval-episodes=1"]
    flags += ["--num-steps=10", "--num-minibatches=2"] if script == PPO else ["--batch-size=8"]
    stop = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
    at_call(monkeypatch, Walk, "step", 40, stop)
    with pytest.raises(SystemExit) as left:
        main(script, *flags, "--env-id", WALK, "--runs-dir", tmp_path)
    assert left.value.code == 1
    assert 20 <= read_checkpoint(run_dir(tmp_path))["progress"]["step"] < 40


# === Gone on with =================================================================================
# Stopped in the middle of everything: of an episode, of a row with episodes that wait for it, after
# a best evaluation, after updates whose numbers are not logged yet, and with a full ring.
HALF = {"env_id": WALK, "num_threads": 1, "hidden_dim": 8, "eval_episodes": 2, "log_frequency": 13}
HALF |= {"total_timesteps": 60, "buffer_size": 32, "learning_starts": 20, "batch_size": 8}
HALF |= {"updates_per_step": 0.25, "eval_frequency": 14, "checkpoint_frequency": 0, "seed": 7}
HALF = dict.fromkeys(OFF_POLICY, HALF)
HALF["td3_per_continuous"] = HALF[SAC] | {"per_beta": 1.0}
HALF[PPO] = {"env_id": WALK, "num_threads": 1, "hidden_dim": 8, "eval_episodes": 2}
HALF[PPO] |= {"total_timesteps": 60, "num_envs": 2, "num_steps": 5, "num_minibatches": 2}
HALF[PPO] |= {"update_epochs": 2, "log_frequency": 30, "eval_frequency": 20, "seed": 1}
HALF[PPO] |= {"surrogate": "kl-penalty", "checkpoint_frequency": 0}
STOP = dict.fromkeys(OFF_POLICY, 38) | {PPO: 40}


def whole_run(module, script, place):
    return module.train(module.Args(**HALF[script], runs_dir=str(place)))["run_dir"]


def half_a_run(module, script, place):
    """Its folder. The step after STOP is half done: acted and stored, but not counted."""
    record = STOP[script] + 1 if script != PPO else STOP[script] // 2 + 3
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, module.Run, "record", record, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            whole_run(module, script, place)
    return run_dir(place)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A function of a script: half a run of it, which is made once."""
    made = {}

    def half(script):
        if script not in made:
            module = importlib.import_module(script)
            made[script] = half_a_run(module, script, tmp_path_factory.mktemp("half"))
        return made[script]

    return half


@pytest.fixture
def half(halves, script, tmp_path):
    """A copy of the folder of half a run."""
    return shutil.copytree(halves(script), tmp_path / "half")


def outcome(folder):
    """All that a run comes to but for the clock."""
    content = read_checkpoint(folder)
    for row in [content["progress"], *content["rows"]]:
        row.pop("seconds")
        row.pop("sps", None)
    del content["args"]
    best = torch.load(folder / "best_model.pt", weights_only=True)
    return content | {"best": dict(best), "table": metrics(folder)}


@scripts(*OFF_POLICY)
def test_a_resumed_run_is_the_whole_one(script, module, half, tmp_path, capsys):
    """Stopped in the middle of everything it comes to the same, to the bit."""
    whole = whole_run(module, script, tmp_path / "whole")
    stopped = read_checkpoint(half)
    progress = stopped["progress"]
    # It is in the middle of everything.
    assert progress["step"] == 38 and len(stopped["parts"]["replay"]["table"]) == 32
    assert progress["episode_length"] > 0 and progress["episode_return"] != 0
    assert progress["ended"] and progress["metrics"] and progress["episodes"] > 3
    assert stopped["parts"]["agent"]["q_optimizer.t"] == 4
    assert metrics(half)[-1]["global_step"] == "28"
    best = max(float(row["eval_return_mean"] or -math.inf) for row in metrics(half))
    assert progress["best_return"] == best
    capsys.readouterr()
    module.resume(str(half / "checkpoint.pt"))
    assert "note" not in capsys.readouterr().out
    same(outcome(half), outcome(whole))
    assert [row["global_step"] for row in metrics(half)] == "13 14 26 28 39 42 52 56 60".split()


CHANGES = {
    "progress/metrics": lambda old: {name: value + 1 for name, value in old.items()},
    "progress/episodes": lambda old: old + 7,
    "progress/ended": lambda old: [(total + 100.0, length + 7) for total, length in old],
    "progress/best_return": lambda old: 1e9,
    "progress/generators": lambda old: [torch.Generator().manual_seed(5).get_state()],
    "rows": lambda old: [row | {"episodes": row["episodes"] + 100} for row in old],
}
OF_AN_EPISODE = {
    "progress/episode_seed": lambda old: old + 1,
    "progress/episode_return": lambda old: old + 100.0,
    "progress/episode_length": lambda old: old - 1,
    "progress/first_obs": lambda old: old + 1,
}


def with_change(folder, place, change):
    """Write something else into this place of the checkpoint."""
    content = read_checkpoint(folder)
    inner, (*path, last) = content, place.split("/")
    for name in path:
        inner = inner[name]
    inner[last] = change(inner[last])
    torch.save(content, folder / "checkpoint.pt")


@pytest.fixture(scope="module")
def gone_on(halves, tmp_path_factory):
    """A function of a script: what half a run comes to if nothing is changed."""
    made = {}

    def outcome_of(script):
        if script not in made:
            folder = shutil.copytree(halves(script), tmp_path_factory.mktemp("on") / "half")
            importlib.import_module(script).resume(str(folder / "checkpoint.pt"))
            made[script] = outcome(folder)
        return made[script]

    return outcome_of


def assert_matters(module, script, folder, gone_on):
    """The run goes on from the changed checkpoint to another outcome."""
    module.resume(str(folder / "checkpoint.pt"))
    with pytest.raises(AssertionError):
        same(outcome(folder), gone_on(script))


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each_script
@pytest.mark.parametrize("place", [*CHANGES, *OF_AN_EPISODE])
def test_each_entry_of_a_checkpoint_matters(place, script, module, half, gone_on):
    """Changed in the file, the run that goes on from it is another one."""
    if script == PPO and place in OF_AN_EPISODE:
        pytest.skip("it begins new episodes")
    with_change(half, place, (CHANGES | OF_AN_EPISODE)[place])
    assert_matters(module, script, half, gone_on)


LEARNT = {SAC: "actor q1 q2 q1_target q2_target log_alpha actor_optimizer q_optimizer"}
LEARNT[SAC] += " alpha_optimizer"
LEARNT[PPO] = "actor actor.moments critic return_moments kl_coef optimizer"


def part_of_agent(name):
    """`q1`, `actor.moments`, or for an optimizer `q_optimizer.m`: which of its numbers."""
    return re.match(r"actor\.moments|\w*optimizer\.[mvt]|\w+", name)[0]


@each_kind
@pytest.mark.slow
def test_each_part_of_the_agent_matters(script, module, half, gone_on, tmp_path):
    """Networks, slow copies, temperature or penalty, moments of Adam and of observations."""
    weights = read_checkpoint(half)["parts"]["agent"]
    parts = {part_of_agent(name) for name in weights}
    expected = set()
    for name in LEARNT[script].split():
        expected |= {f"{name}.{x}" for x in "mvt"} if "optimizer" in name else {name}
    assert parts == expected
    for part in sorted(parts):

        def change(agent, part=part):
            mine = {name for name in agent if part_of_agent(name) == part}
            return {name: x + 0.25 if name in mine else x for name, x in agent.items()}

        folder = shutil.copytree(half, tmp_path / part)
        with_change(folder, "parts/agent", change)
        assert_matters(module, script, folder, gone_on)


@off_policy
def test_the_replay_of_a_checkpoint_matters(script, module, half, gone_on):
    """Its rewards, but for those of the running episode, by which it is put back."""
    length = read_checkpoint(half)["progress"]["episode_length"]
    running = {step % 32 for step in range(38 - length, 38)}

    def change(table):
        others = [row for row in range(32) if row not in running]
        table[others, 3] += 1  # two observations and an action come before the reward
        return table

    with_change(half, "parts/replay/table", change)
    module.resume(str(half / "checkpoint.pt"))
    agents = outcome(half)["parts"]["agent"], gone_on(script)["parts"]["agent"]
    with pytest.raises(AssertionError):
        same(*(agent["q1.net.0.weight"] for agent in agents))


@off_policy
@pytest.mark.parametrize("place", ["progress/step", "parts/replay/added"])
def test_step_and_replay_belong_together(place, module, half):
    with_change(half, place, lambda old: old + 1)
    with pytest.raises(module.RunError, match="does not fit.*it is of step"):
        module.resume(str(half / "checkpoint.pt"))


@each_kind
def test_time_goes_on_where_it_stopped(module, half, clock, walks):
    """That of the runs before is added, that in between is not."""
    before = read_checkpoint(half)["progress"]["seconds"]
    with_change(half, "progress/seconds", lambda old: 1000.0)
    clock.began = 1e6
    rows = table(module.resume(str(half / "checkpoint.pt"))["run_dir"])
    played = TICK * sum(len(episode) for walk in walks for episode in walk.episodes)
    assert before < 1000 < rows[-1]["seconds"] < 1000 + played
    assert rows[-1]["seconds"] > 1000 + TICK * 20 / 2
    step = rows[-1]["global_step"]
    assert rows[-1]["sps"] == pytest.approx(step / rows[-1]["seconds"], abs=0.051)


@each_kind
def test_best_networks_of_a_run_before(script, module, half):
    """They stay where no evaluation since is better, and are replaced where one is."""
    torch.save({"the": torch.ones(1)}, half / "best_model.pt")
    with_change(half, "progress/best_return", lambda old: 1e9)
    copy = shutil.copytree(half, half.with_name("copy"))
    module.resume(str(half / "checkpoint.pt"))
    assert [*torch.load(half / "best_model.pt")] == ["the"]
    assert read_checkpoint(half)["progress"]["best_return"] == 1e9
    with_change(copy, "progress/best_return", lambda old: -1e9)
    module.resume(str(copy / "checkpoint.pt"))
    assert [*torch.load(copy / "best_model.pt")] != ["the"]
    evaluated = [row["eval_return_mean"] for row in table(copy) if row["eval_return_mean"]]
    since = evaluated[2 if script != PPO else 1 : -1]  # a checkpoint comes before its evaluation
    assert read_checkpoint(copy)["progress"]["best_return"] == pytest.approx(max(since))


@off_policy
def test_an_episode_that_cannot_be_put_back_counts_for_nothing(module, walks, tmp_path, capsys):
    """Its steps are not added to those of the episode that is begun in its place."""
    script = module.__name__
    settings = HALF[script] | {"log_frequency": 1, "eval_frequency": 0}
    folder = module.train(
        module.Args(**settings | {"total_timesteps": 38}, runs_dir=str(tmp_path))
    )["run_dir"]
    assert read_checkpoint(folder)["progress"]["episode_length"] > 1
    walks.clear()
    reset = Walk.reset

    def elsewhere(self, **kwargs):
        obs, info = reset(self, **kwargs)
        self.place += 0.125
        return self.observe(), info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Walk, "reset", elsewhere)
        module.resume(str(folder / "checkpoint.pt"), total_timesteps=60)
    assert "cannot be put back exactly" in capsys.readouterr().out
    (walk,) = walks
    # One for a try-out of evaluation, one that was not as before; two evaluations at the end.
    played = walk.episodes[2:-2]
    rows = [row for row in table(folder) if row["global_step"] > 38]
    shown = [(row["episodic_return"], row["episodic_length"]) for row in rows]
    ended = ended_in(played[:-1], 0, 22)
    assert [pair for pair in shown if pair[0] is not None] == [pytest.approx(e) for e in ended]
    assert len(ended) > 1


@ppo_only
def test_ppo_goes_on_with_the_agent_that_it_had(module, half, tmp_path, monkeypatch):
    """All of its numbers, saved or not, and the learning rate are as in the run that went on."""
    seen = []
    collect = module.collect

    def watched(agent, *rest):
        numbers = dict(agent.named_parameters()) | dict(agent.named_buffers())
        numbers = {name: value.detach().clone() for name, value in numbers.items()}
        del numbers["return_before"]  # of episodes that are not gone on with
        others = {}
        for name, child in agent.named_modules():
            plain = {k: v for k, v in vars(child).items() if isinstance(v, int | float)}
            others |= {f"{name}.{k}": v for k, v in plain.items()}
        seen.append(numbers | others)
        return collect(agent, *rest)

    monkeypatch.setattr(module, "collect", watched)
    whole_run(module, PPO, tmp_path / "whole")
    expected = seen[4]  # the fifth iteration, after 40 steps
    seen.clear()
    module.resume(str(half / "checkpoint.pt"))
    assert len(seen) == 2
    same(seen[0], expected)


@ppo_only
def test_ppos_new_episodes_are_new(module, half, walks):
    """They begin elsewhere than those at the run's beginning, and are counted from 0."""
    module.resume(str(half / "checkpoint.pt"))
    resumed = [walk.seeds[0] for walk in walks[:2]]
    walks.clear()
    whole_run(module, PPO, half.with_name("whole"))
    assert len({*resumed, *(walk.seeds[0] for walk in walks[:2])}) == 4


@each_kind
def test_a_row_that_was_written_can_be_written_again(script, module, half, tmp_path):
    """Stopped in the step after it: the checkpoint still has the episodes that are its mean."""
    folder = half  # PPO's run was stopped right after a row
    if script != PPO:
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, module.Run, "record", 40, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                whole_run(module, script, tmp_path / "runs")
        folder = run_dir(tmp_path / "runs")
    row, progress = table(folder)[-1], read_checkpoint(folder)["progress"]
    assert row["global_step"] == progress["step"] == (40 if script == PPO else 39)
    expected = row["episodic_return"], row["episodic_length"]
    assert np.mean(progress["ended"], axis=0) == pytest.approx(expected)
    module.resume(str(folder / "checkpoint.pt"))
    steps = [row["global_step"] for row in metrics(folder)]
    assert len(set(steps)) == len(steps) and steps[-1] == "60"
    if script != PPO:  # whose environments begin anew
        same(outcome(folder), outcome(whole_run(module, script, tmp_path / "whole")))


@each_script
def test_no_row_is_lost_and_none_comes_twice(script, module, half):
    """Also where the table had more rows than the checkpoint, or was cut short."""
    steps = "13 14 26 28 39 42 52 56 60" if script != PPO else "20 30 40 60"
    for damage in (lambda text: text, lambda text: text + text[-30:], lambda text: text[:60]):
        copy = shutil.copytree(half, half.with_name("copy"))
        path = copy / "metrics.csv"
        path.write_text(damage(path.read_text()))
        module.resume(str(copy / "checkpoint.pt"))
        assert [row["global_step"] for row in metrics(copy)] == steps.split()
        assert [row["global_step"] for row in read_checkpoint(copy)["rows"]] == [
            int(step) for step in steps.split()[:-1]
        ]
        shutil.rmtree(copy)


@each_kind
def test_a_table_is_that_of_the_run_from_its_first_step_on(script, module, half, monkeypatch):
    """Rows that a resumed run has not come to again are gone, and a new one has its header."""
    steps = 39 if script != PPO else 40
    seen = []
    names = {SAC: "sample", PPO: "collect"}
    owner = module.ReplayBuffer if script != PPO else module

    def look(*_):
        seen.extend(metrics(half))

    with (half / "metrics.csv").open("a") as file:
        file.write(f"{10**6}" + "," * 20 + "\n")
    at_call(monkeypatch, owner, names[script], 1, look)
    module.resume(str(half / "checkpoint.pt"))
    assert seen and max(int(row["global_step"]) for row in seen) <= steps

    at_call(monkeypatch, module.Run, "record", 1, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        whole_run(module, script, half.with_name("new"))
    header, rows = table_as_it_is(run_dir(half.with_name("new")))
    assert header == [*FIRST, *LAST] and rows == []


@each_kind
def test_a_fault_in_the_first_step_leaves_a_checkpoint_of_none(
    script, module, tmp_path, monkeypatch, capsys
):
    """Of step 0, from which the run goes on as any other."""
    with monkeypatch.context() as patch:
        at_call(patch, module.Run, "record", 1, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            whole_run(module, script, tmp_path / "stopped")
    folder = run_dir(tmp_path / "stopped")
    assert f"stopped at step 0: --resume {folder}" in capsys.readouterr().out
    assert read_checkpoint(folder)["progress"]["step"] == 0
    module.resume(str(folder / "checkpoint.pt"))
    if script != PPO:
        same(outcome(folder), outcome(whole_run(module, script, tmp_path / "whole")))
    assert metrics(folder)[-1]["global_step"] == "60"


@each_kind
def test_a_finished_run_returns_its_results_again(script, module, tmp_path):
    """Its evaluation is made once more, and the last row stands once."""
    args = module.Args(**HALF[script] | {"total_timesteps": 40}, runs_dir=str(tmp_path))
    first = module.train(args)
    rows = metrics(first["run_dir"])
    again = module.resume(str(first["run_dir"] / "checkpoint.pt"))
    for name in ("eval_return_mean", "eval_return_std", "eval_episodes", "global_step"):
        assert first[name] == again[name]
    assert metrics(first["run_dir"]) == rows


# === --compile ====================================================================================
@each_kind
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.slow
def test_what_is_asked_of_the_compiler(device, module, monkeypatch):
    """One graph with PyTorch's own noise; on a GPU, results that the next call leaves alone."""
    from torch._dynamo import config

    monkeypatch.setenv("TENSORIFY_PYTHON_SCALARS", "1")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    asked, result = [], torch.zeros(3)

    def compile(function, **options):
        asked.append((function, options))
        return lambda *inputs: {"x": result.add_(1)}

    monkeypatch.setattr(torch, "compile", compile)
    with config.patch(trace_autograd_ops=False):
        graph = module.compiled(module.update, device)
        assert config.trace_autograd_ops is True
    fast = {"triton.cudagraphs": True} if device == "cuda" else {"cpp_wrapper": True}
    options = {"fullgraph": True, "options": {"fallback_random": True} | fast}
    assert asked == [(module.update, options)]
    assert module.os.environ["TENSORIFY_PYTHON_SCALARS"] == "0"
    first, second = graph(1), graph(1)
    if device == "cuda":
        assert (first["x"][0], second["x"][0]) == (1, 2)


@each_kind
def test_compiled_updates_are_those_that_are_made(tiny_run, module, monkeypatch):
    """The flag decides which function learns; what it learns is the same here."""
    calls = []

    def compiled(function, device):
        calls.append((function.__name__, device))

        def watched(*args):
            calls.append(1)
            return function(*args)

        return watched

    monkeypatch.setattr(module, "compiled", compiled)
    plain = tiny_run(WALK)
    assert calls == []
    fast = tiny_run(WALK, compile=True)
    assert calls[0] in [("update", "cpu"), ("minibatch_step", "cpu")]
    parts = [read_checkpoint(results["run_dir"])["parts"]["agent"] for results in (plain, fast)]
    same(*(dict(part) for part in parts))
    assert len(calls) - 1 == (40 if calls[0][0] == "update" else 12)
