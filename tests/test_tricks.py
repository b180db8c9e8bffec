"""TD3 without its three tricks is DDPG, bit for bit, and each of the tricks does something."""

import functools
from typing import Any

import pytest
import torch
import worlds  # noqa: F401, registers the environments
from helpers import metrics, read_checkpoint, same

import ddpg_continuous as ddpg
import td3_continuous as td3

OFF = {"double_q": False, "policy_frequency": 1, "policy_noise": 0.0}
COMMON: dict[str, Any] = {
    "total_timesteps": 300,
    "learning_starts": 100,
    "hidden_dim": 32,
    "batch_size": 32,
}
COMMON |= {"exploration_noise": 0.3, "num_threads": 1, "eval_episodes": 1, "log_frequency": 50}


@pytest.fixture(scope="module")
def result_of(tmp_path_factory):
    """Train; the checkpoint of the end and the rows of metrics.csv."""

    @functools.cache
    def cached(module, settings):
        runs = str(tmp_path_factory.mktemp("runs"))
        results = module.train(module.Args(**COMMON | {"runs_dir": runs} | dict(settings)))
        content = read_checkpoint(results["run_dir"])
        return content, metrics(results["run_dir"])

    return lambda module, **settings: cached(module, tuple(settings.items()))


def as_ddpg(mapping):
    """TD3's networks or metrics under DDPG's names, without its second critic."""
    kept = {k: v for k, v in mapping.items() if not k.startswith("q2")}
    return {"q" + k[2:] if k.startswith("q1") else k: v for k, v in kept.items()}


@pytest.mark.slow_but("[1]")
@pytest.mark.parametrize("seed", [1, 2])
def test_td3_without_its_tricks_is_ddpg(seed, result_of):
    settings = {"seed": seed, "max_grad_norm": 1.0}
    one, rows = result_of(ddpg, **settings)
    other, other_rows = result_of(td3, **settings, **OFF)
    other["parts"]["agent"] = as_ddpg(other["parts"]["agent"])
    same(other["parts"], one["parts"])  # networks, optimizers, replay
    same(other["progress"]["generators"], one["progress"]["generators"])
    same([as_ddpg(row) for row in other_rows], rows)
    assert len(rows) == 6 and float(rows[-1]["critic_loss"]) > 0


@pytest.mark.parametrize("trick", OFF)
@pytest.mark.slow
def test_each_trick_alone_changes_what_is_learnt(trick, result_of):
    """Gradients are not clipped here: the second critic acts through the target alone."""
    settings = {name: value for name, value in OFF.items() if name != trick}
    one, other = result_of(ddpg)[0], result_of(td3, **settings)[0]
    networks = as_ddpg(other["parts"]["agent"])
    for key, value in one["parts"]["agent"].items():
        if "optimizer" not in key:
            assert key.startswith(("actor", "q")) and not torch.equal(networks[key], value), key
    # Only the noise on the target's action draws random numbers.
    drawn = not torch.equal(other["progress"]["generators"][0], one["progress"]["generators"][0])
    assert drawn == (trick == "policy_noise")


# --- the delay ----------------------------------------------------------------------------------

BRIEF = {"env_id": "worlds:Endless-v0", "learning_starts": 10, "hidden_dim": 4, "batch_size": 4}
BRIEF |= {"num_threads": 1, "eval_frequency": 0, "eval_episodes": 1}


def steps_taken(content):
    return [int(content["parts"]["agent"][f"{name}_optimizer.t"]) for name in ("actor", "q")]


@pytest.mark.slow_but("[2-")
@pytest.mark.parametrize("rate", [0.5, 1, 3])
@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_the_delay_counts_updates_also_over_steps_and_a_resume(frequency, rate, tmp_path):
    """Stopped after an odd number of updates, and gone on with for another odd number of them."""
    settings = BRIEF | {"updates_per_step": rate, "policy_frequency": frequency}
    args = td3.Args(**settings, total_timesteps=25, runs_dir=str(tmp_path))
    run_dir = td3.train(args)["run_dir"]
    updates = int(15 * rate)
    assert steps_taken(read_checkpoint(run_dir)) == [updates // frequency, updates]
    td3.resume(str(run_dir / "checkpoint.pt"), total_timesteps=50)
    updates = int(40 * rate)
    assert steps_taken(read_checkpoint(run_dir)) == [updates // frequency, updates]


def test_actor_and_targets_wait_for_the_second_update(tmp_path):
    """Critics move at both."""
    agents = []
    for steps in (10, 11, 12):
        args = td3.Args(**BRIEF, total_timesteps=steps, runs_dir=str(tmp_path / str(steps)))
        agents.append(td3.train(args)["agent"].state_dict())
    for name in ("q1", "q2", "actor", "actor_target", "q1_target", "q2_target"):
        start, first, second = (agent[f"{name}.net.4.bias"] for agent in agents)
        assert torch.equal(start, first) == (name not in ("q1", "q2")), name
        assert not torch.equal(first, second), name
