"""PPO's metrics.csv: every column of every row, recomputed from rollouts and weights.

The rollouts are held against what the worlds saw themselves. Times are those of a clock that goes
on by a quarter of a second with every step of any world.
"""

import csv
import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ppo_by_hand import HIGH, LOW, ByHand, Roaming, network, small, true_steps, watch_updates

import ppo_continuous as ppo

ENVS, STEPS = 3, 16
SIZE = ENVS * STEPS
TICK = 0.25  # seconds
SURROGATES = ["clip", "clip-no-min", "kl-penalty", "unclipped"]
SWITCHED = {
    "as-it-is": {},
    "clip-vloss": {"clip_vloss": True},
    "no-norm-adv": {"norm_adv": False},
    "no-norm-obs": {"norm_obs": False},
    "no-norm-reward": {"norm_reward": False},
    "anneal-lr": {"anneal_lr": True},
    "target-kl": {"target_kl": 0.01},
    "other-numbers": {"gamma": 0.8, "gae_lambda": 0.5, "clip_coef": 0.03, "ent_coef": 0.1},
    "all-of-them": {
        "clip_vloss": True,
        "norm_adv": False,
        "norm_obs": False,
        "norm_reward": False,
        "anneal_lr": True,
        "target_kl": 0.03,
    },
}


@pytest.fixture
def clocked_worlds(monkeypatch):
    """All worlds of this test: first those of training, then that of evaluation."""
    made = []
    monkeypatch.setattr(Roaming, "made", made)
    steps = lambda: TICK * sum(len(world.happened) for world in made)  # noqa: E731
    clock = SimpleNamespace(perf_counter=steps, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(ppo, "time", clock)
    return made


def table(folder):
    """Rows of metrics.csv as numbers; an empty cell is None."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(cell) if cell else None for name, cell in row.items()} for row in rows]


def assert_rollout_is_true(rollout, worlds, first):
    """It is what the worlds saw from this step of each on."""
    for i, world in enumerate(worlds):
        truth = true_steps(world, first, first + STEPS)
        for name in ("obs", "next_obs", "reward", "terminated"):
            np.testing.assert_allclose(getattr(rollout, name)[:, i], getattr(truth, name), 1e-6)
        ended = truth.terminated | truth.truncated
        np.testing.assert_array_equal(rollout.ended[:, i], ended)


def episodes_ended(worlds, first, last):
    """(return, length) of those that ended in these steps, in the order of their ends."""
    ended = []
    for world in worlds:
        total, length = 0.0, 0
        for number, step in enumerate(world.happened[:last]):
            total, length = total + step.reward, length + 1
            if step.terminated or step.truncated:
                if number >= first:
                    ended.append((total, length))
                total, length = 0.0, 0
    return ended


def evaluated(by_hand, weights, episodes):
    """Returns of the mean action, cut at the bounds, from the starts of every evaluation."""
    returns, lengths = [], []
    for number in range(episodes):
        world = Roaming()
        obs, _ = world.reset(seed=1_000_000 + number)
        done = False
        while not done:
            mean = network(weights, "actor.net", by_hand.normalise(obs, by_hand.seen))
            action = LOW + (HIGH - LOW) * (np.clip(mean, -1, 1) + 1) / 2
            obs, _, terminated, truncated, _ = world.step(action.astype(np.float32))
            done = terminated or truncated
        returns.append(sum(step.reward for step in world.happened))
        lengths.append(len(world.happened))
    return returns, sum(lengths)


def assert_row(row, expected, by_hand):
    """The same columns, and the same numbers in them."""
    assert row.keys() == expected.keys(), "a column that this test does not recompute"
    for name, value in expected.items():
        if value is None:
            assert row[name] is None, name
        else:
            unsure = by_hand.at_the_border * (name == "clip_fraction")
            assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-5 + unsure), name


def expected_row(by_hand, one, worlds, number, clock):
    """Of iteration `number`, from 0. `clock` has the seconds before it, and takes those after."""
    last = STEPS * (number + 1)
    assert_rollout_is_true(one.rollout, worlds, last - STEPS)
    clock.seconds += SIZE * TICK
    row = {"global_step": SIZE * (number + 1), "seconds": clock.seconds}
    row["sps"] = row["global_step"] / clock.seconds
    row["episodes"] = len(episodes_ended(worlds, 0, last))
    ended = episodes_ended(worlds, last - STEPS, last)
    assert ended
    row["episodic_return"], row["episodic_length"] = np.mean(ended, axis=0)
    columns = by_hand.columns(by_hand.look_back(one.rollout, one.before), one.after)
    returns, length = evaluated(by_hand, one.after, 2)
    clock.seconds += length * TICK
    row |= {"eval_return_mean": np.mean(returns), "eval_return_std": np.std(returns)}
    return row | {"eval_episodes": 2} | columns


@pytest.mark.slow_but("as-it-is", "all-of-them", "kl-penalty")
@pytest.mark.parametrize("switched", SWITCHED)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_column(surrogate, switched, clocked_worlds, tmp_path, monkeypatch):
    """Of three iterations, with an evaluation after each."""
    seen = watch_updates(monkeypatch)
    changes = {"surrogate": surrogate, "eval_frequency": 1, "eval_episodes": 2}
    args = small(tmp_path, **changes | SWITCHED[switched])
    folder = ppo.train(args)["run_dir"]
    rows, by_hand, clock = table(folder), ByHand(args), SimpleNamespace(seconds=0.0)
    worlds = clocked_worlds[:ENVS]
    assert len(rows) == len(seen) == 3
    for number, (row, one) in enumerate(zip(rows, seen, strict=True)):
        expected = expected_row(by_hand, one, worlds, number, clock)
        expected["sps"] = round(expected["sps"], 1)
        assert_row(row, expected, by_hand)
    assert max(row["kl"] for row in rows) > 0.003, "the policy moves"
    assert 0 < max(row["clip_fraction"] for row in rows) < 1


def recomputed(seen, args):
    by_hand = ByHand(args)
    return [by_hand.columns(by_hand.look_back(x.rollout, x.before), x.after) for x in seen]


@pytest.mark.parametrize(
    "name, value, columns",
    [
        ("clip_vloss", True, ["value_loss"]),
        ("norm_adv", False, ["policy_loss"]),
        ("norm_obs", False, ["policy_loss", "value_loss", "v", "kl", "explained_variance"]),
        ("norm_reward", False, ["value_loss", "explained_variance"]),
        ("clip_coef", 0.02, ["policy_loss", "clip_fraction"]),
        ("surrogate", "clip-no-min", ["policy_loss"]),
        ("surrogate", "unclipped", ["policy_loss"]),
        ("surrogate", "kl-penalty", ["policy_loss", "kl_coef"]),
        ("gamma", 0.8, ["policy_loss", "value_loss", "explained_variance"]),
        ("gae_lambda", 0.5, ["policy_loss", "value_loss", "explained_variance"]),
    ],
)
def test_these_columns_tell_the_setting(name, value, columns, tmp_path, monkeypatch):
    """Else the test above could not see a setting that has no effect."""
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, anneal_lr=False)
    ppo.train(args)
    other = dataclasses.replace(args, **{name: value})
    pairs = list(zip(recomputed(seen, args), recomputed(seen, other), strict=True))
    for column in columns:
        different = [abs(a[column] - b[column]) > 1e-3 * abs(a[column]) + 1e-4 for a, b in pairs]
        assert any(different), column


def test_columns_of_a_resumed_run(clocked_worlds, tmp_path, monkeypatch):
    """All counters and moments go on; every environment begins anew, its return and length too."""
    seen = watch_updates(monkeypatch)
    changes = {"surrogate": "kl-penalty", "eval_frequency": 1, "eval_episodes": 2}
    args = small(tmp_path, total_timesteps=SIZE, **changes)
    folder = ppo.train(args)["run_dir"]
    first = clocked_worlds[:ENVS]
    clocked_worlds.clear()
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=3 * SIZE)
    second = clocked_worlds[:ENVS]
    rows, by_hand, clock = table(folder), ByHand(args), SimpleNamespace(seconds=0.0)
    assert len(rows) == len(seen) == 3

    assert_row(rows[0], expected_row(by_hand, seen[0], first, 0, clock), by_hand)
    by_hand.begin_anew()
    old = episodes_ended(first, 0, STEPS)
    for number in (0, 1):
        expected = expected_row(by_hand, seen[1 + number], second, number, clock)
        expected["global_step"] += SIZE
        expected["sps"] = round(expected["global_step"] / expected["seconds"], 1)
        expected["episodes"] += len(old)
        assert_row(rows[1 + number], expected, by_hand)
    last = [world.happened[-1] for world in first]
    assert not all(step.terminated or step.truncated for step in last), "some are left behind"


def test_episodes_that_wait_for_a_row_are_resumed_too(clocked_worlds, tmp_path):
    """The row comes after two iterations, the run is stopped after one."""
    args = small(tmp_path, total_timesteps=SIZE, log_frequency=2 * SIZE)
    folder = ppo.train(args)["run_dir"]
    first = clocked_worlds[:ENVS]
    clocked_worlds.clear()
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=3 * SIZE)
    second = clocked_worlds[:ENVS]
    before, after = episodes_ended(first, 0, STEPS), episodes_ended(second, 0, STEPS)
    both, last = table(folder)
    assert both["global_step"] == 2 * SIZE and last["global_step"] == 3 * SIZE
    assert both["episodes"] == len(before) + len(after)
    assert both["episodic_return"] == pytest.approx(np.mean([r for r, _ in before + after]))
    assert both["episodic_length"] == pytest.approx(np.mean([n for _, n in before + after]))
    assert last["episodes"] == both["episodes"] + len(episodes_ended(second, STEPS, 2 * STEPS))


def test_an_iteration_without_an_end_leaves_two_cells_empty(clocked_worlds, tmp_path):
    """Episodes are longer than a rollout of a single step."""
    args = small(tmp_path, num_envs=1, num_steps=1, num_minibatches=1, total_timesteps=12)
    rows = table(ppo.train(args)["run_dir"])
    (world,) = clocked_worlds
    count = 0
    for row, step in zip(rows, world.happened, strict=True):
        ended = step.terminated or step.truncated
        count += ended
        assert (row["episodic_return"] is not None) == ended
        assert (row["episodic_length"] is not None) == ended
        assert row["episodes"] == count
    assert 0 < count < 12


def test_a_row_has_the_values_of_its_own_iteration(tmp_path, monkeypatch):
    """Where only every third iteration has a row, that of the third is shown."""
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, log_frequency=3 * SIZE, total_timesteps=6 * SIZE)
    rows = table(ppo.train(args)["run_dir"])
    columns = recomputed(seen, args)
    assert [row["global_step"] for row in rows] == [3 * SIZE, 6 * SIZE]
    for row, expected in zip(rows, (columns[2], columns[5]), strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
