"""Hindsight in a run: which episodes a batch is from, who judges it, and the task it is for."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import TINY

import sac_her_continuous as sac_her
from her_utils import KEYS, FlattenGoal, HindsightReplayBuffer, PointReach

LIMIT = 6


class Stroll(gym.Env):
    """A walk to a goal of which every number tells its step; it is cut, or terminates, or both.

    The reward is minus the distance to the goal. What is achieved is not what is observed.
    """

    made: list["Stroll"] = []

    def __init__(self):
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(KEYS, box))
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.lengths = []
        Stroll.made.append(self)

    def compute_reward(self, achieved, desired, info):
        return -np.linalg.norm(achieved - desired, axis=-1)

    def observe(self):
        values = np.float32([[self.time, 0], self.place, self.goal])
        return dict(zip(KEYS, values, strict=True))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.lengths.append(0)
        self.time = 0
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.end = self.np_random.integers(2, LIMIT + 3)
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        self.lengths[-1] += 1
        self.place = self.place + self.np_random.uniform(-1, 1, 2)
        reward = float(self.compute_reward(*np.float32([self.place, self.goal]), {}))
        return self.observe(), reward, self.time == self.end, False, {"is_success": False}


gym.register("Stroll-v0", Stroll, max_episode_steps=LIMIT)
STROLL = "test_her_wiring:Stroll-v0"


@pytest.fixture(autouse=True)
def strolls(monkeypatch):
    monkeypatch.setattr(Stroll, "made", [])
    return Stroll.made


def short_run(tmp_path, **settings):
    settings = TINY["sac_her_continuous"] | {"env_id": STROLL, "runs_dir": str(tmp_path)} | settings
    return sac_her.train(sac_her.Args(**settings))


# === A run ========================================================================================
@pytest.mark.parametrize("capacity", [1000, 23])
def test_a_batch_is_from_all_finished_episodes_and_no_other(
    capacity, strolls, tmp_path, monkeypatch
):
    """Also in the very step in which one ends, and where the ring has lost the first ones."""
    sample, update, seen, batches = HindsightReplayBuffer.sample, sac_her.update, [], []

    def noted(replay, size):
        seen.append((replay.added, replay.oldest, replay.newest))
        rows = replay.row(torch.arange(replay.oldest, replay.newest))
        seen[-1] += (replay.begin[rows].tolist(), replay.end[rows].tolist())
        batches.append(sample(replay, size))
        return batches[-1]

    def learnt(agent, batch, args):
        assert batch is batches[-1]
        return update(agent, batch, args)

    monkeypatch.setattr(HindsightReplayBuffer, "sample", noted)
    monkeypatch.setattr(sac_her, "update", learnt)
    short_run(tmp_path, buffer_size=capacity, learning_starts=1)
    # The first two are to try out goals and evaluation, the last two one cut off and evaluation.
    lengths = strolls[0].lengths[2:-2]
    ends = [0, *itertools.accumulate(lengths)]
    first = ends[1]
    assert [added for added, *_ in seen] == [*range(max(first, 2), 61)]
    for added, oldest, newest, begins, finishes in seen:
        finished = [(a, b) for a, b in itertools.pairwise(ends) if b <= added]
        kept = [(a, b) for a, b in finished if a >= added - capacity]
        assert (oldest, newest) == (kept[0][0], kept[-1][1])
        assert begins == [a for a, b in kept for _ in range(a, b)]
        assert finishes == [b for a, b in kept for _ in range(a, b)]
    assert LIMIT in lengths and min(lengths) < LIMIT, "some are cut and some are not"


def test_goals_of_a_batch_are_drawn_one_by_one(tmp_path, monkeypatch):
    """Two rows of one transition may get different goals, and which rows get one is drawn too."""
    env = FlattenGoal(Stroll())
    replay = HindsightReplayBuffer(sac_her.ReplayBuffer(40, 6, 1), env)
    obs, _ = env.reset(seed=1)
    for _ in range(LIMIT):
        after, *_ = env.step(np.zeros(1, np.float32))
        replay.add(obs, 0, 0, after, 0)
        obs = after
    replay.end_episode()
    replay.share = 0.5
    batch = replay.sample(2000)
    goals = {}
    for row in batch.obs.tolist():
        goals.setdefault(row[0], set()).add(tuple(row[4:]))
    assert [len(goals[time]) for time in range(LIMIT)] == [7, 6, 5, 4, 3, 2]


def test_what_is_left_of_a_long_episode_begins_where_the_ring_does(capsys):
    """Goals are drawn from what is left alone. While it lasts a note says why updates wait."""
    replay = HindsightReplayBuffer(sac_her.ReplayBuffer(10, 6, 1), FlattenGoal(Stroll()))
    replay.strategy = "episode"
    for number in range(23):
        replay.add(np.zeros(6), 0, 0, np.full(6, number), 0)
    assert not replay.ready()
    assert "--buffer-size must hold two of them" in capsys.readouterr().out
    replay.end_episode()
    assert replay.ready() and (replay.oldest, replay.newest) == (13, 23)
    assert replay.begin.tolist() == [13] * 10 and replay.end.tolist() == [23] * 10
    goals = replay.goal_number(torch.full((1000,), 15))
    assert set(goals.tolist()) == set(range(13, 23))


def test_defaults_are_those_of_the_paper():
    """k = 4 and `future`, in the script and in the buffer [2017, sec. 4.5]."""
    args = sac_her.Args()
    assert (args.n_sampled_goal, args.goal_strategy) == (4, "future")
    replay = HindsightReplayBuffer(sac_her.ReplayBuffer(40, 6, 1), FlattenGoal(Stroll()))
    assert (replay.share, replay.strategy) == (0.8, "future")


# === Who judges ===================================================================================
def test_a_judge_that_needs_what_a_reset_makes():
    """It is asked after a reset."""

    class Calibrated(Stroll):
        def reset(self, **kwargs):
            self.unit = 2.0
            return super().reset(**kwargs)

        def compute_reward(self, achieved, desired, info):
            return super().compute_reward(achieved, desired, info) / self.unit

    env = FlattenGoal(Calibrated())
    goals = np.float32([[0, 0], [3, 4]])
    assert env.reward_of(goals, goals[::-1]).tolist() == [-2.5, -2.5]


def test_an_answer_that_depends_on_the_others_of_a_batch():
    """Of many pairs at once it has the right shape, and other numbers than one pair alone."""

    class Relative(Stroll):
        def compute_reward(self, achieved, desired, info):
            distance = np.linalg.norm(achieved - desired, axis=-1)
            return -distance / np.maximum(np.max(distance), 1)

    env = FlattenGoal(Relative())
    achieved, desired = np.zeros((3, 2), np.float32), np.float32([[0, 0], [0.5, 0], [5, 0]])
    assert env.reward_of(achieved, desired).tolist() == [0, -0.5, -1]


@pytest.mark.parametrize("wrong, noted", [(0, False), (1, False), (2, True), (10, True)])
def test_a_note_on_rewards_where_more_than_one_in_ten_differs(wrong, noted, capsys):
    """Between steps and hindsight; only the first episode is looked at, and rounding is none."""
    env = FlattenGoal(Stroll())
    replay = HindsightReplayBuffer(sac_her.ReplayBuffer(40, 6, 1), env)
    rng = np.random.default_rng(1)
    for episode in range(2):
        for number in range(10):
            obs, after = rng.normal(size=(2, 6)).astype(np.float32)
            reward = -np.linalg.norm(after[2:4] - after[4:6]) + 0.0005
            if number < wrong or episode == 1:
                reward -= 0.02
            replay.add(obs, 0, reward, after, 0)
        replay.end_episode()
        notes = capsys.readouterr().out.count("step() and compute_reward give different rewards")
        assert notes == (noted and episode == 0)


# === The task =====================================================================================
def test_flights_differ_and_obey_their_seed():
    """Start and goal are drawn uniformly from the cube, the same ones for the same seed."""
    env = PointReach()
    starts = []
    for seed in [*range(300), *range(300)]:
        obs, _ = env.reset(seed=seed)
        starts.append([*obs["achieved_goal"], *obs["desired_goal"]])
    starts = np.array(starts)
    np.testing.assert_array_equal(starts[:300], starts[300:])
    assert len(np.unique(starts[:300], axis=0)) == 300
    assert abs(starts).max() <= 1
    np.testing.assert_allclose(starts[:300].mean(0), 0, atol=0.15)
    np.testing.assert_allclose(starts[:300].std(0), 1 / 3**0.5, atol=0.08)


@pytest.mark.parametrize("distance, met", [(0.099, True), (0.101, False)])
def test_a_tenth_is_near_enough(distance, met):
    """Measured after the action, which moves the point by a tenth of it."""
    env = PointReach()
    env.reset(seed=1)
    env.point = np.float32([0, 0, 0])
    env.goal = np.float32([0.1 + distance, 0, 0])
    obs, reward, terminated, truncated, info = env.step(np.float32([1, 0, 0]))
    np.testing.assert_allclose(obs["achieved_goal"], [0.1, 0, 0])
    assert (reward, info["is_success"]) == (0 if met else -1, met)
    assert not terminated and not truncated


def test_what_is_drawn():
    """From above: the goal green, the point black, where they are, and the larger the higher."""
    env = PointReach(render_mode="rgb_array")
    env.reset(seed=1)
    env.point, env.goal = np.float32([-0.5, 0.5, -0.9]), np.float32([0.5, -0.5, 0.9])
    image = env.render()
    black, green = ((image == colour).all(-1) for colour in ((0, 0, 0), (0, 160, 0)))
    for place, seen in ((env.point, black), (env.goal, green)):
        rows, columns = np.nonzero(seen)
        assert columns.mean() == pytest.approx(64 + 50 * place[0], abs=1)
        assert rows.mean() == pytest.approx(64 + 50 * place[1], abs=1)
    assert black.sum() < green.sum()
    assert (image == 255).all(-1).sum() + black.sum() + green.sum() == 128 * 128


def test_a_temperature_of_nothing_cannot_be_tuned(tmp_path):
    """Its logarithm is what is tuned."""
    changes = {"env_id": "PointReach-v0", "alpha": 0.0, "runs_dir": str(tmp_path / "runs")}
    with pytest.raises(sac_her.RunError, match="--no-autotune"):
        sac_her.train(sac_her.Args(**TINY["sac_her_continuous"] | changes))
    assert not (tmp_path / "runs").exists()
