"""How often there are updates, and that they reach every network."""

import itertools
import math

import pytest
import torch
from helpers import (
    after_each_step,
    off_policy,
    read_checkpoint,
    same,
)


@off_policy
def test_updates_happen(tiny_run):
    """Every tensor of every network moves, and without an update none does."""
    start, still, learnt = (
        torch.load(tiny_run(**settings)["run_dir"] / "model.pt", weights_only=True)
        for settings in ({"total_timesteps": 1}, {"updates_per_step": 0}, {})
    )
    same(start, still)
    for name, weight in learnt.items():
        assert not torch.equal(weight, start[name]), name


@off_policy
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_each_target_follows_its_own_network(tau, tiny_run, module):
    """At tau 1 they are equal after an update, at tau 0 the targets are where they began."""
    each = {"policy_frequency": 1} if hasattr(module.Args, "policy_frequency") else {}
    start = read_checkpoint(tiny_run(total_timesteps=1)["run_dir"])["parts"]["agent"]
    weights = read_checkpoint(tiny_run(tau=tau, **each)["run_dir"])["parts"]["agent"]
    targets = [name for name in weights if "_target." in name]
    assert targets
    for name in targets:
        own = name.replace("_target.", ".")
        assert torch.equal(weights[name], weights[own] if tau else start[own])
        assert not torch.equal(weights[own], start[own])


@pytest.mark.slow_but("sac_continuous")
@off_policy
@pytest.mark.parametrize("rate, expected", [(0.5, 22), (0.25, 11), (2, 90), (3, 135), (0.3, 13)])
def test_updates_per_step(rate, expected, tiny_run, module, monkeypatch):
    """floor(45 rate) in 45 learning steps, spread evenly, each on a batch of its own."""
    updates, batches, counted = [], [], []
    original_gather, original_update = module.ReplayBuffer.gather, module.update

    def gather(*args):
        batches.append(original_gather(*args))
        return batches[-1]

    def update(*args):
        updates.append(original_update(*args))
        return updates[-1]

    monkeypatch.setattr(module.ReplayBuffer, "gather", gather)
    monkeypatch.setattr(module, "update", update)
    after_each_step(module, monkeypatch, lambda run: counted.append(len(updates)))
    tiny_run(learning_starts=15, updates_per_step=rate)
    assert counted == [math.floor(max(step - 15, 0) * rate) for step in range(1, 61)]
    assert counted[-1] == len(batches) == expected
    for first, second in itertools.pairwise(batches):
        assert not torch.equal(first.action, second.action)
