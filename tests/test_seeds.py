"""Same seed, same run; and what must not draw from a run's random numbers."""

import numpy as np
import pytest
import torch
from helpers import (
    PENDULUM,
    each_kind,
    metrics,
    off_policy,
    same_training,
)


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
def test_same_seed_same_run(tiny_run, script):
    first, second = tiny_run(**PENDULUM[script]), tiny_run(**PENDULUM[script])
    same_training(first, second)
    assert metrics(first["run_dir"]) == metrics(second["run_dir"])


@off_policy
def test_another_seed_another_run(tiny_run, replays):
    """It changes the environment's draws and PyTorch's: here the initial weights, and an action."""
    weights = [
        tiny_run(env_id="Pendulum-v1", seed=seed, total_timesteps=1)["actor"].state_dict()
        for seed in (1, 2)
    ]
    for name, weight in weights[0].items():
        assert not torch.equal(weight, weights[1][name])
    one, two = (replay.gather(torch.tensor([0])) for replay in replays)
    assert not torch.equal(one.obs, two.obs) and not torch.equal(one.action, two.action)


@pytest.mark.slow_but("eval_frequency")
@each_kind
@pytest.mark.parametrize(
    "settings",
    [
        {"eval_frequency": 35, "eval_episodes": 2},
        {"log_frequency": 0},
        {"log_frequency": 1},
        {"checkpoint_frequency": 9},
        {"eval_episodes": 0},
    ],
    ids=str,
)
def test_watching_does_not_disturb(settings, tiny_run, script):
    """Evaluation, metrics and checkpoints draw no random number of the training run."""
    same_training(tiny_run(**PENDULUM[script]), tiny_run(**PENDULUM[script] | settings))


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
def test_evaluations_start_alike_whatever_the_seed(tiny_run, script, module, monkeypatch):
    original, starts = module.evaluate, []

    def evaluate(*args):
        trajectories = original(*args)
        starts.append(np.stack([trajectory[0][0] for trajectory in trajectories]))
        return trajectories

    monkeypatch.setattr(module, "evaluate", evaluate)
    for seed in (1, 2):
        tiny_run(**PENDULUM[script], seed=seed, eval_frequency=120, eval_episodes=3)
    assert [len(start) for start in starts] == [1, 3, 3] * 2, "one before training"
    assert len(np.unique(starts[1], axis=0)) == 3, "episodes differ from each other"
    for others in starts:
        np.testing.assert_array_equal(starts[1][: len(others)], others)
