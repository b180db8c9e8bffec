"""Every flag of every script has its effect on what it names, and on nothing else.

Each flag is set to another value than its default, and a short run of train() is watched: what
changes against the run without it? A flag without a test fails here; so does another default.
"""

import collections
import dataclasses
import importlib
import importlib.machinery
import json
import math
import random
import sys
import types
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from journal import (
    EVAL_SEED,
    GAUSSIAN,
    GOAL,
    HER,
    NOISY,
    PER,
    WATCHED,
    Wayfarer,
    column,
    copied,
    distance_from_uniform,
    ended,
    grouped,
    numbers,
    policy_mean,
    rows_of_table,
    settings_of,
    step_numbers,
    stored,
    watched_run,
    without_waiting,
)
from oracles import q_value

import ppo_continuous as ppo

PPO = "ppo_continuous"
SAC = ["sac_continuous", HER]
V1 = "sac_v1_value_net"
ALL = [*WATCHED, PPO]

# === All flags, with their defaults ===============================================================
EVERYWHERE: dict[str, Any] = {
    "env_id": "Pendulum-v1",
    "env_kwargs": "{}",
    "max_episode_steps": 0,
    "seed": 1,
}
EVERYWHERE |= {"device": "cpu", "num_threads": 1, "gamma": 0.99, "compile": False}
EVERYWHERE |= {"log_frequency": 100, "eval_frequency": 2500, "eval_episodes": 10}
EVERYWHERE |= {"checkpoint_frequency": 5000, "resume": "", "runs_dir": "runs", "track": False}
OFF_POLICY: dict[str, Any] = {
    "hidden_dim": 256,
    "policy_lr": 3e-4,
    "q_lr": 1e-3,
    "tau": 0.005,
    "batch_size": 256,
}
OFF_POLICY |= {"buffer_size": 1_000_000, "learning_starts": 1000, "updates_per_step": 1.0}
OFF_POLICY |= {"max_grad_norm": 0.0}
TUNED = {"autotune": True, "alpha": 0.2, "alpha_lr": 1e-3, "target_entropy_scale": 1.0}
EXPLORING = {"exploration_noise": 0.1, "exploration_noise_final": 0.1}
TRICKS = {"double_q": True, "policy_frequency": 2, "policy_noise": 0.2, "noise_clip": 0.5}
OWN: dict[str, dict[str, Any]] = {
    "sac_continuous": OFF_POLICY | TUNED | {"total_timesteps": 10_000},
    HER: OFF_POLICY
    | TUNED
    | {"env_id": "PointReach-v0", "total_timesteps": 10_000}
    | {"n_sampled_goal": 4, "goal_strategy": "future"},
    V1: OFF_POLICY
    | {"alpha": 0.05, "reward_scale": 1.0, "policy_reg": 0.0, "total_timesteps": 10_000},
    "td3_continuous": OFF_POLICY | EXPLORING | TRICKS | {"total_timesteps": 15_000},
    PER: OFF_POLICY
    | EXPLORING
    | TRICKS
    | {"per_alpha": 0.6, "per_beta": 0.4, "total_timesteps": 15_000},
    "ddpg_continuous": OFF_POLICY | EXPLORING | {"total_timesteps": 15_000},
    PPO: {"total_timesteps": 102_400, "num_envs": 1, "async_envs": False, "num_steps": 2048}
    | {"num_minibatches": 32, "update_epochs": 10, "hidden_dim": 64, "learning_rate": 3e-4}
    | {"anneal_lr": False, "gae_lambda": 0.95, "surrogate": "clip", "clip_coef": 0.2}
    | {"kl_coef": 1.0, "kl_coef_target": 0.01, "clip_vloss": False, "norm_obs": True}
    | {"norm_reward": True, "norm_adv": True, "ent_coef": 0.0, "vf_coef": 0.5}
    | {"max_grad_norm": 0.5, "target_kl": 0.0},
}
DEFAULTS = {script: EVERYWHERE | own for script, own in OWN.items()}
ELSEWHERE = {"resume": "test_checkpoints.py"}  # the tests of these flags


def having(*flags):
    """The scripts that have all of these flags."""
    return [script for script in ALL if all(flag in DEFAULTS[script] for flag in flags)]


COVERED = collections.defaultdict(set)  # by script, the flags that a test in this file is of


def of(*flags, scripts=None):
    """The test is of these flags; it runs for these scripts, or for all that have them."""
    scripts = having(*flags) if scripts is None else scripts
    for script in scripts:
        COVERED[script] |= set(flags)
    return pytest.mark.parametrize("script", scripts, indirect=True)


every = pytest.mark.parametrize("script", ALL, indirect=True)


@every
def test_the_defaults(script, module):
    """Another default is another program. docs/defaults.md says where each comes from."""
    assert dataclasses.asdict(module.Args()) == DEFAULTS[script]
    for field in dataclasses.fields(module.Args):
        assert type(field.default) is type(DEFAULTS[script][field.name]), field.name


@every
def test_every_flag_has_a_test_of_its_effect(script, module):
    """Here or, for a few, in the file that is named above."""
    for flag, file in ELSEWHERE.items():
        assert flag in (Path(__file__).parent / file).read_text()
    flags = {field.name for field in dataclasses.fields(module.Args)}
    changed = {flag for flag, *_ in EFFECTS if flag in DEFAULTS[script]}
    if script == PPO:
        changed = {flag for flag, *_ in EFFECTS_IN_PPO}
    alone = {"env_id", "hidden_dim", "device", "async_envs"}  # they cannot be compared that way
    assert COVERED[script] | set(ELSEWHERE) == flags
    assert changed | alone | set(ELSEWHERE) >= flags


# === What changes in a run of an off-policy script ================================================
# Two things are at stake: what must change with a flag, and what may change as a consequence. All
# else must stay, to the bit.
BRIEF = {"total_timesteps": 22, "learning_starts": 20}
LONGER = {"total_timesteps": 30}
CRITICS = "q q1 q2"
AFTER_TARGET = f"q_optimizer {CRITICS} v_optimizer v actor_optimizer actor slow"
LEARNT = f"{AFTER_TARGET} alpha_optimizer log_alpha"
DRAWN = "warm-up starts action rows generator targets later " + LEARNT

# Flag, value, what must change, what may, and other settings of both runs.
EFFECTS: list[Any] = [
    ("policy_lr", 0.02, "actor", "slow later", {}),
    ("q_lr", 0.02, f"{CRITICS} v", "actor_optimizer v_optimizer actor slow later", {}),
    ("alpha_lr", 0.02, "log_alpha", "later", {}),
    ("gamma", 0.5, "targets q_optimizer", AFTER_TARGET + " later", {}),
    ("tau", 0.5, "slow", "later", {}),
    ("batch_size", 16, "rows targets q_optimizer generator", LEARNT + " later", {}),
    ("buffer_size", 15, "rows targets", LEARNT + " later", {}),
    ("learning_starts", 21, "updates action rows targets", DRAWN, {}),
    ("updates_per_step", 2.0, "updates", "later", {}),
    (
        "max_grad_norm",
        1e-3,
        "q_optimizer actor_optimizer v_optimizer alpha_optimizer",
        LEARNT + " later",
        {},
    ),
    ("autotune", False, "alpha_optimizer log_alpha", "later", {}),
    ("alpha", 0.5, "actor_optimizer", f"initial targets {LEARNT} later", {}),
    ("target_entropy_scale", 0.5, "alpha_optimizer", "log_alpha later", {}),
    ("reward_scale", 3.0, "targets q_optimizer", AFTER_TARGET + " later", {}),
    ("policy_reg", 0.5, "actor_optimizer", "actor later", {}),
    ("exploration_noise", 0.3, "action", f"targets {AFTER_TARGET} later", {}),
    ("exploration_noise_final", 0.3, "action", f"targets {AFTER_TARGET} later", {}),
    ("double_q", False, "targets q_optimizer q2", AFTER_TARGET + " later", {}),
    ("policy_frequency", 3, "actor_optimizer actor slow", "later", {}),
    ("policy_noise", 0.5, "targets q_optimizer", AFTER_TARGET + " later", {}),
    ("noise_clip", 0.01, "targets q_optimizer", AFTER_TARGET + " later", {}),
    ("per_alpha", 0.1, "later", "", {"total_timesteps": 26}),
    ("per_beta", 0.9, "later", "", {"total_timesteps": 26}),
    ("n_sampled_goal", 1, "targets", LEARNT + " later", {}),
    ("goal_strategy", "episode", "targets", LEARNT + " later", {}),
    ("seed", 2, "initial made warm-up starts action rows targets generator", "ends " + DRAWN, {}),
    ("env_kwargs", '{"shift": 3.0}', "starts targets", "action later " + LEARNT, {}),
    ("max_episode_steps", 1, "starts ends", DRAWN, {}),
    ("num_threads", 2, "threads", "", {}),
    ("total_timesteps", 26, "steps updates", "later", {}),
    ("log_frequency", 3, "", "", {}),
    ("eval_frequency", 7, "", "", {"eval_episodes": 1}),
    ("eval_episodes", 2, "", "", {"eval_episodes": 1}),
    ("checkpoint_frequency", 4, "", "", {}),
    ("runs_dir", "another", "", "", {}),
    ("track", True, "", "", {}),
    ("compile", True, "", "", {}),
]


def plain(value):
    """The same in lists and numbers, which == compares."""
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value.tolist() if hasattr(value, "tolist") else value


def trace(seen):
    """What a run was, in parts, up to its first update. `later` is of the updates after it."""
    first, *others = seen.updates
    parts = {
        "initial": seen.initial,
        "made": seen.world.made_with,
        "starts": [(reset.seed, reset.obs) for reset in seen.resets[:4]],
        "ends": [ended(step) for step in seen.steps[:20]],
        "warm-up": [step.action for step in seen.steps[:20]],
        "action": seen.steps[20].action,
        "rows": step_numbers(seen, first.batch),
        "targets": first.targets,
        "generator": first.generator,
        "updates": [one.step for one in seen.updates],
        "steps": len(seen.steps),
        "threads": sorted({one.threads for one in seen.updates}),
        "later": [(one.rest[0] if len(one.rest) == 3 else 0, one.after) for one in others],
        "slow": {},
    }
    parts |= first.gradients
    for name, values in first.after.items():
        if name.endswith("_target"):
            parts["slow"][name] = values
        else:
            parts[name] = values
    return plain(parts)


def fake_wandb(monkeypatch):
    """A stand-in for the library; what was sent to it."""
    sent = SimpleNamespace(init=[], log=[], finished=0)

    class Tracker:
        def log(self, row, step):
            sent.log.append((row, step))

        def finish(self):
            sent.finished += 1

    def init(**options):
        sent.init.append(options)
        return Tracker()

    library = types.ModuleType("wandb")
    library.init = init
    library.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", library)
    return sent


@pytest.fixture(scope="module")
def trace_of(tmp_path_factory):
    """The trace of a run, made once for each script and settings."""
    made = {}

    def trace_of(script, **changes):
        changes = BRIEF | changes
        key = (script, *sorted(changes.items()))
        if key not in made:
            if "policy_frequency" in DEFAULTS[script]:
                changes = {"policy_frequency": 1} | changes
            runs_dir = str(tmp_path_factory.mktemp("runs"))
            seen = watched_run(script, **{"runs_dir": runs_dir} | changes)
            made[key] = trace(seen)
        return made[key]

    return trace_of


def changed(one, other):
    return {name for name in one | other if one.get(name) != other.get(name)}


CASES = [
    pytest.param(script, *effect, id=f"{effect[0]}-{script}")
    for effect in EFFECTS
    for script in WATCHED
    if effect[0] in DEFAULTS[script]
]
# Where it is not as above: at a fixed temperature nothing but the actor's and the value's loss.
OTHERS = {("alpha", V1): ("actor_optimizer v_optimizer", "actor v slow later")}


@pytest.mark.parametrize("script, flag, value, must, may, both", CASES, indirect=["script"])
def test_what_a_flag_changes(
    script, flag, value, must, may, both, module, trace_of, tmp_path, monkeypatch
):
    """What must change does, and nothing else but its consequences."""
    must, may = OTHERS.get((flag, script), (must, may))
    fake_wandb(monkeypatch)
    monkeypatch.setattr(module, "compiled", lambda update, device: update)
    default = trace_of(script, **both)
    if flag == "runs_dir":
        value = str(tmp_path / value)
    assert value != DEFAULTS[script][flag]
    difference = changed(default, trace_of(script, **both | {flag: value}))
    must, may = set(must.split()), set(may.split())
    assert not (must & set(default)) - difference
    assert not difference - must - may


# === What they do: learning =======================================================================
@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A watched run of a script, made once for all tests that ask for the same."""
    made = {}

    def run_of(script, **changes):
        key = (script, *sorted(changes.items(), key=str))
        if key not in made:
            if "policy_frequency" in DEFAULTS[script]:
                changes = {"policy_frequency": 1} | changes
            made[key] = watched_run(script, tmp_path_factory.mktemp("runs"), **BRIEF | changes)
        return made[key]

    return run_of


def nothing(agent):
    """In place of an update: nothing is learnt."""


def first_update(run_of, script, **changes):
    return run_of(script, **changes).updates[0]


def largest_step(one, name):
    """Of any weight of this network, in an update."""
    pairs = zip(one.before[name], one.after[name], strict=True)
    return max(abs(after - before).max() for before, after in pairs)


RATE_OF = {"actor": "policy_lr", "q": "q_lr", "q1": "q_lr", "q2": "q_lr", "v": "q_lr"}
RATE_OF |= {"log_alpha": "alpha_lr"}


@of("policy_lr", "q_lr")
@pytest.mark.parametrize("rates", [(0.011, 0.023, 0.037), (0.031, 0.0, 0.013), (0.0, 0.017, 0.0)])
def test_step_sizes(rates, run_of, script):
    """Adam's first step is as long as its step size wherever there is a slope."""
    sizes = dict(zip(("policy_lr", "q_lr", "alpha_lr"), rates, strict=True))
    sizes = {flag: size for flag, size in sizes.items() if flag in DEFAULTS[script]}
    one = first_update(run_of, script, **sizes)
    for name in one.after:
        if not name.endswith("_target"):
            expected = sizes[RATE_OF[name]]
            assert largest_step(one, name) == pytest.approx(expected, rel=1e-3), name


@of("alpha_lr")
def test_step_size_of_the_temperature(run_of, script):
    for rate in (0.037, 0.0021):
        one = first_update(run_of, script, alpha_lr=rate)
        assert largest_step(one, "log_alpha") == pytest.approx(rate, rel=1e-3)


def length(gradients):
    return math.sqrt(sum((gradient**2).sum() for gradient in gradients))


@of("max_grad_norm", scripts=WATCHED)
def test_gradients_are_cut_to_their_limit(run_of, script):
    """Those of each optimizer together, before its step; shorter ones stay as they are."""
    free = first_update(run_of, script).gradients
    for limit in (1e-3, 1e9):
        cut = first_update(run_of, script, max_grad_norm=limit).gradients
        assert cut.keys() == free.keys()
        for name, ((short,), (long,)) in {n: (cut[n], free[n]) for n in cut}.items():
            if limit == 1e-3:
                assert length(long) > 2 * limit
                assert length(short) == pytest.approx(limit, rel=1e-3), name
            else:
                assert length(short) == pytest.approx(length(long), rel=1e-6), name
    q_cut = first_update(run_of, script, max_grad_norm=1e-3).gradients["q_optimizer"][0]
    factor = 1e-3 / length(free["q_optimizer"][0])
    for short, long in zip(q_cut, free["q_optimizer"][0], strict=True):
        np.testing.assert_allclose(short, factor * long, rtol=1e-3, atol=1e-9)


@of("gamma", scripts=WATCHED)
def test_the_future_is_discounted(run_of, script):
    """The target at 0 is the reward alone; it grows in proportion to gamma, where d is 0."""
    one = first_update(run_of, script, gamma=0.0)
    reward, terminated = one.batch.reward.numpy(), one.batch.terminated.numpy() == 1
    for target in one.targets:
        np.testing.assert_allclose(target, reward, rtol=1e-6)
    half, whole = (first_update(run_of, script, gamma=gamma).targets[0] for gamma in (0.5, 1.0))
    np.testing.assert_allclose(half - reward, (whole - reward) / 2, rtol=1e-4, atol=1e-6)
    assert (half == whole).tolist() == terminated.tolist()


@of("tau")
def test_slow_copies_move_by_tau(run_of, script):
    for tau in (0.3, 0.0, 1.0):
        one = first_update(run_of, script, tau=tau)
        slow = [name for name in one.after if name.endswith("_target")]
        assert slow
        for name in slow:
            now = one.after[name.removesuffix("_target")]
            for got, current, old in zip(one.after[name], now, one.before[name], strict=True):
                expected = tau * current + (1 - tau) * old
                np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@of("batch_size")
@pytest.mark.parametrize("size", [1, 5, 40])
def test_batches_are_as_large_as_they_should_be(size, run_of, script):
    """Larger than what is there, too: they are drawn with replacement."""
    seen = run_of(script, fake=nothing, batch_size=size)
    assert len(seen.updates) == 2
    for one in seen.updates:
        assert {len(x) for x in one.batch} == {size}


@of("buffer_size", "total_timesteps", scripts=WATCHED)
@pytest.mark.parametrize("capacity, expected", [(9, 9), (22, 22), (23, 22), (10**12, 22)])
def test_the_buffer_is_as_large_as_it_should_be(capacity, expected, run_of, script):
    """And never larger than the number of steps, however large it could be."""
    seen = run_of(script, fake=nothing, buffer_size=capacity)
    assert len(seen.replay.table) == len(seen.replay) == expected
    kept = stored(seen.replay).obs
    np.testing.assert_array_equal(kept, column(seen.steps[22 - expected :], "obs"))


@of("learning_starts")
@pytest.mark.parametrize("steps", [7, 21, 22, 500])
def test_learning_starts(steps, run_of, script):
    """After exactly so many steps at random; test_wiring.py looks at what they are."""
    seen = run_of(script, fake=nothing, learning_starts=steps)
    assert [one.step for one in seen.updates] == [*range(steps + 1, 23)]


@of("learning_starts")
def test_actions_before_that_are_uniform_and_the_seed_decides_them(run_of, script):
    settings = {"total_timesteps": 300, "learning_starts": 300}
    action = stored(run_of(script, **settings).replay).action
    for values in action.T:
        assert distance_from_uniform((values + 1) / 2) < 1.95 / 300**0.5


@of("updates_per_step")
@pytest.mark.parametrize("rate", ["0", "1/2", "3/10", "7/2"])
def test_updates_per_step(rate, run_of, script):
    """After k steps of learning, floor(k rate) in all; none of them twice."""
    settings = {"updates_per_step": float(Fraction(rate)), "total_timesteps": 50}
    seen = run_of(script, fake=nothing, **settings)
    counted = [sum(one.step <= 20 + k for one in seen.updates) for k in range(31)]
    assert counted == [math.floor(k * Fraction(rate)) for k in range(31)]


# --- temperature ---


@of("autotune", "alpha", scripts=SAC)
def test_a_fixed_temperature_stays(run_of, script):
    """Through all updates, which use it; it may be 0."""
    for alpha in (0.7, 0.0):
        seen = run_of(script, autotune=False, alpha=alpha)
        assert seen.agent.log_alpha.exp().item() == pytest.approx(alpha)
        for one in seen.updates:
            assert "alpha_optimizer" not in one.gradients
            assert one.returned["alpha"].item() == pytest.approx(alpha)
            assert "temperature_loss" not in one.returned
    tuned = run_of(script, alpha=0.7)
    begins = tuned.updates[0].returned["alpha"].item()
    assert begins == pytest.approx(0.7)
    assert tuned.agent.log_alpha.exp().item() != pytest.approx(0.7, rel=1e-4)


@of("alpha")
def test_entropy_counts_in_proportion_to_alpha(run_of, script):
    """In the actor's loss, whose slope is then a straight line in alpha."""
    steady = {"q_lr": 0.0} | ({"autotune": False} if script in SAC else {})
    slopes = []
    for alpha in (0.0, 0.5, 1.0):
        one = first_update(run_of, script, alpha=alpha, **steady)
        slopes.append(one.gradients["actor_optimizer"][0])
    for none, half, whole in zip(*slopes, strict=True):
        np.testing.assert_allclose(half, (none + whole) / 2, rtol=1e-3, atol=1e-5)
    assert length([whole - none for none, _, whole in zip(*slopes, strict=True)]) > 0.1


@of("alpha", scripts=[V1])
def test_entropy_is_part_of_the_value(run_of, script):
    """The slope of the value's loss, too, is a straight line in alpha."""
    slopes = []
    for alpha in (0.0, 0.5, 1.0):
        one = first_update(run_of, script, alpha=alpha, q_lr=0.0)
        slopes.append(one.gradients["v_optimizer"][0])
    for none, half, whole in zip(*slopes, strict=True):
        np.testing.assert_allclose(half, (none + whole) / 2, rtol=1e-3, atol=1e-5)
    assert length([whole - none for none, _, whole in zip(*slopes, strict=True)]) > 0.1


@of("target_entropy_scale")
def test_the_target_entropy_is_two_nats_times_the_scale(run_of, script):
    """Of a loss -alpha (log pi + target), target = -scale dim(A), the slope in log alpha is itself.

    So from scale 1 to scale 0.25 it changes by -alpha 0.75 dim(A), whatever log pi is.
    """
    slopes = []
    for scale in (1.0, 0.25, 0.0):
        seen = run_of(script, target_entropy_scale=scale)
        slopes.append(seen.updates[0].gradients["alpha_optimizer"][0][0])
    assert slopes[1] - slopes[0] == pytest.approx(-0.2 * 0.75 * 2, rel=1e-4)
    assert slopes[2] - slopes[0] == pytest.approx(-0.2 * 2, rel=1e-4)


@of("reward_scale")
def test_rewards_are_scaled_where_they_are_learnt_from(run_of, script):
    """By so much in the target, and not in the buffer, nor in what is shown."""
    runs = {scale: run_of(script, reward_scale=scale) for scale in (1.0, 3.0, 0.0)}
    targets = {scale: seen.updates[0].targets[0] for scale, seen in runs.items()}
    reward = runs[3.0].updates[0].batch.reward.numpy()
    np.testing.assert_allclose(targets[3.0] - targets[1.0], 2 * reward, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets[1.0] - targets[0.0], reward, rtol=1e-4, atol=1e-5)
    for seen in runs.values():
        steps = column(seen.steps, "reward")
        np.testing.assert_array_equal(stored(seen.replay).reward[:, 0], np.float32(steps))


@of("policy_reg")
def test_the_policy_is_regularised(run_of, script):
    """The actor's slope is a straight line in the weight; at 0, as without it."""
    slopes = []
    for weight in (0.0, 0.5, 1.0):
        one = first_update(run_of, script, policy_reg=weight)
        slopes.append(one.gradients["actor_optimizer"][0])
    for none, half, whole in zip(*slopes, strict=True):
        np.testing.assert_allclose(half, (none + whole) / 2, rtol=1e-3, atol=1e-5)
    # The slope of the mean's square in the mean's bias: 2 mean / dim(A), averaged over the batch.
    one = first_update(run_of, script)
    obs = one.batch.obs.numpy()
    mean = policy_mean(script, one.before["actor"], obs)
    difference = slopes[2][-1] - slopes[0][-1]
    np.testing.assert_allclose(difference[:2], mean.mean(0), rtol=1e-3, atol=1e-5)


# --- noise ---


def noise_by_step(run_of, script, first, last):
    """What exploration added to each action, the first of which is that of step 1."""
    noise = {"exploration_noise": first, "exploration_noise_final": last}
    settings = {"learning_starts": 0, "updates_per_step": 0, "total_timesteps": 50}
    none = {"exploration_noise": 0.0, "exploration_noise_final": 0.0}
    actions = [run_of(script, **settings | flags).replay for flags in (none, noise)]
    plain_action, action = (stored(replay).action.astype(float) for replay in actions)
    return action - plain_action


@of("exploration_noise", "exploration_noise_final")
@pytest.mark.parametrize("first, last", [(0.05, 0.05), (0.02, 0.12), (0.12, 0.0)])
def test_noise_goes_from_its_first_to_its_last_value(first, last, run_of, script):
    """In a straight line over all steps of the run: with the same draws, by so much more or less.

    At step t it is first + (last - first) t / T.
    """
    unit = noise_by_step(run_of, script, 0.1, 0.1)
    noise = noise_by_step(run_of, script, first, last)
    t = np.arange(1, 51)[:, None]
    std = first + (last - first) * t / 50
    np.testing.assert_allclose(noise, unit * std / 0.1, rtol=1e-3, atol=1e-6)
    assert unit.std() == pytest.approx(0.1, abs=0.025)


@of("double_q")
def test_double_q(run_of, script):
    """Two critics have one target, the smaller; with one, the other is not there."""
    both, one = (first_update(run_of, script, double_q=on) for on in (True, False))
    assert len(both.targets) == 2 and len(one.targets) == 1
    np.testing.assert_array_equal(both.targets[0], both.targets[1])
    assert (both.targets[0] <= one.targets[0] + 1e-6).all()
    assert (both.targets[0] < one.targets[0] - 1e-6).any()
    for before, after in zip(one.before["q2"], one.after["q2"], strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(both.gradients["q_optimizer"][0]) == 2 * len(one.gradients["q_optimizer"][0]) == 12


@of("policy_frequency")
@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_policy_frequency(rate, frequency, run_of, script):
    """Actor and slow copies move at every so many-th update of the run; critics at each."""
    settings = {"policy_frequency": frequency, "updates_per_step": rate, "total_timesteps": 27}
    seen = run_of(script, **settings)
    assert len(seen.updates) == 7 * rate
    for number, one in enumerate(seen.updates, 1):
        due = number % frequency == 0
        assert ("actor_optimizer" in one.gradients) == due
        assert "q_optimizer" in one.gradients
        for name in ("actor", "actor_target", "q1_target", "q2_target"):
            same = all(
                np.array_equal(*pair)
                for pair in zip(one.before[name], one.after[name], strict=True)
            )
            assert same != due, (number, name)


@of("policy_noise", "noise_clip")
def test_noise_on_the_targets_action(run_of, script, monkeypatch, module):
    """Of that deviation, cut at that size; recomputed for the first update's targets."""
    for std, bound in ((0.5, 0.3), (0.3, 10.0), (0.0, 0.5), (0.4, 0.0)):
        drawn, randn_like = [], torch.randn_like

        def noted(like, drawn=drawn, randn_like=randn_like):
            drawn.append(randn_like(like))
            return drawn[-1]

        monkeypatch.setattr(torch, "randn_like", noted)
        # At step 21 one is drawn for the action; the next is the update's.
        one = first_update(run_of, script, policy_noise=std, noise_clip=bound)
        monkeypatch.setattr(torch, "randn_like", randn_like)
        noise = drawn[1].double().numpy() if std > 0 else np.zeros((8, 2))
        assert noise.shape == (8, 2)
        next_obs = one.batch.next_obs.double().numpy()
        action = np.tanh(policy_mean(script, one.before["actor_target"], next_obs))
        action = np.clip(action + np.clip(std * noise, -bound, bound), -1, 1)
        values = [
            q_value(one.before[name], next_obs, action) for name in ("q1_target", "q2_target")
        ]
        rest = 0.99 * (1 - one.batch.terminated.numpy()) * np.minimum(*values)
        expected = one.batch.reward.numpy() + rest
        np.testing.assert_allclose(one.targets[0], expected, rtol=1e-4, atol=1e-5)


# --- replay ---


@of("per_alpha")
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_priorities_are_errors_to_that_power(power, run_of, script):
    seen = run_of(script, per_alpha=power, batch_size=64, **LONGER)
    rows = step_numbers(seen, seen.updates[-1].batch)
    _, errors = seen.updates[-1].returned
    largest = np.maximum(*(abs(error.numpy().astype(float)) for error in errors))
    priority = seen.replay.sum[seen.replay.leaf :]
    for row in set(rows):
        allowed = (largest[rows == row] + 0.01) ** power
        assert np.isclose(allowed, priority[row], rtol=1e-4).any()
    assert len(set(rows)) > 5 and (power > 0 or (priority[:30] == 1).all())


@of("per_beta")
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weights_have_a_power_that_grows_to_one(power, run_of, script):
    """From that at the first step to 1 at the last; of the probabilities that were drawn by.

    In logarithms the weights of two runs are in proportion to their powers. The first updates of
    these runs draw the same rows by the same priorities.
    """
    settings = {"per_alpha": 1.0, "q_lr": 0.0, "policy_lr": 0.0} | LONGER
    whole, seen = (run_of(script, per_beta=beta, **settings) for beta in (1.0, power))
    compared = 0
    for one, other in zip(whole.updates, seen.updates, strict=True):
        beta = power + (1 - power) * one.step / 30
        expected = beta * np.log(one.rest[0].double().numpy())
        got = np.log(other.rest[0].double().numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        compared += (abs(expected) > 0.1).sum()
    assert compared > 20


@of("n_sampled_goal")
@pytest.mark.parametrize("k", [0, 1, 4, 30])
def test_the_share_of_goals_in_hindsight(k, run_of, script):
    """k of k + 1 rows."""
    seen = run_of(script, fake=nothing, n_sampled_goal=k, batch_size=3000)
    goals = np.concatenate([one.batch.obs[:, GOAL].numpy() for one in seen.updates])
    own = np.concatenate(
        [
            column([seen.steps[i] for i in step_numbers(seen, one.batch)], "obs")
            for one in seen.updates
        ]
    )[:, GOAL]
    share = (goals != own).any(1).mean()
    assert share == pytest.approx(k / (k + 1), abs=0.025)


@of("goal_strategy")
@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random"])
def test_where_goals_in_hindsight_come_from(strategy, run_of, script):
    """From steps of the same episode, its last one, all that follow or all; or of any."""
    settings = {"goal_strategy": strategy, "batch_size": 500, "n_sampled_goal": 1000} | LONGER
    seen = run_of(script, fake=nothing, **settings)
    achieved = {entry.next_obs[3:5].tobytes(): i for i, entry in enumerate(seen.steps)}
    assert len(achieved) == 30
    episode, episodes = 0, []
    for entry in seen.steps:
        episodes.append(episode)
        episode += ended(entry)
    last = {number: max(i for i in range(30) if episodes[i] == number) for number in set(episodes)}
    kinds = collections.Counter()
    for one in seen.updates:
        for row, i in zip(
            one.batch.obs[:, GOAL].numpy(), step_numbers(seen, one.batch), strict=True
        ):
            j = achieved.get(row.tobytes())
            if j is None:
                continue  # its own goal, one in a thousand
            if episodes[i] != episodes[j]:
                kinds["other episode"] += 1
            elif j < i:
                kinds["earlier"] += 1
            else:
                kinds["last" if j == last[episodes[i]] else "later"] += 1
    expected = {"future": {"later", "last"}, "final": {"last"}}
    expected["episode"] = {"later", "last", "earlier"}
    expected["random"] = expected["episode"] | {"other episode"}
    assert set(kinds) == expected[strategy]


# === What changes in a run of PPO =================================================================
ITERATIONS: dict[str, Any] = {
    "num_envs": 2,
    "num_steps": 8,
    "total_timesteps": 48,
    "num_minibatches": 2,
}
ITERATIONS |= {"update_epochs": 2, "hidden_dim": 8, "learning_rate": 0.01, "clip_coef": 0.02}
ITERATIONS |= {"max_grad_norm": 0.0, "checkpoint_frequency": 0}
AFTER_GRADIENT = "later weights clipped kl_coef"
PENALTY = {"surrogate": "kl-penalty"}

EFFECTS_IN_PPO = [
    ("num_envs", 3, "worlds shape", "made ends counts rates starts actions rows sizes generator "
     "initial state advantage returns gradient steps " + AFTER_GRADIENT, {}),
    ("num_steps", 4, "shape rates counts", "actions rows sizes state advantage returns gradient "
     "steps generator starts ends " + AFTER_GRADIENT, {}),
    ("num_minibatches", 4, "sizes counts", "rows gradient " + AFTER_GRADIENT, {}),
    ("update_epochs", 3, "counts generator", AFTER_GRADIENT, {}),
    ("learning_rate", 0.02, "rates later weights", "clipped", {}),
    ("anneal_lr", True, "rates", "", {}),
    ("gamma", 0.5, "advantage returns gradient", AFTER_GRADIENT, {}),
    ("gae_lambda", 0.3, "advantage returns gradient", AFTER_GRADIENT, {}),
    ("surrogate", "unclipped", "later", AFTER_GRADIENT, {}),
    ("clip_coef", 0.5, "later clipped", AFTER_GRADIENT, {}),
    ("kl_coef", 5.0, "later kl_coef before", "gradient " + AFTER_GRADIENT, PENALTY),
    ("kl_coef", 5.0, "", "", {}),
    ("kl_coef_target", 1e-6, "kl_coef", "", PENALTY),
    ("kl_coef_target", 9.0, "", "", {}),
    ("clip_vloss", True, "later", AFTER_GRADIENT, {}),
    ("norm_obs", False, "state", "advantage returns gradient " + AFTER_GRADIENT, {}),
    ("norm_reward", False, "advantage returns gradient", AFTER_GRADIENT, {}),
    ("norm_adv", False, "advantage gradient", AFTER_GRADIENT, {}),
    ("ent_coef", 0.5, "gradient later", AFTER_GRADIENT, {}),
    ("vf_coef", 2.0, "gradient later", AFTER_GRADIENT, {}),
    ("max_grad_norm", 0.1, "gradient later", AFTER_GRADIENT, {}),
    ("target_kl", 1e-7, "counts generator later", "sizes " + AFTER_GRADIENT, {}),
    ("seed", 2, "initial made starts actions rows generator", "ends state advantage returns "
     "gradient " + AFTER_GRADIENT, {}),
    ("env_kwargs", '{"shift": 3.0}', "starts actions", "rows state advantage returns gradient "
     + AFTER_GRADIENT, {}),
    ("max_episode_steps", 1, "ends", "rows state actions advantage returns gradient "
     + AFTER_GRADIENT, {}),
    ("num_threads", 2, "threads", "", {}),
    ("total_timesteps", 64, "steps rates counts", "", {}),
    ("log_frequency", 3, "", "", {}),
    ("eval_frequency", 7, "", "", {"eval_episodes": 1}),
    ("eval_episodes", 2, "", "", {"eval_episodes": 1}),
    ("checkpoint_frequency", 4, "", "", {}),
    ("runs_dir", "another", "", "", {}),
    ("track", True, "", "", {}),
    ("compile", True, "", "", {}),
]  # fmt: skip


def watched_ppo(runs_dir, **changes):
    """A run of PPO, and what happened in it, by iteration."""
    seen = SimpleNamespace(iterations=[], looked=[], gradients=[], rates=[])
    start, collect, look_back = ppo.Run.start, ppo.collect, ppo.look_back
    minibatch_step, step, after_step = ppo.minibatch_step, ppo.Adam.step, ppo.Run.after_step

    def watched_start(run, envs, agent):
        obs = start(run, envs, agent)
        seen.run, seen.agent, seen.envs = run, agent, envs
        seen.groups = grouped(agent)
        seen.initial = numbers(seen.groups)
        seen.names = [name for name, _ in agent.named_parameters()]
        seen.before = agent.kl_coef.item()
        return obs

    def watched_collect(agent, *rest):
        rollout, obs = collect(agent, *rest)
        one = SimpleNamespace(rollout=rollout, minibatches=[], gradients=[])
        one.rate, one.threads = agent.optimizer.lr.item(), torch.get_num_threads()
        seen.iterations.append(one)
        return rollout, obs

    def watched_look_back(*given):
        seen.iterations[-1].steps = look_back(*given)
        return seen.iterations[-1].steps

    def watched_minibatch_step(agent, steps, args):
        seen.iterations[-1].minibatches.append(steps)
        minibatch_step(agent, steps, args)

    def watched_step(optimizer, gradients):
        named = dict(zip(seen.names, copied(gradients), strict=True))
        seen.iterations[-1].gradients.append(named)
        step(optimizer, gradients)

    def watched_after_step(run):
        one = seen.iterations[-1]
        one.weights, one.kl_coef = numbers(seen.groups), run.agent.kl_coef.item()
        one.generator, one.metrics = torch.get_rng_state(), dict(run.metrics)
        after_step(run)

    Wayfarer.made.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo.Run, "start", watched_start)
        patch.setattr(ppo.Run, "after_step", watched_after_step)
        patch.setattr(ppo.Adam, "step", watched_step)
        patch.setattr(ppo, "collect", watched_collect)
        patch.setattr(ppo, "look_back", watched_look_back)
        patch.setattr(ppo, "minibatch_step", watched_minibatch_step)
        without_waiting(patch, ppo, files=False)
        seen.results = ppo.train(settings_of(PPO, runs_dir, **ITERATIONS | changes))
    seen.worlds = list(Wayfarer.made)[: seen.run.args.num_envs]
    return seen


@pytest.fixture(scope="module")
def ppo_run_of(tmp_path_factory):
    """A watched run of PPO, made once for all tests that ask for the same."""
    made = {}

    def ppo_run_of(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            runs_dir = str(tmp_path_factory.mktemp("runs"))
            made[key] = watched_ppo(**{"runs_dir": runs_dir} | changes)
        return made[key]

    return ppo_run_of


def trace_of_ppo(seen):
    """What a run of PPO was, in parts; all but the first ones are of its first iteration."""
    first = seen.iterations[0]
    resets = [[e for e in world.journal if e.kind == "reset"] for world in seen.worlds]
    steps = [[e for e in world.journal if e.kind == "step"] for world in seen.worlds]
    count = seen.run.args.num_steps
    parts = {
        "worlds": len(seen.worlds),
        "steps": seen.run.step,
        "rates": [one.rate for one in seen.iterations],
        "counts": [len(one.minibatches) for one in seen.iterations],
        "initial": seen.initial,
        "before": seen.before,
        "made": [world.made_with for world in seen.worlds],
        "starts": [(each[0].seed, each[0].obs) for each in resets],
        "ends": [[ended(step) for step in each[:count]] for each in steps],
        "shape": first.rollout.reward.shape,
        "actions": first.rollout.action,
        "state": first.steps.state,
        "advantage": first.steps.advantage,
        "returns": first.steps.returns,
        "rows": first.minibatches[0].action,
        "sizes": [len(minibatch.action) for minibatch in first.minibatches[:2]],
        "gradient": first.gradients[0],
        "later": first.gradients[1:],
        "weights": first.weights,
        "kl_coef": first.kl_coef,
        "clipped": first.metrics["clip_fraction"],
        "generator": first.generator,
        "threads": sorted({one.threads for one in seen.iterations}),
    }
    return plain(parts)


@pytest.mark.parametrize(
    "flag, value, must, may, both", EFFECTS_IN_PPO, ids=[case[0] for case in EFFECTS_IN_PPO]
)
def test_what_a_flag_changes_in_ppo(
    flag, value, must, may, both, ppo_run_of, tmp_path, monkeypatch
):
    """What must change does, and nothing else but its consequences."""
    fake_wandb(monkeypatch)
    monkeypatch.setattr(ppo, "compiled", lambda step, device: step)
    default = trace_of_ppo(ppo_run_of(**both))
    if flag == "runs_dir":
        value = str(tmp_path / value)
    assert value != DEFAULTS[PPO][flag]
    difference = changed(default, trace_of_ppo(ppo_run_of(**both | {flag: value})))
    must, may = set(must.split()), set(may.split())
    assert not must - difference
    assert not difference - must - may


# --- what they do ---


def first_gradient(ppo_run_of, **changes):
    return ppo_run_of(**changes).iterations[0].gradients[0]


@of("num_envs", "num_steps", "num_minibatches", "update_epochs")
@pytest.mark.parametrize("envs, steps, minibatches, epochs", [(3, 8, 4, 2), (1, 12, 3, 5)])
def test_sizes_of_an_iteration(envs, steps, minibatches, epochs, ppo_run_of, script):
    """T steps in each of N worlds; each of them E times in one of M minibatches."""
    size = envs * steps
    seen = ppo_run_of(
        num_envs=envs, num_steps=steps, num_minibatches=minibatches, update_epochs=epochs,
        total_timesteps=3 * size,
    )  # fmt: skip
    assert len(seen.worlds) == envs and len(seen.iterations) == 3
    for world in seen.worlds:
        assert sum(entry.kind == "step" for entry in world.journal) == 3 * steps
    for one in seen.iterations:
        assert one.rollout.reward.shape == (steps, envs)
        sizes = [len(minibatch.action) for minibatch in one.minibatches]
        assert sizes == [size // minibatches] * (minibatches * epochs)
        for epoch in range(epochs):
            part = one.minibatches[epoch * minibatches : (epoch + 1) * minibatches]
            actions = torch.cat([minibatch.action for minibatch in part])
            expected = one.rollout.action.flatten(0, 1)
            assert torch.equal(actions[:, 0].sort()[0], expected[:, 0].sort()[0])


@of("total_timesteps", scripts=[PPO])
@pytest.mark.parametrize("total, iterations", [(1, 1), (16, 1), (17, 2), (48, 3)])
def test_steps_are_whole_iterations(total, iterations, ppo_run_of, script):
    seen = ppo_run_of(total_timesteps=total)
    assert len(seen.iterations) == iterations
    assert seen.results["global_step"] == seen.run.step == 16 * iterations


@of("learning_rate", "anneal_lr")
def test_learning_rate(ppo_run_of, script):
    """Adam's, which begins with the flag's value and falls to 0 after the last iteration."""
    for rate in (0.003, 0.02):
        settings = {"learning_rate": rate, "num_minibatches": 1, "update_epochs": 1}
        falling, steady = (ppo_run_of(anneal_lr=on, **settings) for on in (True, False))
        assert [one.rate for one in falling.iterations] == pytest.approx(
            [rate, rate * 2 / 3, rate / 3]
        )
        assert [one.rate for one in steady.iterations] == pytest.approx([rate] * 3)
        after = falling.iterations[0].weights
        for name in ("actor", "critic"):
            pairs = zip(falling.initial[name], after[name], strict=True)
            largest = max(abs(new - old).max() for old, new in pairs)
            assert largest == pytest.approx(rate, rel=0.02), name


@of("gamma", "gae_lambda", scripts=[PPO])
@pytest.mark.parametrize("gamma, lam", [(0.0, 0.7), (0.6, 0.0), (0.6, 1.0), (0.8, 0.5)])
def test_advantages_are_discounted_by_both(gamma, lam, ppo_run_of, script):
    """The sum of (gamma lambda)^k times the error of step t + k, up to the episode's end."""
    plainly = {"norm_adv": False, "norm_reward": False, "norm_obs": False}
    seen = ppo_run_of(gamma=gamma, gae_lambda=lam, **plainly)
    one = seen.iterations[0]
    value = one.steps.value.reshape(8, 2).double().numpy()
    next_value = first_value(seen, one.rollout.next_obs.double().numpy())
    reward, terminated, over = (
        x.numpy() for x in (one.rollout.reward, one.rollout.terminated, one.rollout.ended)
    )
    error = reward + gamma * (1 - terminated) * next_value - value
    expected = np.zeros((8, 2))
    for t in reversed(range(8)):
        later = expected[t + 1] if t < 7 else 0.0
        expected[t] = error[t] + gamma * lam * (1 - over[t]) * later
    np.testing.assert_allclose(one.steps.advantage.reshape(8, 2), expected, rtol=1e-4, atol=1e-5)
    returns = one.steps.returns.reshape(8, 2)
    np.testing.assert_allclose(returns, expected + value, rtol=1e-4, atol=1e-5)


def tanh_network(layers, x):
    """Two hidden layers of tanh and a last one that is linear."""
    w1, b1, w2, b2, w3, b3 = layers
    return np.tanh(np.tanh(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3


def first_value(seen, obs):
    """The critic's value before the first update."""
    return tanh_network(seen.initial["critic"], obs)[..., 0]


@of("gamma", "norm_reward", scripts=[PPO])
@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(gamma, ppo_run_of, script):
    """With gamma 0 for the advantages there is nothing but this in them: A + V is the reward."""
    seen = ppo_run_of(gamma=gamma, gae_lambda=0.0, norm_obs=False, norm_adv=False)
    rewards, brought, running = [], [], np.zeros(2)
    one = seen.iterations[0]
    for reward, over in zip(one.rollout.reward.numpy(), one.rollout.ended.numpy(), strict=True):
        brought.append(reward + gamma * running)
        running = brought[-1] * (1 - over)
        rewards.append(reward)
    unit = np.sqrt(np.var(brought) + 1e-8)
    next_value = first_value(seen, one.rollout.next_obs.double().numpy())
    rest = gamma * (1 - one.rollout.terminated.numpy()) * next_value
    expected = np.clip(np.array(rewards) / unit, -10, 10) + rest
    np.testing.assert_allclose(one.steps.returns.reshape(8, 2), expected, rtol=1e-3, atol=1e-4)


@of("norm_obs")
def test_observations_are_normalised(ppo_run_of, script):
    """By mean and deviation of those seen; switched off, they are as the world gave them.

    However far out: beyond 10, too, where what is normalised is cut.
    """
    for on in (True, False):
        one = ppo_run_of(norm_obs=on, env_kwargs='{"shift": 50.0}').iterations[0]
        obs = one.rollout.obs.flatten(0, 1).double().numpy()
        expected = (obs - obs.mean(0)) / np.sqrt(obs.var(0) + 1e-8) if on else obs
        np.testing.assert_allclose(one.steps.state, expected, rtol=1e-4, atol=1e-5)


@of("norm_adv")
def test_advantages_are_normalised(ppo_run_of, script):
    raw, normal = (ppo_run_of(norm_adv=on).iterations[0].steps.advantage for on in (False, True))
    raw = raw.double().numpy()
    np.testing.assert_allclose(normal, (raw - raw.mean()) / raw.std(), rtol=1e-3, atol=1e-4)
    assert abs(raw.mean()) > 0.01


@of("ent_coef")
def test_entropy_is_rewarded_in_proportion(ppo_run_of, script):
    """Its slope in each log deviation is 1: the loss loses ent_coef there, and nowhere else."""
    without, with_it = first_gradient(ppo_run_of), first_gradient(ppo_run_of, ent_coef=0.5)
    for name, gradient in without.items():
        expected = gradient - 0.5 * (name == "actor.log_std")
        np.testing.assert_allclose(with_it[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@of("vf_coef")
def test_the_critics_loss_has_its_weight(ppo_run_of, script):
    """Four times as large from 0.5 to 2, and nothing at 0; the actor's loss stays."""
    usual, more, none = (
        first_gradient(ppo_run_of, **changes) for changes in ({}, {"vf_coef": 2.0}, {"vf_coef": 0})
    )
    for name, gradient in usual.items():
        factors = (4, 0) if name.startswith("critic") else (1, 1)
        for got, factor in zip((more, none), factors, strict=True):
            expected = factor * gradient
            np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-7, err_msg=name)


@of("max_grad_norm", scripts=[PPO])
def test_gradients_of_ppo_are_cut_to_their_limit(ppo_run_of, script):
    """Those of both networks together, at every step."""
    free = first_gradient(ppo_run_of)
    whole = length(free.values())
    cut = first_gradient(ppo_run_of, max_grad_norm=0.1)
    assert whole > 0.2
    for name, gradient in free.items():
        np.testing.assert_allclose(cut[name], gradient * 0.1 / whole, rtol=1e-4, atol=1e-7)
    lengths = [
        length(gradient.values())
        for one in ppo_run_of(max_grad_norm=0.1).iterations
        for gradient in one.gradients
    ]
    assert max(lengths) < 0.1 * (1 + 1e-5)


@of("target_kl")
@pytest.mark.parametrize("limit, steps", [(1e-7, 1), (1e9, 4), (0.0, 4)])
def test_target_kl_ends_an_iteration(limit, steps, ppo_run_of, script):
    """After the first step the policy has moved by more than next to nothing; 0 is off."""
    for one in ppo_run_of(target_kl=limit).iterations:
        assert len(one.minibatches) == steps


@of("surrogate", "clip_coef")
@pytest.mark.parametrize("kind", ["clip", "clip-no-min", "unclipped", "kl-penalty"])
def test_what_keeps_the_policy_near(kind, ppo_run_of, script):
    """The gain of each kind, recomputed after an iteration from ratio and advantage."""
    settings = {"surrogate": kind, "clip_coef": 0.05, "kl_coef": 3.0, "learning_rate": 0.03}
    seen = ppo_run_of(**settings)
    one = seen.iterations[0]
    steps = SimpleNamespace(**{n: x.double().numpy() for n, x in one.steps._asdict().items()})
    log_std, *layers = one.weights["actor"]
    mean = tanh_network(layers, steps.state)
    old, new = (
        (-0.5 * ((steps.action - m) / np.exp(s)) ** 2 - s).sum(-1)
        for m, s in ((steps.mean, steps.log_std), (mean, log_std))
    )
    ratio = np.exp(new - old)
    assert (abs(ratio - 1) > 0.05).mean() > 0.1
    plain_gain = ratio * steps.advantage
    clipped = np.clip(ratio, 0.95, 1.05) * steps.advantage
    variance = np.exp(2 * steps.log_std) + (steps.mean - mean) ** 2
    kl = (log_std - steps.log_std + variance / (2 * np.exp(2 * log_std)) - 0.5).sum(-1).mean()
    gains = {"clip": np.minimum(plain_gain, clipped).mean(), "clip-no-min": clipped.mean()}
    gains |= {"unclipped": plain_gain.mean(), "kl-penalty": plain_gain.mean() - 3.0 * kl}
    assert one.metrics["policy_loss"].item() == pytest.approx(-gains[kind], rel=1e-3, abs=1e-5)
    others = [gain for name, gain in gains.items() if name != kind]
    assert min(abs(gains[kind] - other) for other in others) > 1e-4
    share = one.metrics["clip_fraction"].mean().item()
    assert share == pytest.approx((abs(ratio - 1) > 0.05).mean())


@of("kl_coef", "kl_coef_target")
@pytest.mark.parametrize("goal, factor", [(1e-9, 2), (1e9, 0.5)])
def test_the_penalty_adapts_to_its_goal(goal, factor, ppo_run_of, script):
    """It begins at the flag's value; after each iteration it doubles above the goal, or halves."""
    seen = ppo_run_of(surrogate="kl-penalty", kl_coef=3.0, kl_coef_target=goal)
    assert seen.before == 3
    assert [one.kl_coef for one in seen.iterations] == [3 * factor, 3 * factor**2, 3 * factor**3]
    used = [one.metrics["kl_coef"].item() for one in seen.iterations]
    assert used == [3, 3 * factor, 3 * factor**2]


@of("clip_vloss", "clip_coef")
@pytest.mark.parametrize("on", [True, False])
def test_values_are_kept_near_the_old_ones(on, ppo_run_of, script):
    """The loss after an iteration, recomputed: with the flag it is the larger of two."""
    settings = {"clip_vloss": on, "clip_coef": 0.05, "learning_rate": 0.03}
    one = ppo_run_of(**settings).iterations[0]
    steps = SimpleNamespace(**{n: x.double().numpy() for n, x in one.steps._asdict().items()})
    value = tanh_network(one.weights["critic"], steps.state)[:, 0]
    error = (value - steps.returns) ** 2
    near = np.clip(value, steps.value - 0.05, steps.value + 0.05)
    larger = np.maximum(error, (near - steps.returns) ** 2)
    assert larger.mean() > 1.01 * error.mean()
    expected = 0.5 * (larger if on else error).mean()
    assert one.metrics["value_loss"].item() == pytest.approx(expected, rel=1e-3)


@of("async_envs")
def test_processes(ppo_run_of, script, tmp_path):
    """One for each environment, and not this one; its episodes are the same."""
    seen, together = watched_ppo(tmp_path, async_envs=True), ppo_run_of()
    assert isinstance(together.envs, gym.vector.SyncVectorEnv)
    assert isinstance(seen.envs, gym.vector.AsyncVectorEnv)
    assert len({process.pid for process in seen.envs.processes}) == 2
    for one, other in zip(seen.iterations, together.iterations, strict=True):
        assert torch.equal(one.rollout.obs, other.rollout.obs)
        assert torch.equal(one.rollout.ended, other.rollout.ended)


# === Bookkeeping, in all scripts ==================================================================
@pytest.fixture
def trained(script, module, tmp_path, monkeypatch):
    """Train for 60 steps (PPO in iterations of 10) and say what came of it, with its worlds."""
    without_waiting(monkeypatch, module, files=True)

    def trained(**changes):
        changes = {"learning_starts": 55} | changes if script != PPO else changes
        Wayfarer.made.clear()
        results = module.train(settings_of(script, tmp_path / "runs", **changes))
        worlds = list(Wayfarer.made)
        return SimpleNamespace(results=results, rows=rows_of_table(results), worlds=worlds)

    return trained


def steps_of(rows):
    return [int(row["global_step"]) for row in rows]


@of("log_frequency")
@pytest.mark.parametrize(
    "every_so_many, expected",
    [(20, [20, 40, 60]), (25, [25, 50, 60]), (0, [60])],
)
def test_log_frequency(every_so_many, expected, trained, script):
    """A row at each multiple, and at the end; PPO's with the iteration that reaches it."""
    if script == PPO:
        expected = sorted({math.ceil(step / 10) * 10 for step in expected})
    assert steps_of(trained(log_frequency=every_so_many).rows) == expected


@of("eval_frequency", "eval_episodes")
@pytest.mark.parametrize("every_so_many, expected", [(20, [20, 40, 60]), (50, [50, 60]), (0, [60])])
def test_evaluations(every_so_many, expected, trained, script):
    """At each multiple, and at the end; of so many episodes. A row goes with each."""
    done = trained(eval_frequency=every_so_many, eval_episodes=3)
    rows = [row for row in done.rows if row["eval_return_mean"]]
    assert steps_of(rows) == steps_of(done.rows) == expected
    assert {row["eval_episodes"] for row in rows} == {"3"}
    seeds = [e.seed for world in done.worlds for e in world.journal if e.kind == "reset"]
    counts = [seeds.count(EVAL_SEED + i) for i in range(4)]
    times = len(expected)
    assert counts == [times + 1, times, times, 0], "one episode before training"


@of("eval_episodes")
def test_no_evaluation(trained, script):
    done = trained(eval_episodes=0, eval_frequency=10)
    assert len(done.worlds) == 1
    assert all(row["eval_return_mean"] == "" for row in done.rows)
    seeds = {e.seed for world in done.worlds for e in world.journal if e.kind == "reset"}
    assert EVAL_SEED not in seeds
    assert not (done.results["run_dir"] / "best_model.pt").exists()


@of("checkpoint_frequency")
@pytest.mark.parametrize("every_so_many, expected", [(20, [20, 40, 60]), (50, [50, 60]), (0, [60])])
def test_checkpoints(every_so_many, expected, trained, module, script, monkeypatch):
    """At each multiple, and at the end: the networks, and all that is needed to go on."""
    written, write_file = [], module.write_file

    def noted(path, content):
        if path.name == "checkpoint.pt":
            written.append(content["progress"]["step"])
        else:
            assert path.name == "model.pt"
        write_file(path, content)

    monkeypatch.setattr(module, "write_file", noted)
    trained(checkpoint_frequency=every_so_many)
    assert written == expected


@of("runs_dir", "env_id", "seed")
def test_runs_dir(script, module, tmp_path):
    """The run's folder is in it, and nowhere else; its name has task, script, seed and time."""
    places = tmp_path / "one" / "two"
    results = module.train(settings_of(script, places, seed=77))
    (folder,) = places.iterdir()
    assert results["run_dir"] == folder
    task = "Seeker-v0" if script == HER else "Wayfarer-v0"
    assert folder.name.startswith(f"journal-{task}__{script}__77__")
    assert json.loads((folder / "args.json").read_text())["seed"] == 77


@of("track")
def test_track(trained, script, monkeypatch):
    """Every row is sent, under the folder's name and with all settings; then it is closed."""
    sent = fake_wandb(monkeypatch)
    assert trained(log_frequency=20).rows and not sent.init and not sent.log
    done = trained(track=True, log_frequency=20, eval_episodes=1)
    (options,) = sent.init
    assert options["id"] == done.results["run_dir"].name
    assert options["dir"] == done.results["run_dir"]
    assert options["config"].items() >= {"track": True, "log_frequency": 20, "seed": 1}.items()
    assert [step for _, step in sent.log] == steps_of(done.rows) == [20, 40, 60]
    for (row, _), written in zip(sent.log, done.rows, strict=True):
        assert {name: str(value) for name, value in row.items()} == {
            name: value for name, value in written.items() if value
        }
    assert sent.finished == 1


@of("compile")
def test_compile(script, module, tmp_path, monkeypatch):
    """The compiled function does all the work, the plain one is not called; without it, inversely.

    That both do the same is for test_compile.py to say.
    """
    name = "minibatch_step" if script == PPO else "update"
    real, calls = getattr(module, name), collections.Counter()

    def plainly(*given):
        calls["plain"] += 1
        return real(*given)

    def compiled(function, device):
        assert function is plainly and device == "cpu"
        calls["made"] += 1

        def fast(*given):
            calls["fast"] += 1
            return real(*given)

        return fast

    monkeypatch.setattr(module, name, plainly)
    monkeypatch.setattr(module, "compiled", compiled)
    times = 12 if script == PPO else 5
    for on, expected in ((True, {"made": 1, "fast": times}), (False, {"plain": times})):
        calls.clear()
        late = {} if script == PPO else {"learning_starts": 55}
        module.train(settings_of(script, tmp_path, compile=on, **late))
        assert calls == expected


@of("num_threads")
def test_num_threads(script, module, tmp_path, monkeypatch):
    """So many while it runs, also for what it draws at first; afterwards as before, also failed."""
    before, seen = torch.get_num_threads(), []
    start, after_step = module.Run.start, module.Run.after_step

    def noted(function):
        def call(*given):
            seen.append(torch.get_num_threads())
            return function(*given)

        return call

    monkeypatch.setattr(module.Run, "start", noted(start))
    monkeypatch.setattr(module.Run, "after_step", noted(after_step))
    for threads in (3, 1):
        module.train(settings_of(script, tmp_path, num_threads=threads, total_timesteps=10))
        assert set(seen) == {threads} and len(seen) > 1
        assert torch.get_num_threads() == before
        seen.clear()
    monkeypatch.setattr(module.Run, "after_step", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.train(settings_of(script, tmp_path, num_threads=3))
    assert torch.get_num_threads() == before


@of("seed")
def test_seed(script, module, tmp_path, monkeypatch):
    """It is the seed of PyTorch, random and numpy.random when the run begins, whatever it is."""
    drawn = []
    make_env = module.make_env

    def noted(*given, **options):
        drawn.append((random.random(), np.random.random(), torch.rand(()).item()))
        return make_env(*given, **options)

    monkeypatch.setattr(module, "make_env", noted)
    for seed in (0, 5, 2**32 - 1):
        drawn.clear()
        module.train(settings_of(script, tmp_path, seed=seed, total_timesteps=1))
        torch.manual_seed(seed)
        expected = random.Random(seed).random(), np.random.RandomState(seed).random()
        assert drawn[0] == (*expected, torch.rand(()).item())


@of("hidden_dim")
def test_hidden_dim(script, module, tmp_path):
    """Units in both hidden layers of every network, slow copies too."""
    agent = module.train(settings_of(script, tmp_path, hidden_dim=5, total_timesteps=1))["agent"]
    networks = {
        name: part
        for name, part in agent.named_children()
        if "optimizer" not in name and "moments" not in name
    }
    assert len(networks) >= 2
    for name, network in networks.items():
        linear = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
        shapes = [(layer.in_features, layer.out_features) for layer in linear]
        assert len(shapes) == 3, name
        assert (shapes[0][1], *shapes[1], shapes[2][0]) == (5, 5, 5, 5), name


def longest_episode(world):
    steps, longest = 0, 0
    for entry in world.journal:
        steps = steps + 1 if entry.kind == "step" else 0
        longest = max(longest, steps)
    return longest


@of("env_id", "env_kwargs", "max_episode_steps")
def test_the_world(trained, script):
    """Training and evaluation both have the task, its options and its time limit."""
    settings = {"env_kwargs": '{"shift": 4.0}', "max_episode_steps": 3}
    done = trained(eval_frequency=20, eval_episodes=2, **settings)
    assert len(done.worlds) == 2
    for world in done.worlds:
        assert world.shift == 4 and longest_episode(world) == 3
    for world in trained().worlds:
        assert world.shift == 0 and longest_episode(world) > 3


@of("max_episode_steps", scripts=WATCHED)
def test_the_time_limit_is_no_end(run_of, script):
    """Episodes are cut at it; what is stored says that the world would have gone on."""
    seen = run_of(script, fake=nothing, max_episode_steps=2, total_timesteps=40)
    cut = [i for i, step in enumerate(seen.steps[:-1]) if seen.steps[i + 1].obs[0] != step.obs[0]]
    assert np.diff(cut).max() == 2
    kept = stored(seen.replay)
    expected = [step.terminated for step in seen.steps]
    np.testing.assert_array_equal(kept.terminated[:, 0], expected)
    assert sum(not seen.steps[i].terminated for i in cut) > 5


# --- another device ---


class Elsewhere:
    """As if there were a GPU: what is sent to it is noted, and stays."""

    def __init__(self, patch):
        self.sent = collections.Counter()
        for owner, name in [
            (torch, "empty"), (torch, "as_tensor"), (torch.Tensor, "to"), (torch.nn.Module, "to"),
            (torch.Tensor, "cpu"),
        ]:  # fmt: skip
            self.replace(patch, owner, name)
        patch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)

    def replace(self, patch, owner, name):
        original = getattr(owner, name)

        def noted(*given, **options):
            where = options.get("device", given[1] if name == "to" and len(given) > 1 else None)
            kind = f"{owner.__name__}.{name}"
            if name == "cpu":
                self.sent[kind] += 1
            if where == "cuda":
                self.sent[kind] += 1
                if name == "to":
                    return given[0]
                options["device"] = "cpu"
            return original(*given, **options)

        patch.setattr(owner, name, noted)


@of("device")
def test_device(script, module, tmp_path, monkeypatch):
    """Agent, batches and the observations that are acted on go there; actions come back."""
    settings = {"eval_episodes": 2, "eval_frequency": 0}
    if script != PPO:
        settings["learning_starts"] = 50
    with monkeypatch.context() as patch:
        there = Elsewhere(patch)
        Wayfarer.made.clear()
        results = module.train(settings_of(script, tmp_path, device="cuda", **settings))
    evaluated = 0
    for world in Wayfarer.made:
        counting = False
        for entry in world.journal:
            if entry.kind == "reset":
                counting = entry.seed in (EVAL_SEED, EVAL_SEED + 1)
            else:
                evaluated += counting
    assert there.sent["Module.to"] == 1 and there.sent["torch.empty"] == 1
    acted = 0 if script == PPO else 10
    assert there.sent["torch.as_tensor"] == evaluated + acted
    batches = 6 * 6 if script == PPO else 10  # PPO: six columns in each of six iterations
    assert there.sent["Tensor.to"] >= batches
    assert there.sent["Tensor.cpu"] >= evaluated + (0 if script == PPO else 60)
    assert results["global_step"] == 60


@of("device")
def test_a_device_that_is_not_there(script, module, tmp_path):
    """Before anything is written."""
    for name in ("cuda", "mps"):
        if not getattr(torch, name).is_available():
            with pytest.raises(module.RunError, match=f"--device {name} cannot be used"):
                module.train(settings_of(script, tmp_path / "runs", device=name))
    with pytest.raises(module.RunError, match="--device must be one of"):
        module.train(settings_of(script, tmp_path / "runs", device="tpu"))
    assert not (tmp_path / "runs").exists()


@of("device")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_device_that_is_there(script, module, tmp_path):
    agent = module.train(settings_of(script, tmp_path, device="cuda", eval_episodes=1))["agent"]
    assert {parameter.device.type for parameter in agent.parameters()} == {"cuda"}


# --- the tables ---


def test_the_tables_name_nothing_that_is_not_there(trace_of, ppo_run_of):
    """Flags, and parts of a trace: a wrong name would never be looked for."""
    parts = set().union(*(trace_of(script) for script in WATCHED))
    for flag, _, must, may, _ in EFFECTS:
        assert any(flag in DEFAULTS[script] for script in WATCHED), flag
        assert set(f"{must} {may}".split()) <= parts
    parts = set(trace_of_ppo(ppo_run_of()))
    for flag, _, must, may, _ in EFFECTS_IN_PPO:
        assert flag in DEFAULTS[PPO], flag
        assert set(f"{must} {may}".split()) <= parts
    assert set(GAUSSIAN) | set(NOISY) == set(WATCHED)
