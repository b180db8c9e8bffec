"""Slow: each script solves its default task with no flag but its seed, and how often it looks."""

import importlib
import statistics

import pytest
from helpers import SCRIPTS, metrics, three_seeds


@three_seeds
@pytest.mark.parametrize("script", SCRIPTS)
def test_pendulum_is_solved(script, seed, tmp_path):
    """By the median of the last six evaluations, since a solved policy falls back now and then.

    The peers' do so too (README), and which seed does at its last step changes with the processor.
    benchmarks/learning.py shows the last evaluations themselves.
    """
    module = importlib.import_module(script)
    settings = module.Args(seed=seed, runs_dir=str(tmp_path))
    settings.eval_frequency = settings.total_timesteps // 20
    results = module.train(settings)
    rows = metrics(results["run_dir"])
    returns = [float(mean) for row in rows if (mean := row["eval_return_mean"])]
    print(script, seed, returns, results["seconds"])
    assert len(returns) >= 20
    goal = -250 if script == "ppo_continuous" else -200
    assert statistics.median(returns[-6:]) >= goal > returns[0]


@three_seeds
def test_goals_are_met(seed, tmp_path):
    module = importlib.import_module("sac_her_continuous")
    results = module.train(module.Args(seed=seed, eval_episodes=100, runs_dir=str(tmp_path)))
    assert results["eval_success_rate"] >= 0.95
