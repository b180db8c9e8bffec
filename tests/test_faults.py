"""What stops a run, and what is kept: numbers that are not finite, faults of the environment."""

import itertools
import re

import numpy as np
import pytest
import torch
import worlds
from helpers import (
    OFF_POLICY,
    each_kind,
    metrics,
    read_checkpoint,
    run_dir,
)

worlds.register("Infinite-observation", worlds.Poisoned, 10, what="observation", value=np.inf)
worlds.register("Infinite-reward", worlds.Poisoned, 10, what="reward", value=-np.inf)


@each_kind
@pytest.mark.parametrize(
    "env_id, culprit",
    [
        ("worlds:Poisoned-observation-v0", "an observation"),
        ("worlds:Poisoned-reward-v0", "a reward"),
        ("Infinite-observation-v0", "an observation"),
        ("Infinite-reward-v0", "a reward"),
    ],
)
def test_poison(env_id, culprit, script, failed_run, tmp_path):
    """The 30th step is named, and none of it is in the checkpoint, which is of the last whole one.

    An environment that serves evaluation too has made ten steps by then.
    """
    message = failed_run(env_id=env_id, checkpoint_frequency=10)
    assert f"{env_id}: {culprit} is not finite" in message
    saved = read_checkpoint(run_dir(tmp_path / "runs0"))
    assert saved["progress"]["step"] == (19 if script in OFF_POLICY else 20)
    for name, part in saved["parts"].items():
        if not name.endswith("optimizer"):
            assert all(value.isfinite().all() for value in part.values() if torch.is_tensor(value))


@pytest.mark.parametrize(
    "script, resets, step, kept",
    [
        ("sac_continuous", 2, 0, None),  # the first reset is an evaluation's
        ("sac_continuous", 4, 10, 9),
        ("ppo_continuous", 3, 5, 0),
        ("ppo_continuous", 5, 15, 10),
    ],
    indirect=["script"],
)
def test_poison_at_a_reset(resets, step, kept, failed_run, monkeypatch, tmp_path):
    original, calls = worlds.Corridor.reset, itertools.count(1)

    def reset(self, **kwargs):
        obs, info = original(self, **kwargs)
        return (obs * np.nan if next(calls) == resets else obs), info

    monkeypatch.setattr(worlds.Corridor, "reset", reset)
    message = failed_run()
    assert "worlds:Endless-v0: an observation is not finite" in message
    if kept is not None:
        assert read_checkpoint(run_dir(tmp_path / "runs0"))["progress"]["step"] == kept


@each_kind
def test_poison_in_an_evaluation(script, failed_run):
    """10 steps of evaluation before training are safe, and these; later ones are not."""
    steps = {"total_timesteps": 10 if script in OFF_POLICY else 20}
    message = failed_run(env_id="worlds:Poisoned-reward-v0", eval_episodes=4, **steps)
    assert "worlds:Poisoned-reward-v0: a reward is not finite" in message


@pytest.mark.parametrize(
    "script, name, step",
    [("sac_continuous", "critic_loss", 21), ("ppo_continuous", "value_loss", 10)],
    indirect=["script"],
)
def test_poisoned_loss(name, step, failed_run, module, monkeypatch):
    """It is named when it is logged, here after the first updates."""
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: original(*args) * np.nan)
    message = failed_run(log_frequency=1)
    assert re.search(f"step {step}: .*_loss is not finite", message)


@each_kind
def test_a_fault_of_the_environment_keeps_its_traceback(tiny_run, script, tmp_path):
    with pytest.raises(ZeroDivisionError, match="a fault of the environment's own") as fault:
        tiny_run(env_id="worlds:Poisoned-exception-v0", checkpoint_frequency=10)
    assert fault.traceback[-1].path.name == "worlds.py"
    folder = run_dir(tmp_path / "runs0")
    off_policy = script in OFF_POLICY  # its environment has made ten steps of evaluation
    assert read_checkpoint(folder)["progress"]["step"] == (19 if off_policy else 20)
    assert [row["global_step"] for row in metrics(folder)] == (
        ["10"] if off_policy else ["10", "20"]
    )
