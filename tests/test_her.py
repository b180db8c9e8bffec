"""Hindsight replay: which goals it gives, what it makes of them, and the script that has it."""

import itertools
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import QUICK, main, metrics, read_checkpoint, run_dir, same, source, train
from processes import at_call, refusal, same_run

import her_utils
import sac_her_continuous as sac_her
from her_utils import FlattenGoal, HindsightReplayBuffer, PointReach, success_rate

SCRIPT = "sac_her_continuous"
# Four flights of PointReach and the beginning of a fifth; the first ends before the first update.
FLAGS = [*QUICK["sac_continuous"], "--learning-starts=60", "--total-timesteps=220"]
STRATEGIES = ["future", "final", "episode", "random"]
EPSILON = 2.0**-53  # torch.rand draws multiples of it in float64, from 0 to 1 - EPSILON


class World(gym.Env):
    """Nothing moves: what is achieved is always (0, 0), and what is wanted always (1, 1).

    The reward is 1 where all of a goal is met to 0.5; if the world `terminates` it does so there.
    """

    def __init__(self, terminates: bool = True):
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(her_utils.KEYS, box))
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        if terminates:
            self.compute_terminated = self.met

    def met(self, achieved, desired, info):
        assert info == {}
        return np.abs(achieved - desired).max(-1) < 0.5

    def compute_reward(self, achieved, desired, info):
        return 1.0 * self.met(achieved, desired, info)

    def observe(self):
        return dict(zip(her_utils.KEYS, np.float32([[0, 0], [0, 0], [1, 1]]), strict=True))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 0.0, False, False, {"is_success": 0.0}


class Wide(World):
    """Without goals, and with so many different bounds that NumPy prints them in several lines."""

    def __init__(self):
        super().__init__()
        bounds = np.arange(1, 41, dtype=np.float32)
        self.observation_space = gym.spaces.Box(-bounds, bounds)


class Pairs(World):
    """Goals of any shape, which are judged as told; what is achieved is a random walk."""

    def __init__(self, judge, shape=(2,)):
        super().__init__(terminates=False)
        self.judge, self.shape = judge, shape
        box = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(her_utils.KEYS, box))

    def compute_reward(self, achieved, desired, info):
        return self.judge(achieved, desired)

    def observe(self):
        place, goal = self.place.astype(np.float32), np.zeros(self.shape, np.float32)
        return dict(zip(her_utils.KEYS, (place, place, goal), strict=True))

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.place = self.np_random.uniform(-1, 1, self.shape)
        return self.observe(), {}

    def step(self, action):
        self.place = self.np_random.uniform(-1, 1, self.shape)
        obs = self.observe()
        reward = self.compute_reward(obs["achieved_goal"], obs["desired_goal"], {})
        return obs, np.asarray(reward).item(), False, False, {"is_success": reward == 0}


class Tenfold(gym.Wrapper):
    """Rewards are ten times as large, whoever asks."""

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, 10 * reward, *rest

    def compute_reward(self, achieved, desired, info):
        return 10 * self.env.unwrapped.compute_reward(achieved, desired, info)


class Informed(PointReach):
    """What its reward is stands in info: in any case, or where there is some."""

    def __init__(self, always):
        super().__init__()
        self.always = always

    def compute_reward(self, achieved, desired, info):
        bonus = info["bonus"] if self.always else info.get("bonus", 0.0)
        return bonus + super().compute_reward(achieved, desired, info)

    def step(self, action):
        self.point = np.clip(self.point + self.SPEED * action, -1, 1, dtype=np.float32)
        reward = float(self.compute_reward(self.point, self.goal, {"bonus": 0.5}))
        return self.observe(), reward, False, False, {}


class Restless(PointReach):
    """Each flight begins elsewhere, whatever the seed."""

    resets = itertools.count()

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=next(Restless.resets))


gym.register("Stuck-v0", World, max_episode_steps=5)
gym.register("StuckForEver-v0", World, max_episode_steps=5, kwargs={"terminates": False})
gym.register("Wide-v0", Wide)
gym.register("OneStepGoal-v0", PointReach, max_episode_steps=1)
gym.register("OneStepPlain-v0", lambda: FlattenGoal(PointReach()), max_episode_steps=1)
gym.register("Tenfold-v0", lambda: Tenfold(PointReach()), max_episode_steps=50)
gym.register("Informed-v0", Informed, max_episode_steps=50)
gym.register("Restless-v0", Restless, max_episode_steps=50)
gym.register(
    "Untold-v0",  # the reward of its steps is another one
    lambda: gym.wrappers.TransformReward(PointReach(), lambda reward: 10 * reward),
    max_episode_steps=50,
)
gym.register(
    "Squares-v0",
    lambda: Pairs(lambda a, d: -float(math.dist(a.ravel(), d.ravel()) > 0.5), (2, 2)),
    max_episode_steps=10,
)


def transition(number, dice=None):
    """A transition that can be told from every other; number n achieves (n + 1000, 7).

    With dice its goals are so near to one another that some are met.
    """
    goals = [[number, 0], [number + 1000, 7], [-number - 1, 7]]
    before, after, wanted = goals if dice is None else dice.uniform(0, 1, (3, 2))
    obs = np.float32([number, 0, *before, *wanted])
    next_obs = np.float32([number + 1, 0, *after, *wanted])
    return obs, np.float32([number / 8]), np.float32(number / 4), next_obs, np.float32(number % 2)


def filled(lengths, unfinished=0, capacity=64, k=4, strategy="future", world=None, dice=None):
    """A buffer with finished episodes of these lengths and the beginning of another."""
    replay = sac_her.ReplayBuffer(capacity, 6, 1)
    replay = HindsightReplayBuffer(replay, FlattenGoal(world or World()), k, strategy)
    for length in lengths:
        for _ in range(length):
            replay.add(*transition(replay.added, dice))
        replay.end_episode()
    for _ in range(unfinished):
        replay.add(*transition(replay.added, dice))
    return replay


def pairs(batch):
    """For each row the number of its transition, and of the one whose achieved goal it has.

    The second is None in a row that has its own goal.
    """
    numbers, goals = batch.obs[:, 0].long().tolist(), batch.obs[:, 4].long().tolist()
    return [(n, None if g == -n - 1 else g - 1000) for n, g in zip(numbers, goals, strict=True)]


def allowed(strategy, number, begin, end, numbers):
    """Of which transitions this one may have the next achieved goal."""
    return {
        "future": range(number, end),
        "final": [end - 1],
        "episode": range(begin, end),
        "random": numbers,
    }[strategy]


# === Which goals ==================================================================================
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_allowed_goal_and_no_other(strategy):
    """Of episodes of 3, 1 and 4 transitions; an unfinished one neither learns nor teaches.

    All are equally likely: counts are within five standard deviations.
    """
    replay, draws = filled([3, 1, 4], unfinished=2, strategy=strategy), 20_000
    replay.share = 1.0
    seen = pairs(replay.sample(draws))
    expected = {}
    for begin, end in [(0, 3), (3, 4), (4, 8)]:
        for number in range(begin, end):
            goals = allowed(strategy, number, begin, end, range(8))
            expected |= {(number, goal): 1 / 8 / len(goals) for goal in goals}
    assert set(seen) == set(expected)
    for pair, p in expected.items():
        assert abs(seen.count(pair) - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("uniform", [0.0, EPSILON, 0.5, 1 - EPSILON])
def test_goals_at_both_ends_of_the_draw(uniform, strategy, monkeypatch):
    """The smallest draw gives the first allowed goal and the largest the last, none beyond it."""
    replay = filled([3, 1, 4, 33, 1], strategy=strategy)
    monkeypatch.setattr(torch, "rand", lambda *size, dtype: torch.full(size, uniform, dtype=dtype))
    given = replay.goal_number(torch.arange(42)).tolist()
    for begin, end in itertools.pairwise([0, 3, 4, 8, 41, 42]):
        for number in range(begin, end):
            goals = allowed(strategy, number, begin, end, range(42))
            assert given[number] == goals[int(uniform * len(goals))]


class Model:
    """The same buffer without forgetting: a list of all transitions and one of all episodes."""

    def __init__(self, capacity):
        self.capacity, self.history, self.episodes, self.first = capacity, [], [], 0

    def add(self, *transition):
        self.history.append(transition)

    def end_episode(self):
        # What is left of an episode longer than the buffer counts as one.
        first = max(self.first, len(self.history) - self.capacity)
        self.episodes.append((first, len(self.history)))
        self.first = len(self.history)

    def samplable(self):
        """Number of each transition that may be sampled -> where its episode begins and ends."""
        forgotten = len(self.history) - self.capacity
        return {n: (b, e) for b, e in self.episodes if b >= forgotten for n in range(b, e)}


@pytest.mark.slow_but("[3]")
@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 7, 10])
def test_random_histories(capacity):
    """After each step of many random histories the model's transitions are there, and as added.

    Episodes have from no step to more than the buffer holds. Half way all is saved and loaded.
    """
    dice, strategies, empty, wrapped = random.Random(capacity), itertools.cycle(STRATEGIES), 0, 0
    for _ in range(25):
        strategy, model = next(strategies), Model(capacity)
        replay = filled([], capacity=capacity, strategy=strategy, k=1)
        for step in range(40):
            if dice.random() < 0.25:
                replay.end_episode()
                model.end_episode()
            else:
                new = transition(len(model.history))
                replay.add(*new)
                model.add(*new)
            if step == 20:
                state = replay.state_dict()
                replay = filled([], capacity=capacity, strategy=strategy, k=1)
                replay.load_state_dict(state)
            expected = model.samplable()
            if not expected:
                empty += 1
                assert not replay.ready()
                continue
            assert replay.ready()
            assert list(range(replay.oldest, replay.newest)) == sorted(expected)
            batch = replay.sample(8)
            for i, (number, goal) in enumerate(pairs(batch)):
                may = allowed(strategy, number, *expected[number], expected)
                assert goal is None or goal in may
                obs, action, reward, next_obs, terminated = model.history[number]
                assert np.array_equal(batch.action[i], action)
                assert np.array_equal(batch.obs[i, :4], obs[:4])
                assert np.array_equal(batch.next_obs[i, :4], next_obs[:4])
                if goal is None:
                    assert batch.reward[i] == reward and batch.terminated[i] == terminated
            wrapped += min(expected) > 0
    assert empty > 25 and wrapped > 25


def test_an_episode_that_lost_a_row_is_gone():
    """Three episodes of three in a buffer of ten: the first row that is lost takes two with it."""
    replay, seen = filled([3, 3, 3], capacity=10), []
    for number in range(9, 16):
        replay.add(*transition(number))
        seen.append({n for n, _ in pairs(replay.sample(200))})
    assert seen == [{*range(9)}, *[{*range(3, 9)}] * 3, *[{6, 7, 8}] * 3]
    replay.end_episode()
    assert {n for n, _ in pairs(replay.sample(400))} == {*range(6, 16)}


def test_an_episode_longer_than_the_buffer():
    """Unfinished it is not sampled; finished, what is left of it is, until another row is lost."""
    replay = filled([2], unfinished=23, capacity=10)
    assert not replay.ready()
    replay.end_episode()
    assert replay.ready()
    seen = pairs(replay.sample(4_000))
    assert {n for n, _ in seen} == {*range(15, 25)}
    assert {goal for _, goal in seen if goal is not None} == {*range(15, 25)}
    replay.add(*transition(25))
    assert not replay.ready()


def test_ready_from_the_first_finished_episode_on(capsys):
    """Until then it says no, and once why."""
    replay = filled([], unfinished=3)
    capsys.readouterr()
    assert not replay.ready() and not replay.ready()
    assert capsys.readouterr().out.count("note: updates wait for a finished episode") == 1
    replay.end_episode()
    capsys.readouterr()
    assert replay.ready() and capsys.readouterr().out == ""


def test_unknown_strategy():
    with pytest.raises(ValueError, match="'future', 'final', 'episode', 'random'.*'past'"):
        filled([], strategy="past")


# === What becomes of a row ========================================================================
ANSWERS = {
    "float64": np.float64,
    "tuple": tuple,
    "bool": np.bool_,
    "list of int": lambda values: [int(x) for x in values],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("terminates", [True, False])
def test_relabelled_rows(terminates, answer, strategy):
    """Against brute force, one row at a time, from the transitions as they were added.

    A goal is judged by the next achieved one; where the environment has no compute_terminated the
    stored flag stays, as the rest does. Some goals are met and some are not. Of one pair of goals
    the environment answers with one value, whatever it makes of many.
    """
    world = World(terminates)

    def judge(*args):
        met = world.met(*args)
        return ANSWERS[answer](met) if met.ndim else met

    world.compute_reward = judge
    if terminates:
        world.compute_terminated = world.compute_reward
    replay = filled([5, 1, 9], world=world, dice=np.random.default_rng(1), strategy=strategy)
    dice = np.random.default_rng(1)
    history = [transition(n, dice) for n in range(15)]
    table = replay.table.copy()
    torch.manual_seed(1)
    batch = replay.sample(300)
    assert np.array_equal(replay.table, table)
    chosen = 0
    for row in zip(*batch, strict=True):
        obs, action, reward, next_obs, terminated = (x.numpy() for x in row)
        stored = history[int(obs[0])]
        assert {x.dtype for x in (obs, action, reward, next_obs, terminated)} == {np.dtype("f4")}
        assert np.array_equal(action, stored[1])
        assert np.array_equal(obs[:4], stored[0][:4])
        assert np.array_equal(next_obs[:4], stored[3][:4])
        assert np.array_equal(obs[4:], next_obs[4:])
        if np.array_equal(obs[4:], stored[0][4:]):
            assert reward == stored[2] and terminated == stored[4]
        else:
            chosen += 1
            assert any(np.array_equal(obs[4:], other[3][2:4]) for other in history)
            met = np.abs(stored[3][2:4] - obs[4:]).max() < 0.5
            assert reward == met and terminated == (met if terminates else stored[4])
    assert 200 < chosen < 280 and 0 < batch.terminated.sum() < 300


def test_one_value_for_all_terminations():
    """As in the Fetch tasks, whose compute_terminated returns False whatever it is given."""
    world = World()
    world.compute_terminated = lambda *args: False
    batch = filled([4] * 4, world=world).sample(500)
    for (number, goal), terminated in zip(pairs(batch), batch.terminated.tolist(), strict=True):
        assert terminated == (number % 2 if goal is None else 0)


def test_an_environment_that_judges_one_goal_at_a_time():
    """As PointMaze's compute_terminated, which has one answer for a whole table of goals."""
    world = World()
    world.compute_terminated = lambda *args: bool(np.linalg.norm(args[0] - args[1]) < 0.5)
    replay = filled([5, 1, 9], world=world, dice=np.random.default_rng(1))
    replay.share = 1.0
    torch.manual_seed(1)
    batch = replay.sample(300)
    distance = np.linalg.norm(batch.next_obs[:, 2:4] - batch.next_obs[:, 4:6], axis=1)
    assert np.array_equal(batch.terminated, distance < 0.5)
    assert 0 < batch.terminated.sum() < 300


SIDE = 0.5
ONE_PAIR = {
    "hypot": lambda a, d: -float(math.hypot(*(a - d)) > SIDE),
    "and": lambda a, d: 0 if abs(a[0] - d[0]) < SIDE and abs(a[1] - d[1]) < SIDE else -1,
    "if": lambda a, d: 0.0 if np.linalg.norm(a - d) < SIDE else -1.0,
    "norm of all": lambda a, d: -np.linalg.norm(a - d),
    "first number": lambda a, d: -np.abs((a - d)[0]),
    "one number in a table": lambda a, d: np.array([-np.abs(a - d).sum()], np.float32),
}


@pytest.mark.parametrize("kind", ONE_PAIR)
def test_a_reward_that_is_written_for_one_pair_of_goals(kind):
    """What it answers of many at once, if it answers, is not taken for their rewards."""
    judge = ONE_PAIR[kind]
    replay = filled([5, 1, 9], world=Pairs(judge), dice=np.random.default_rng(1))
    replay.share = 1.0
    torch.manual_seed(1)
    batch = replay.sample(300)
    for reward, next_obs in zip(batch.reward.tolist(), batch.next_obs.numpy(), strict=True):
        assert reward == pytest.approx(np.float32(judge(next_obs[2:4], next_obs[4:6])).item())
    assert len(set(batch.reward.tolist())) > 1


def test_a_reward_that_is_written_for_many_pairs_of_goals():
    """Then one pair alone is an error, which is no reason to refuse it."""
    world = World(terminates=False)
    world.compute_reward = lambda a, d, info: -np.linalg.norm(a - d, axis=1)
    replay = filled([5, 1, 9], world=world, dice=np.random.default_rng(1))
    replay.share = 1.0
    batch = replay.sample(300)
    expected = -np.linalg.norm(batch.next_obs[:, 2:4] - batch.next_obs[:, 4:6], axis=1)
    np.testing.assert_allclose(batch.reward, expected, atol=1e-6)


SQUARES = {
    "one": lambda a, d: -float(np.linalg.norm(a - d) > 1),
    "many": lambda a, d: -np.float32(np.linalg.norm(a - d, axis=(-2, -1)) > 1),
    "and": lambda a, d: 0 if abs(a[0, 0] - d[0, 0]) < 1 and abs(a[1, 1] - d[1, 1]) < 1 else -1,
}


@pytest.mark.parametrize("kind", SQUARES)
def test_goals_that_are_tables(kind):
    """The judge sees them in their own shape, the networks as vectors."""
    shapes = set()

    def judge(achieved, desired):
        shapes.update((achieved.shape, desired.shape))
        return SQUARES[kind](achieved, desired)

    env = FlattenGoal(Pairs(judge, (2, 2)))
    assert (env.achieved, env.desired) == (slice(4, 8), slice(8, 12))
    assert env.observation_space.shape == env.reset(seed=1)[0].shape == (12,)
    replay = HindsightReplayBuffer(sac_her.ReplayBuffer(20, 12, 1), env)
    dice = np.random.default_rng(1)
    for _ in range(20):
        replay.add(dice.normal(size=12), 0, 0, dice.normal(size=12), 0)
    replay.end_episode()
    replay.share = 1.0
    batch = replay.sample(300)
    goals = batch.next_obs.numpy().reshape(300, 3, 2, 2)[:, 1:]
    expected = [SQUARES[kind](achieved, desired) for achieved, desired in goals]
    assert batch.reward.tolist() == expected and len(set(expected)) == 2
    assert all(shape[-2:] == (2, 2) for shape in shapes)
    assert any(len(shape) == 3 for shape in shapes)  # at least when it was tried


def test_the_environment_is_asked_once_for_the_whole_batch():
    world, calls = World(), []
    for name in ("compute_reward", "compute_terminated"):
        judge = getattr(world, name)

        def ask(*args, name=name, judge=judge):
            calls.append((name, args))
            return judge(*args)

        setattr(world, name, ask)
    replay = filled([8] * 4, world=world)
    calls.clear()  # what was tried out, and the rewards of the first episode
    batch = replay.sample(256)
    rows = [i for i, (_, goal) in enumerate(pairs(batch)) if goal is not None]
    assert [name for name, _ in calls] == ["compute_reward", "compute_terminated"]
    for _, (achieved, desired, _) in calls:
        assert np.array_equal(achieved, batch.next_obs[rows, 2:4])
        assert np.array_equal(desired, batch.next_obs[rows, 4:6])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [1, 4, 8])
def test_share_of_relabelled_rows(k, strategy):
    """k / (k + 1), within five standard deviations."""
    draws, share = 10_000, k / (k + 1)
    seen = pairs(filled([8] * 4, k=k, strategy=strategy).sample(draws))
    count = sum(goal is not None for _, goal in seen)
    assert abs(count - draws * share) < 5 * (draws * share * (1 - share)) ** 0.5


def test_no_hindsight():
    """With k = 0 it is the plain buffer, to the last random number, and nobody is asked."""
    replay = filled([8] * 4, k=0)
    replay.reward_of = replay.end_of = None
    torch.manual_seed(3)
    batch, after = replay.sample(100), torch.get_rng_state()
    torch.manual_seed(3)
    same(tuple(batch), tuple(replay.replay.sample(100)))
    assert torch.equal(torch.get_rng_state(), after)


# === What is learnt ===============================================================================
@pytest.mark.parametrize("env_id, value", [("Stuck-v0", 1.0), ("StuckForEver-v0", 1 / (1 - 0.8))])
@pytest.mark.slow
def test_value_of_a_goal_that_is_met(env_id, value, tmp_path):
    """Reward 1 where the goal is met. If that ends the episode it is all that there is to come; if
    only a time limit does, 1 + gamma + gamma^2 + ... is. The goal that is never met is worth 0.
    """
    settings = dict(env_id=env_id, total_timesteps=600, learning_starts=50, eval_episodes=1)
    settings |= dict(hidden_dim=16, batch_size=64, q_lr=1e-2, tau=0.1, gamma=0.8, num_threads=1)
    settings |= dict(alpha=0.0, autotune=False, eval_frequency=0, runs_dir=str(tmp_path))
    agent = sac_her.train(sac_her.Args(**settings))["agent"]
    met_and_unmet = torch.tensor([[0.0] * 6, [0, 0, 0, 0, 1, 1]])
    for critic in (agent.q1, agent.q2, agent.q1_target, agent.q2_target):
        for action in (-0.5, 0, 0.5):
            q = critic(met_and_unmet, torch.full((2, 1), action))
            assert q.tolist() == pytest.approx([value, 0], abs=0.04 * value)


# What gives an off-policy script hindsight, as the docstring of her_utils.py says it.
DROP_IN = [
    (
        "from tqdm import tqdm, trange\n",
        "from tqdm import tqdm, trange\n\n"
        "from her_utils import FlattenGoal, HindsightReplayBuffer\n",
    ),
    (
        "env = gym.make(env_id, **options)\n",
        "env = FlattenGoal(gym.make(env_id, **options))\n",
    ),
    (
        "        replay = ReplayBuffer(capacity, obs_dim, action_dim, args.device)\n",
        "        replay = ReplayBuffer(capacity, obs_dim, action_dim, args.device)\n"
        "        replay = HindsightReplayBuffer(replay, env)\n",
    ),
    (
        "            run.record(reward, terminated or truncated)\n",
        "            run.record(reward, terminated or truncated)\n"
        "            if terminated or truncated:\n                replay.end_episode()\n",
    ),
    (
        "                batch = replay.sample(args.batch_size)\n",
        "                if not replay.ready():\n"
        "                    continue\n"
        "                batch = replay.sample(args.batch_size)\n",
    ),
]


@pytest.fixture
def with_her(tmp_path, monkeypatch):
    """The command line of a script's copy that has those lines."""

    def with_her(script, *flags):
        with open(source(script), encoding="utf-8") as file:
            text = file.read()
        for old, new in DROP_IN:
            assert text.count(old) == 1
            text = text.replace(old, new)
        copy = tmp_path / f"{script}_with_her.py"
        copy.write_text(text, encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr("helpers.source", lambda name: str(copy))
            main(script, *flags)

    return with_her


@pytest.fixture
def batches(monkeypatch):
    """Each batch that the runs of a test sample, with the buffer that it comes from."""
    batches, sample = [], HindsightReplayBuffer.sample

    def remember(replay, size):
        batches.append((replay, sample(replay, size)))
        return batches[-1][1]

    monkeypatch.setattr(HindsightReplayBuffer, "sample", remember)
    return batches


def check_rewards(batches, world, unmet=-1):
    """Each row's reward is what the environment says of that row alone, and many meet the goal.

    By chance fewer than one in a hundred would.
    """
    seen = []
    for replay, (_, _, rewards, next_obs, terminated) in batches:
        assert not terminated.any()
        for obs, reward in zip(next_obs.numpy(), rewards.tolist(), strict=True):
            goals = obs[replay.achieved], obs[replay.desired]
            assert reward == world.compute_reward(*goals, {})
            seen.append(reward)
    assert set(seen) == {unmet, 0} and seen.count(0) > 0.07 * len(seen)


def stop_at(patch, step, number=None):
    """In that step of the run a signal arrives, or else the environment fails.

    Before the first step a flight of 50 is played in evaluation.
    """

    def happen(*args):
        if number is None:
            raise ZeroDivisionError
        signal.raise_signal(number)

    at_call(patch, PointReach, "step", 50 + step, happen)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["td3_continuous", "ddpg_continuous"])
def test_it_drops_into(script, with_her, batches, tmp_path, monkeypatch):
    """With these lines it trains on PointReach, and goes on after a fault as if there were none."""
    flags = [*FLAGS, "--env-id=PointReach-v0", "--checkpoint-frequency=170", "--runs-dir"]
    with_her(script, *flags, tmp_path / "whole")
    assert len(batches) == 160
    check_rewards(batches, PointReach())
    whole = run_dir(tmp_path / "whole")
    parts = read_checkpoint(whole)["parts"]
    assert (parts["replay"]["oldest"], parts["replay"]["newest"]) == (0, 200)
    assert parts["agent"]["q_optimizer.t"] == 160
    stop_at(monkeypatch, 199)
    with pytest.raises(ZeroDivisionError):
        with_her(script, *flags, tmp_path / "stopped")
    stopped = run_dir(tmp_path / "stopped")
    assert read_checkpoint(stopped)["progress"]["step"] == 198
    with_her(script, "--resume", stopped / "checkpoint.pt")
    same_run(stopped, whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that nothing interrupts, whose buffer has begun to forget whole flights."""
    folder = tmp_path_factory.mktemp("whole")
    main(SCRIPT, *FLAGS, "--buffer-size=120", "--runs-dir", folder)
    return run_dir(folder)


def test_sac_with_these_lines_is_the_script(with_her, whole, tmp_path):
    flags = [*FLAGS, "--buffer-size=120", "--env-id=PointReach-v0", "--runs-dir", tmp_path / "runs"]
    with_her("sac_continuous", *flags)
    same(read_checkpoint(run_dir(tmp_path / "runs"))["parts"], read_checkpoint(whole)["parts"])


# === The script ===================================================================================
def test_same_seed_same_run(whole, tmp_path):
    main(SCRIPT, *FLAGS, "--buffer-size=120", "--runs-dir", tmp_path / "same")
    same_run(run_dir(tmp_path / "same"), whole)
    main(SCRIPT, *FLAGS, "--buffer-size=120", "--seed=2", "--runs-dir", tmp_path / "other")
    q1, other = (metrics(folder)[-1]["q1"] for folder in (whole, run_dir(tmp_path / "other")))
    assert float(q1) != float(other)


@pytest.mark.slow_but("[75]")
@pytest.mark.parametrize("step", [30, 75, 150, 175, 220])
def test_stopped_by_a_signal(step, whole, tmp_path, monkeypatch, capsys):
    """While warming up, in mid-flight, at a flight's end, after one was forgotten, at the end.

    The step in which it arrives is not whole, so the one before it counts: the last of a flight
    at 150. After the run's last step it falls into the evaluation.
    """
    stop_at(monkeypatch, step + 1, signal.SIGINT)
    with pytest.raises(SystemExit, match="^1$"):
        main(SCRIPT, *FLAGS, "--buffer-size=120", "--runs-dir", tmp_path)
    assert f"\nstopped at step {step}: --resume {run_dir(tmp_path)}" in capsys.readouterr().out
    main(SCRIPT, "--resume", run_dir(tmp_path) / "checkpoint.pt")
    same_run(run_dir(tmp_path), whole)
    replay = read_checkpoint(run_dir(tmp_path))["parts"]["replay"]
    assert (replay["oldest"], replay["newest"]) == (100, 200)
    rows = torch.arange(100, 200) % 120
    assert replay["begin"][rows].tolist() == [100] * 50 + [150] * 50
    assert replay["end"][rows].tolist() == [150] * 50 + [200] * 50


@pytest.mark.slow
@pytest.mark.parametrize("reset", [2, 4])
def test_failed_between_two_flights(reset, whole, tmp_path, monkeypatch):
    """The transition before it is stored, but its step is not whole, and comes again.

    Resets: one to try the judges out, one for evaluation, then the flights, from 0 on.
    """

    def fault(*_):
        raise ZeroDivisionError

    at_call(monkeypatch, PointReach, "reset", 3 + reset, fault)
    with pytest.raises(ZeroDivisionError):
        main(SCRIPT, *FLAGS, "--buffer-size=120", "--runs-dir", tmp_path)
    stopped = read_checkpoint(run_dir(tmp_path))
    assert stopped["progress"]["step"] == 50 * reset - 1 == stopped["parts"]["replay"]["added"]
    assert stopped["parts"]["replay"]["newest"] == 50 * (reset - 1)
    main(SCRIPT, "--resume", run_dir(tmp_path) / "checkpoint.pt")
    same_run(run_dir(tmp_path), whole)


@pytest.mark.slow
def test_killed_between_checkpoints(whole, tmp_path, monkeypatch):
    """What came after the last checkpoint comes again: here it goes on from a copy of the folder.

    It is made 60 steps after that, when metrics.csv has got three more rows.
    """
    killed = tmp_path / "killed"
    copy = lambda *_: shutil.copytree(run_dir(tmp_path / "runs"), killed)  # noqa: E731
    at_call(monkeypatch, PointReach, "step", 50 + 190, copy)
    flags = [*FLAGS, "--buffer-size=120", "--checkpoint-frequency=130"]
    main(SCRIPT, *flags, "--runs-dir", tmp_path / "runs")
    assert read_checkpoint(killed)["progress"]["step"] == 130
    assert metrics(killed)[-1]["global_step"] == "180"
    main(SCRIPT, "--resume", killed / "checkpoint.pt")
    for folder in (killed, run_dir(tmp_path / "runs")):
        same(read_checkpoint(folder)["parts"], read_checkpoint(whole)["parts"])
        same(metrics(folder), metrics(whole))


def test_a_flight_that_cannot_be_put_back_has_ended(tmp_path, capsys):
    """Hindsight does not take the next flight for the rest of it."""
    flags = ["--total-timesteps=75", "--env-id=Restless-v0", "--runs-dir", tmp_path]
    folder = train(SCRIPT, *FLAGS, *flags)["run_dir"]
    capsys.readouterr()
    main(SCRIPT, "--resume", folder / "checkpoint.pt", "--total-timesteps=130")
    assert "note: this environment cannot be put back exactly" in capsys.readouterr().out
    replay = read_checkpoint(folder)["parts"]["replay"]
    assert (replay["oldest"], replay["newest"]) == (0, 125)
    assert replay["begin"][:125].tolist() == [0] * 50 + [50] * 25 + [75] * 50
    assert replay["end"][:125].tolist() == [50] * 50 + [75] * 25 + [125] * 50


@pytest.mark.slow
def test_a_longer_run_has_a_larger_buffer(tmp_path):
    """220 steps at once, or 120 and then the rest: in between the buffer grows."""
    main(SCRIPT, *FLAGS, "--runs-dir", tmp_path / "once")
    main(SCRIPT, *FLAGS, "--total-timesteps=120", "--runs-dir", tmp_path / "twice")
    once, twice = (run_dir(tmp_path / name) for name in ("once", "twice"))
    main(SCRIPT, "--resume", twice / "checkpoint.pt", "--total-timesteps=220")
    same(read_checkpoint(twice)["parts"], read_checkpoint(once)["parts"])


@pytest.mark.slow
def test_it_stands_alone_with_her_utils(tmp_path):
    """Copied out and under another name it runs, and says how often it succeeds."""
    shutil.copy(source(SCRIPT), tmp_path / "mine.py")
    shutil.copy(her_utils.__file__, tmp_path)
    options = {"env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "timeout": 300}
    options |= {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "mine.py", *FLAGS, "--eval-episodes=4"], **options)
    assert done.returncode == 0, done.stderr
    folder = run_dir(tmp_path / "runs")
    assert folder.name.startswith("PointReach-v0__mine__1__")
    rate = metrics(folder)[-1]["eval_success_rate"]
    (line,) = re.findall("^final .*", done.stdout, re.MULTILINE)
    assert f" eval_success_rate={rate} " in line and 4 * float(rate) in range(5)


def flight(*met, key="is_success"):
    return [(None, None, 0.0, None, False, {key: x}) for x in met]


def test_success_rate():
    """What counts is the end: not what was met on the way, nor how long it took."""
    flights = [flight(0.0, 1.0), flight(1.0, 0.0), flight(np.True_), flight(False, False, False)]
    for some, rate in [(flights, 0.5), (flights[:1], 1), (flights[1:2], 0)]:
        assert success_rate(some) == {"eval_success_rate": rate}
    assert success_rate([flight(0.0, 1.0, key="success")]) == {"eval_success_rate": 1}


@pytest.mark.parametrize("ends", [["luck"], ["luck", "is_success"], ["is_success", "success"]])
def test_no_success_rate(ends, capsys):
    """If an episode's end does not tell, there is none, and a note."""
    assert success_rate([flight(1.0, key=key) for key in ends]) == {}
    assert capsys.readouterr().out.count("note: info has no is_success") == 1


@pytest.mark.slow
def test_a_task_that_does_not_tell_its_success(tmp_path, capsys):
    """It trains all the same. The note comes before the first step."""
    flags = ["--env-id=Informed-v0", '--env-kwargs={"always": false}', "--eval-frequency=70"]
    main(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path)
    out, rows = capsys.readouterr().out, metrics(run_dir(tmp_path))
    assert out.index("note: info has no is_success") < out.index("replay takes")
    assert rows[-1]["eval_return_mean"] and "eval_success_rate" not in rows[-1]
    assert "eval_success_rate" not in out.replace("so there is no eval_success_rate", "")


def test_the_success_rate_of_a_run(tmp_path, monkeypatch):
    """It is that of the actor that train() returns, counted here from the rewards."""
    monkeypatch.setattr(PointReach, "RADIUS", 1.2)  # so that some flights succeed
    settings = dict(total_timesteps=120, learning_starts=60, batch_size=8, hidden_dim=8)
    settings |= dict(num_threads=1, eval_episodes=12, runs_dir=str(tmp_path))
    args = sac_her.Args(**settings)
    results = sac_her.train(args)
    flights = sac_her.evaluate(results["actor"], sac_her.make_env(args.env_id), args)
    succeeded = sum(flight[-1][2] == 0 for flight in flights)
    assert 0 < succeeded < 12 and results["eval_success_rate"] == succeeded / 12


def test_the_wrong_kind_of_environment(tmp_path, capsys):
    """One line, which says where it belongs, and no folder."""
    flags = [*FLAGS, "--runs-dir", tmp_path / "runs", "--env-id"]
    for env_id in ("Pendulum-v1", "Wide-v0", "worlds:Odd-dictionary-v0"):
        message = refusal(SCRIPT, *flags, env_id)
        assert env_id in message and "no goals" in message and "for the other scripts" in message
        assert "gymnasium.wrappers.FlattenObservation" in message
    message = refusal("sac_continuous", *flags, "her_utils:PointReach-v0")
    assert "her_utils:PointReach-v0" in message and "sac_her_continuous.py" in message
    assert not (tmp_path / "runs").exists() and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("flag, value", [("--n-sampled-goal", "-1"), ("--goal-strategy", "past")])
def test_wrong_flag(flag, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(SCRIPT, *FLAGS, "--runs-dir", tmp_path / "runs", flag, value)
    printed = capsys.readouterr()
    message = printed.err if stop.value.code == 2 else stop.value.code  # 2 is tyro's, in a box
    assert flag in message and value in message and printed.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_no_finished_episode_at_the_first_update(batches, tmp_path, capsys):
    """Updates wait for the end of the first flight, and one note says so."""
    main(SCRIPT, *FLAGS, "--learning-starts=30", "--runs-dir", tmp_path)
    assert capsys.readouterr().out.count("note: updates wait for a finished episode") == 1
    assert len(batches) == 220 - 49
    rows = metrics(run_dir(tmp_path))
    assert [row["critic_loss"] != "" for row in rows[:3]] == [False, False, True]


# === Who judges ===================================================================================
@pytest.mark.slow
def test_rewards_are_those_of_the_outermost_wrapper_that_has_compute_reward(
    batches, tmp_path, capsys
):
    main(SCRIPT, *FLAGS, "--env-id=Tenfold-v0", "--runs-dir", tmp_path)
    check_rewards(batches, Tenfold(PointReach()), unmet=-10)
    assert len(batches) == 160 and "note:" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--env-id=Untold-v0"], ["--env-id=Informed-v0", '--env-kwargs={"always": false}']],
    ids=["wrapper", "info"],
)
def test_a_note_where_steps_are_rewarded_otherwise(flags, tmp_path, capsys):
    """Once, when the first flight has ended."""
    note = "note: step() and compute_reward give different rewards"
    main(SCRIPT, *FLAGS, *flags, "--total-timesteps=49", "--runs-dir", tmp_path)
    assert note not in capsys.readouterr().out
    main(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path)
    assert capsys.readouterr().out.count(note) == 1


def test_a_reward_that_needs_info(tmp_path, capsys):
    """Hindsight has none: it is refused before anything is written."""
    flags = ["--env-id=Informed-v0", '--env-kwargs={"always": true}']
    message = refusal(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path / "runs")
    assert "compute_reward cannot judge" in message and "KeyError('bonus')" in message
    assert "empty info" in message
    assert not (tmp_path / "runs").exists() and capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_task_whose_goals_are_tables(batches, tmp_path, capsys):
    main(SCRIPT, *FLAGS, "--env-id=Squares-v0", "--runs-dir", tmp_path)
    assert batches and metrics(run_dir(tmp_path))[-1]["critic_loss"]
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("k, strategy", [*enumerate(STRATEGIES)])
def test_flags_reach_the_buffer(k, strategy, tmp_path, monkeypatch):
    made, original = [], HindsightReplayBuffer.__init__

    def remember(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(HindsightReplayBuffer, "__init__", remember)
    settings = dict(total_timesteps=60, learning_starts=50, batch_size=8, hidden_dim=8)
    settings |= dict(num_threads=1, eval_episodes=1, runs_dir=str(tmp_path))
    sac_her.train(sac_her.Args(**settings, n_sampled_goal=k, goal_strategy=strategy))
    (replay,) = made
    assert (replay.share, replay.strategy) == (k / (k + 1), strategy)


def test_without_hindsight_it_is_sac(tmp_path):
    """--n-sampled-goal 0 is sac_continuous.py on the same numbers as a plain vector, bit for bit.

    In episodes of one step, for it samples the unfinished ones too.
    """
    flags = [*FLAGS, "--total-timesteps=120", "--runs-dir"]
    main(SCRIPT, *flags, tmp_path / "goals", "--n-sampled-goal=0", "--env-id=OneStepGoal-v0")
    main("sac_continuous", *flags, tmp_path / "plain", "--env-id=OneStepPlain-v0")
    goals, plain = (
        read_checkpoint(run_dir(tmp_path / name))["parts"] for name in ("goals", "plain")
    )
    for name in ("begin", "end", "oldest", "newest"):
        del goals["replay"][name]
    same(goals, plain)


# === The environments =============================================================================
def test_point_reach_is_as_gymnasium_wants_it():
    check_env(gym.make("PointReach-v0").unwrapped)


@pytest.mark.slow
def test_point_reach_is_hopeless_by_chance():
    """Fewer than one random flight of twenty ends at the goal, though each could."""
    env = gym.make("PointReach-v0")
    env.reset(seed=1)
    env.action_space.seed(1)
    flights = []
    for _ in range(200):
        (start, _), flight, truncated = env.reset(), [], False
        while not truncated:
            obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
            flight.append((None, None, reward, obs, terminated, info))
            assert not terminated and np.array_equal(obs["desired_goal"], start["desired_goal"])
            assert env.observation_space.contains(obs)
            met = np.linalg.norm(obs["achieved_goal"] - obs["desired_goal"]) <= 0.1
            assert (reward, info["is_success"]) == ((0, True) if met else (-1, False))
        assert len(flight) == 50
        distance = np.abs(start["desired_goal"] - start["achieved_goal"]).max()
        assert distance < 50 * PointReach.SPEED
        flights.append(flight)
    assert success_rate(flights)["eval_success_rate"] < 0.05


def test_point_reach_flies_where_it_is_told_and_judges_many_at_once():
    env = PointReach()
    obs, _ = env.reset(seed=1)
    action = np.float32([0.5, -1, 0])
    after, *_ = env.step(action)
    assert np.allclose(after["observation"], obs["observation"] + 0.1 * action)
    for _ in range(40):
        after, *_ = env.step(action)
    assert after["observation"].tolist() == [1, -1, obs["observation"][2]]
    assert np.array_equal(after["achieved_goal"], after["observation"])
    one, other = np.random.default_rng(1).uniform(-0.1, 0.1, (2, 5, 7, 3)).astype(np.float32)
    rewards = env.compute_reward(one, other, {})
    assert rewards.shape == (5, 7) and set(rewards.ravel()) == {-1, 0}
    for i in np.ndindex(5, 7):
        assert rewards[i] == env.compute_reward(one[i], other[i], {})


def test_flattened_goals():
    """Observation, achieved goal and desired goal in this order, in float32, with their places."""
    env = FlattenGoal(gym.make("PointReach-v0"))
    obs, _ = env.reset(seed=1)
    world = env.unwrapped
    goals = world.observe()
    assert np.array_equal(goals["achieved_goal"], world.point)
    assert np.array_equal(goals["desired_goal"], world.goal)
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    assert np.array_equal(obs, [*world.point, *world.point, *world.goal])
    assert (env.achieved, env.desired) == (slice(3, 6), slice(6, 9))
    goals = np.float32([[0, 0, 0], [0, 0, 0.2]])
    assert env.reward_of(goals, goals[[0, 0]]).tolist() == [0, -1] and env.end_of is None


@pytest.mark.slow
def test_fetch_reach(batches, tmp_path):
    """A real task trains, and its relabelled rows are judged as it judges them one by one."""
    pytest.importorskip("gymnasium_robotics")
    flags = ["--env-id=gymnasium_robotics:FetchReach-v4", "--total-timesteps=200"]
    main(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path)
    assert len(batches) == 140 and metrics(run_dir(tmp_path))[-1]["eval_success_rate"]
    check_rewards(batches, gym.make("gymnasium_robotics:FetchReach-v4").unwrapped)
