"""Slow: each script solves its default task with no flag but its seed."""

import importlib

import pytest
from helpers import SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("script", SCRIPTS)
def test_pendulum_is_solved(script, seed, tmp_path):
    module = importlib.import_module(script)
    results = module.train(module.Args(seed=seed, runs_dir=str(tmp_path)))
    print(script, seed, results["eval_return_mean"], results["seconds"])
    assert results["eval_return_mean"] >= (-250 if script == "ppo_continuous" else -200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_goals_are_met(seed, tmp_path):
    module = importlib.import_module("sac_her_continuous")
    results = module.train(module.Args(seed=seed, eval_episodes=100, runs_dir=str(tmp_path)))
    assert results["eval_success_rate"] >= 0.95
