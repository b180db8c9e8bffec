"""What train() of the off-policy scripts does between world, buffer, update and evaluation.

The worlds of journal.py write down what happened to them; that is held against what was stored,
drawn, learnt from and evaluated. Where the update itself is not at stake, a fake one stands in.
"""

import dataclasses
import importlib
import json
import math
import random
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from helpers import scripts
from journal import (
    EVAL_SEED,
    GAUSSIAN,
    GOAL,
    HER,
    HIGH,
    LOW,
    NOISY,
    PER,
    SHORT,
    WATCHED,
    Wayfarer,
    column,
    distance_from_uniform,
    ended,
    in_own_units,
    noise_of,
    policy_mean,
    rows_of_table,
    settings_of,
    step_numbers,
    stored,
    watched_run,
    world_of,
)
from oracles import gaussian_sample, mlp, q_value, weights

each = scripts(*WATCHED)
each_of_seven = scripts(*WATCHED, "ppo_continuous")


def nothing(agent):
    """In place of an update: nothing is learnt."""


def still(agent):
    """The actor's action is 0 in every state, with next to no noise."""
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        last = agent.actor.net[-1].bias
        if len(last) == 4:
            last[2:] = -15


def another_actor(agent):
    """The actor gets other weights. Where it has a deviation, that is small and always the same."""
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
        last = agent.actor.net[-1]
        if len(last.bias) == 4:
            last.weight[2:] = 0
            last.bias[2:] = -4


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A watched run of a script, made once for all tests that ask for the same."""
    made = {}

    def run_of(script, prepare=nothing, fake=None, **changes):
        key = (script, prepare, fake, *sorted(changes.items()))
        if key not in made:
            runs_dir = tmp_path_factory.mktemp("runs")
            made[key] = watched_run(script, runs_dir, prepare, fake, **changes)
        return made[key]

    return run_of


# === What is stored ===============================================================================
@each
def test_what_is_stored_is_what_happened(run_of, script):
    """Observation, action in [-1, 1], reward, the episode's own next observation, its true end."""
    seen = run_of(script, nothing, nothing)
    kept, steps = stored(seen.replay), seen.steps
    assert len(steps) == len(kept.obs) == 60
    np.testing.assert_array_equal(kept.obs, column(steps, "obs"))
    np.testing.assert_array_equal(kept.next_obs, column(steps, "next_obs"))
    np.testing.assert_array_equal(kept.reward[:, 0], np.float32(column(steps, "reward")))
    np.testing.assert_array_equal(kept.terminated[:, 0], column(steps, "terminated"))
    given = in_own_units(kept.action.astype(np.float64))
    np.testing.assert_allclose(column(steps, "action"), given, rtol=1e-5, atol=1e-6)
    kinds = {(step.terminated, step.truncated) for step in steps}
    assert len(kinds) == 4, "no end, a true one, a time limit, both"
    # Where an episode ended, what follows is another episode's.
    for before, after in zip(steps, steps[1:], strict=False):
        assert ended(before) != np.array_equal(before.next_obs, after.obs)
        assert ended(before) == (before.obs[0] != after.obs[0])


@each
@pytest.mark.filterwarnings("ignore:.*share an object:UserWarning")  # gymnasium's
def test_a_world_that_writes_into_its_arrays(run_of, script):
    """What was stored of it is what was there then, and so is what is acted on."""
    options = '{"reuse": true}'
    seen = run_of(script, nothing, nothing, env_kwargs=options)
    other = run_of(script, nothing, nothing)
    assert seen.world.reuse and not other.world.reuse
    kept, expected = stored(seen.replay), stored(other.replay)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(kept, name), values, err_msg=name)
    assert (abs(kept.obs - kept.next_obs).max(1) > 0).all()


@each
def test_only_the_last_ones_are_kept(run_of, script):
    """As many as --buffer-size says, whatever is learnt meanwhile."""
    seen = run_of(script, nothing, nothing, buffer_size=17)
    kept, steps = stored(seen.replay), seen.steps[-17:]
    assert len(seen.replay) == len(seen.replay.table) == 17 and seen.replay.added == 60
    np.testing.assert_array_equal(kept.obs, column(steps, "obs"))
    np.testing.assert_array_equal(kept.next_obs, column(steps, "next_obs"))
    np.testing.assert_array_equal(kept.reward[:, 0], np.float32(column(steps, "reward")))


@each
def test_a_step_is_stored_before_it_is_learnt_from(run_of, script):
    """At an update the buffer has as many transitions as there were steps."""
    for one in run_of(script, nothing, nothing).updates:
        assert one.added == one.step


# === Episodes =====================================================================================
@each
def test_every_episode_begins_anew(run_of, script):
    """With a seed of its own, and so another start; one reset after each end, and none else."""
    seen = run_of(script, nothing, nothing, total_timesteps=300, updates_per_step=0)
    ends = sum(ended(step) for step in seen.steps)
    assert len(seen.resets) == 1 + ends > 50
    seeds = [reset.seed for reset in seen.resets]
    assert len(set(seeds)) == len(seeds)
    assert len({reset.obs.tobytes() for reset in seen.resets}) == len(seeds)
    assert not {*range(EVAL_SEED, EVAL_SEED + 1000)} & set(seeds)
    assert distance_from_uniform(np.array(seeds) / 2**31) < 1.95 / len(seeds) ** 0.5
    follows = [seen.journal[i + 1] for i, e in enumerate(seen.journal[:-1]) if e in seen.steps]
    kinds = [entry.kind == "reset" for entry in follows[:299]]
    assert kinds == [ended(step) for step in seen.steps[:299]]


@each
def test_the_seed_of_a_run_decides_its_episodes(run_of, script):
    first, again, other = (
        run_of(script, nothing, nothing, **changes)
        for changes in ({"seed": 5}, {"seed": 5, "log_frequency": 7}, {"seed": 6})
    )
    starts = [[reset.seed for reset in seen.resets] for seen in (first, again, other)]
    assert starts[0] == starts[1]
    assert not set(starts[0]) & set(starts[2])


@each_of_seven
def test_a_reset_seeds_the_generators_that_all_code_shares(script):
    """With a seed it does, without one it leaves them alone."""
    module = importlib.import_module(script)
    env = module.make_env(world_of(script))
    journal = env.unwrapped.journal
    for seed in (3, 2**31 - 1):
        generators = random.Random(seed), np.random.RandomState(seed)
        env.reset(seed=seed)
        assert journal[-1].shared == tuple(generator.random() for generator in generators)
        env.reset(seed=None)
        assert journal[-1].shared == tuple(generator.random() for generator in generators)


@each
def test_the_generators_that_all_code_shares_begin_with_the_seed(run_of, script):
    """Also for a world that draws from them while it is made."""
    made_with = run_of(script, nothing, nothing, seed=5).world.made_with
    assert made_with == (random.Random(5).random(), np.random.RandomState(5).random())


# === Acting =======================================================================================
@each
def test_warm_up_is_uniform(run_of, script):
    """In each dimension for itself, over all of [-1, 1], and with no memory."""
    seen = run_of(script, still, nothing, total_timesteps=700, learning_starts=700)
    action = stored(seen.replay).action.astype(np.float64)
    for values in action.T:
        assert distance_from_uniform((values + 1) / 2) < 1.95 / 700**0.5
    assert abs(np.corrcoef(action.T)[0, 1]) < 0.12
    for values in action.T:
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.12
    assert len(np.unique(action)) > 1390


@each
@pytest.mark.parametrize("learning_starts", [0, 1, 23, 59, 100])
def test_warm_up_is_as_long_as_it_should_be(learning_starts, run_of, script):
    """To the step; then the policy acts, in every step, and the first update follows its first."""
    noise = {"exploration_noise": 0, "exploration_noise_final": 0} if script in NOISY else {}
    seen = run_of(script, still, nothing, learning_starts=learning_starts, **noise)
    at_random = abs(stored(seen.replay).action).max(1) > 1e-4
    expected = np.arange(60) < learning_starts
    np.testing.assert_array_equal(at_random, expected)
    steps = [one.step for one in seen.updates]
    first = learning_starts + 1
    if script == HER:  # it waits for the end of an episode
        first = max(first, 1 + min(i for i, step in enumerate(seen.steps) if ended(step)))
    assert steps == [*range(first, 61)]


@each
def test_the_policy_acts_as_it_is(run_of, script):
    """In every step: that which the update before it left, on the observation that is there now.

    Its noise is normal, fresh for each step, and each dimension has its own.
    """
    noise = {"exploration_noise": 0.05, "exploration_noise_final": 0.05} if script in NOISY else {}
    settings = {"total_timesteps": 600, "learning_starts": 15, "updates_per_step": 0.2} | noise
    seen = run_of(script, another_actor, another_actor, **settings)
    assert len(seen.updates) > 110
    drawn = noise_of(seen, script, 15)
    assert drawn.shape == (585, 2)
    assert abs(drawn).max() < 4.5, "of another policy's mean it would be dozens of deviations"
    assert abs(drawn.mean(0)).max() < 0.14
    np.testing.assert_allclose(drawn.std(0), 1, atol=0.1)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.14
    for values in drawn.T:
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.14
    assert len(np.unique(drawn)) == drawn.size
    share = (abs(drawn) < 1).mean()
    assert share == pytest.approx(0.683, abs=0.05), "and not uniform"


@scripts(*NOISY)
def test_noise_does_not_lead_out_of_the_bounds(run_of, script):
    """It is cut there, on both sides; what is stored is what was done."""
    noise = {"exploration_noise": 2.0, "exploration_noise_final": 2.0}
    seen = run_of(script, still, nothing, total_timesteps=300, learning_starts=0, **noise)
    action, given = stored(seen.replay).action, column(seen.steps, "action")
    assert abs(action).max() == 1
    for bound, own in ((-1, LOW), (1, HIGH)):
        at_bound = action == bound
        assert at_bound.mean() == pytest.approx(0.309, abs=0.06), "of N(0, 4), beyond 1"
        for dimension in range(2):
            there = given[at_bound[:, dimension], dimension]
            np.testing.assert_array_equal(there, own[dimension])


@scripts(*GAUSSIAN)
def test_the_deviation_of_the_policy_is_used(run_of, script):
    """It is the actor's own, and may be wide; tanh keeps the action inside."""

    seen = run_of(script, total_timesteps=600, learning_starts=0, updates_per_step=0)
    drawn = noise_of(seen, script, 0)
    np.testing.assert_allclose(drawn.std(0), 1, atol=0.1)
    assert abs(drawn.mean(0)).max() < 0.15
    assert abs(stored(seen.replay).action).max() < 1


# === Learning =====================================================================================
def available(seen, script, step, capacity):
    """The first and the last number, exclusive, of the transitions that may be drawn then."""
    first, last = max(0, step - capacity), step
    if script == HER:
        ends = [i + 1 for i, entry in enumerate(seen.steps[:step]) if ended(entry)]
        begins = [0, *ends]
        first, last = min(b for b in begins if b >= first), ends[-1]
    return first, last


@pytest.mark.slow_but("[60-")
@each
@pytest.mark.parametrize("capacity", [1000, 60])
def test_batches_are_drawn_from_all_that_is_there(capacity, run_of, script):
    """Uniformly, from the newest to the oldest, as soon as they are stored, as long as they are."""
    settings = {"total_timesteps": 200, "learning_starts": 20, "batch_size": 48}
    settings |= {"buffer_size": capacity} | ({"per_alpha": 0.0} if script == PER else {})
    seen = run_of(script, nothing, nothing, **settings)
    places, newest, oldest, expected, chance = [], 0, 0, 0.0, np.random.default_rng(0)
    for one in seen.updates:
        first, last = available(seen, script, one.step, capacity)
        numbers = step_numbers(seen, one.batch)
        assert len(numbers) == 48
        assert numbers.min() >= first and numbers.max() < last
        places.append((numbers - first + chance.random(48)) / (last - first))
        newest += (numbers == last - 1).sum()
        oldest += (numbers == first).sum()
        expected += 48 / (last - first)
    assert len(places) == 180
    places = np.concatenate(places)
    assert distance_from_uniform(places) < 1.95 / len(places) ** 0.5
    for count in (newest, oldest):
        assert abs(count - expected) < 4 * expected**0.5, "and not one too few"


@each
def test_every_update_has_a_batch_of_its_own(run_of, script):
    """Drawn afresh, with replacement, whole transitions; also where a step has several updates."""
    settings = {"updates_per_step": 3.0, "batch_size": 16, "learning_starts": 40}
    seen = run_of(script, nothing, nothing, **settings)
    steps = [one.step for one in seen.updates]
    assert len(steps) == 3 * len(set(steps)) == 60
    draws = [tuple(step_numbers(seen, one.batch)) for one in seen.updates]
    assert len(set(draws)) == len(draws)
    twice = np.mean([len(set(draw)) < len(draw) for draw in draws])
    assert twice > (0.2 if script == PER else 0.8)  # PER draws one from each of 16 parts
    for one, draw in zip(seen.updates, draws, strict=True):
        entries = [seen.steps[number] for number in draw]
        np.testing.assert_array_equal(one.batch.next_obs[:, :3], column(entries, "next_obs")[:, :3])
        np.testing.assert_array_equal(one.batch.terminated, column(entries, "terminated"))
        kept = seen.replay.columns[1][list(draw)]
        np.testing.assert_array_equal(one.batch.action, kept)
        if script != HER:
            np.testing.assert_array_equal(one.batch.reward, np.float32(column(entries, "reward")))
            np.testing.assert_array_equal(one.batch.obs, column(entries, "obs"))


RATES = {"1": 1.0, "1/2": 0.5, "3/10": 0.3, "1/4": 0.25, "2": 2.0, "5/2": 2.5, "0": 0.0}


@each
@pytest.mark.parametrize("rate", RATES)
def test_updates_due(rate, script):
    """After k steps of learning there were floor(k rate), numbered from 1 without a gap."""
    module = importlib.import_module(script)
    made = []
    for step in range(-5, 200):
        due = list(module.updates_due(step, RATES[rate]))
        assert due == list(range(len(made) + 1, len(made) + 1 + len(due))), step
        made += due
        assert len(made) == math.floor(max(step, 0) * Fraction(rate)), step


@each
def test_what_an_update_is_given(run_of, script):
    """The agent of the run, one batch, the settings; TD3 also the number of the update."""
    settings = {"updates_per_step": 2.0, "learning_starts": 40}
    seen = run_of(script, nothing, nothing, **settings)
    assert len(seen.updates) == 40
    for number, one in enumerate(seen.updates, 1):
        rest = list(one.rest)
        if script == PER:
            weight = rest.pop(0)
            assert weight.shape == (8,) and weight.max() == 1
        assert rest[0] is seen.run.args
        assert rest[1:] == ([number] if script in ("td3_continuous", PER) else [])
        assert [*one.batch._fields] == "obs action reward next_obs terminated".split()
        assert all(x.dtype == torch.float32 for x in one.batch)
        shapes = [tuple(x.shape) for x in one.batch]
        size = 7 if script == HER else 3
        assert shapes == [(8, size), (8, 2), (8,), (8, size), (8,)]


@each
def test_nothing_moves_but_in_an_update(run_of, script):
    """Each update begins with the weights that the one before left, slow copies included."""
    seen = run_of(script, updates_per_step=0.5, learning_starts=40)
    states = [seen.initial]
    for one in seen.updates:
        assert same_numbers(states[-1], one.before)
        states.append(one.after)
        assert not same_numbers(one.before, one.after)
    final = {name: [] for name in seen.initial}
    for name, parameter in seen.agent.named_parameters():
        final[name.split(".")[0]].append(parameter.detach().double().numpy())
    assert same_numbers(states[-1], final)


PACE = {"policy_lr": 0.01, "q_lr": 0.02, "tau": 0.2, "gamma": 0.9, "updates_per_step": 2.0}
PACE |= {"total_timesteps": 33, "learning_starts": 25}


def target_by_hand(script, args, one):
    """What the critics were to learn, from batch, noise and the weights before an update."""
    obs, action, reward, next_obs, terminated = (x.double().numpy() for x in one.batch)
    before = one.before
    if script == "sac_v1_value_net":
        value = mlp(before["v_target"], next_obs)[:, 0]
    elif script in GAUSSIAN:
        alpha = np.exp(before["log_alpha"][0])
        next_action, log_prob = gaussian_sample(before["actor"], next_obs, one.noise[0])
        values = [q_value(before[name], next_obs, next_action) for name in TARGETS[script]]
        value = np.minimum(*values) - alpha * log_prob
    else:
        next_action = np.tanh(mlp(before["actor_target"], next_obs))
        if script != "ddpg_continuous":
            bound = args.noise_clip
            noise = np.clip(args.policy_noise * one.noise[0], -bound, bound)
            next_action = np.clip(next_action + noise, -1, 1)
        values = [q_value(before[name], next_obs, next_action) for name in TARGETS[script]]
        value = np.min(values, axis=0)
    return reward + args.gamma * (1 - terminated) * value


TARGETS = dict.fromkeys(WATCHED, ["q1_target", "q2_target"]) | {"ddpg_continuous": ["q_target"]}


@each
def test_what_each_update_of_a_run_aims_at(run_of, script):
    """With two updates per step, each has the networks and the temperature of its own time."""
    changes = {"alpha_lr": 0.3} if script in ("sac_continuous", HER) else {}
    seen = run_of(script, **PACE | changes)
    assert len(seen.updates) == 16
    for one in seen.updates:
        expected = target_by_hand(script, seen.run.args, one)
        for target in one.targets:
            np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-4)
        if "alpha" in one.returned:
            alpha = np.exp(one.before["log_alpha"][0])
            assert one.returned["alpha"].item() == pytest.approx(alpha, rel=1e-5)
            _, log_prob = gaussian_sample(
                one.before["actor"], one.batch.obs.double().numpy(), one.noise[1]
            )
            slope = -alpha * (log_prob.mean() - 2)
            got = one.gradients["alpha_optimizer"][0][0]
            assert got == pytest.approx(slope, rel=1e-3, abs=1e-4)


@each
def test_networks_of_a_run_start_apart_and_slow_copies_do_not(run_of, script):
    start = run_of(script, nothing, nothing).initial
    names = {name for name in start if name.startswith(("q", "v")) and "target" not in name}
    for name in names:
        for other in names - {name}:
            assert not np.array_equal(start[name][-2], start[other][-2]), (name, other)
    for name in start:
        if name.endswith("_target"):
            assert same_numbers({"": start[name]}, {"": start[name.removesuffix("_target")]})


def same_numbers(a, b):
    assert a.keys() == b.keys()
    pairs = [pair for name in a for pair in zip(a[name], b[name], strict=True)]
    return all(np.array_equal(*pair) for pair in pairs)


@each
def test_metrics_of_a_row_are_those_of_the_last_update(script, tmp_path, monkeypatch):
    """Each name as the last update left it that had it: not every update has every one."""
    module = importlib.import_module(script)
    made = iter(range(1000))

    def update(agent, batch, *rest):
        number = next(made)
        metrics = {"every": torch.tensor([number, number + 2.0])}
        if number % 2 == 0:
            metrics["second"] = torch.tensor(10.0 * number)
        return (metrics, [torch.zeros(len(batch.reward))]) if script == PER else metrics

    monkeypatch.setattr(module, "update", update)
    args = settings_of(script, tmp_path, log_frequency=10, learning_starts=20)
    rows = rows_of_table(module.train(args))
    assert [row["global_step"] for row in rows] == ["10", "20", "30", "40", "50", "60"]
    every = [row["every"] for row in rows]
    assert every[:2] == ["", ""] and [float(x) for x in every[2:]] == [10, 20, 30, 40]
    assert [float(row["second"]) for row in rows[2:]] == [80, 180, 280, 380]


# === Hindsight and priorities =====================================================================
def test_hindsight_waits_for_an_episode_and_does_not_catch_up(run_of):
    """No update before one has ended; afterwards as many as ever."""
    seen = run_of(HER, nothing, nothing, learning_starts=0, seed=4)
    first = 1 + min(i for i, step in enumerate(seen.steps) if ended(step))
    assert first > 1
    assert [one.step for one in seen.updates] == [*range(first, 61)]


def test_hindsight_knows_where_episodes_end(run_of):
    """It is told after each end, of either kind, when the last step is stored; and only then."""
    seen = run_of(HER, nothing, nothing)
    ends = [0, *(i + 1 for i, step in enumerate(seen.steps) if ended(step))]
    buffer = seen.replay
    assert buffer.newest == ends[-1] and buffer.oldest == 0
    for begin, end in zip(ends, ends[1:], strict=False):
        assert set(buffer.begin[begin:end].tolist()) == {begin}
        assert set(buffer.end[begin:end].tolist()) == {end}


def test_rewards_in_hindsight_are_judged_by_the_goal(run_of):
    """Of what the step led to, as the world judges it; the rest is as it was stored."""
    seen = run_of(HER, nothing, nothing)
    for one in seen.updates:
        for i, number in enumerate(step_numbers(seen, one.batch)):
            entry = seen.steps[number]
            goal = one.batch.obs[i, GOAL].numpy()
            np.testing.assert_array_equal(one.batch.next_obs[i, GOAL], goal)
            if np.array_equal(goal, entry.obs[GOAL]):
                expected = entry.reward
            else:
                expected = -abs(entry.next_obs[3:5] - goal).sum()
            assert one.batch.reward[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_priorities_are_those_of_the_rows_that_were_learnt_from(run_of):
    """(largest error + 0.01)^alpha, at once; a new transition gets the largest there is.

    And the weights of a batch are (N P)^-beta, the largest 1, beta growing from its start to 1.
    """
    settings = {"per_alpha": 0.7, "per_beta": 0.3, "updates_per_step": 2.0, "batch_size": 4}
    seen = run_of(PER, **settings)
    priority = np.zeros(60)
    added = 0
    assert len(seen.updates) == 90
    for one in seen.updates:
        for number in range(added, one.step):
            priority[number] = priority[:number].max(initial=0) or 1.0
        added = one.step
        numbers = step_numbers(seen, one.batch)
        probability = priority[numbers] / priority[:added].sum()
        beta = 0.3 + 0.7 * one.step / 60
        weight = (added * probability) ** -beta
        np.testing.assert_allclose(one.rest[0], weight / weight.max(), rtol=1e-4)
        _, errors = one.returned
        largest = np.max([abs(error.numpy()) for error in errors], axis=0)
        for number, error in zip(numbers, largest, strict=True):
            priority[number] = (error + 0.01) ** 0.7
    leaf = seen.replay.leaf
    np.testing.assert_allclose(seen.replay.sum[leaf : leaf + 60], priority, rtol=1e-5)
    assert priority.max() / priority.min() > 2


# === Evaluation ===================================================================================
def evaluations_of(world):
    """What happened in a world that is only evaluated in: lists of (reset, steps) by evaluation."""
    evaluations = []
    for entry in world.journal:
        if entry.kind == "reset" and entry.seed == EVAL_SEED:
            evaluations.append([])
        if not evaluations:
            continue  # HER tries the goals first
        if entry.kind == "reset":
            evaluations[-1].append((entry, []))
        else:
            evaluations[-1][-1][1].append(entry)
    return evaluations


@each
def test_evaluation_is_of_the_policy_as_it_is_and_without_noise(run_of, script):
    """From starts that are always the same and differ from each other, in a world of its own."""
    settings = {"eval_frequency": 20, "eval_episodes": 3}
    seen = run_of(script, another_actor, another_actor, **settings)
    world = seen.run.eval_env.unwrapped
    assert world is not seen.world and len(seen.worlds) == 2
    assert len(seen.journal) == len(seen.steps) + len(seen.resets)
    evaluations = evaluations_of(world)
    assert [len(episodes) for episodes in evaluations] == [1, 3, 3, 3], "one before training"
    starts = [reset.obs.tobytes() for reset, _ in evaluations[1]]
    assert len(set(starts)) == 3
    actors = [seen.initial["actor"], *(seen.actors[step] for step in (20, 40, 60))]
    for episodes, actor in zip(evaluations, actors, strict=True):
        seeds = [reset.seed for reset, _ in episodes]
        assert seeds == [EVAL_SEED, EVAL_SEED + 1, EVAL_SEED + 2][: len(episodes)]
        for number, (reset, steps) in enumerate(episodes):
            assert reset.obs.tobytes() == starts[number]
            assert [ended(step) for step in steps] == [False] * (len(steps) - 1) + [True]
            for step in steps:
                expected = in_own_units(np.tanh(policy_mean(script, actor, step.obs)))
                np.testing.assert_allclose(step.action, expected, rtol=1e-4, atol=1e-5)
    rows = [row for row in rows_of_table(seen.results) if row["eval_return_mean"]]
    assert [row["global_step"] for row in rows] == ["20", "40", "60"]
    for row, episodes in zip(rows, evaluations[1:], strict=True):
        returns = [sum(step.reward for step in steps) for _, steps in episodes]
        assert float(row["eval_return_mean"]) == pytest.approx(np.mean(returns))
        assert float(row["eval_return_std"]) == pytest.approx(np.std(returns))
        assert row["eval_episodes"] == "3"


@each
def test_evaluation_changes_nothing_of_the_training(run_of, script):
    """Neither what is drawn for it, of any generator, nor the world that it goes on in."""
    watched = run_of(script, another_actor, another_actor, eval_frequency=20, eval_episodes=3)
    unwatched = run_of(script, another_actor, another_actor)
    assert len(watched.journal) == len(unwatched.journal)
    for one, other in zip(watched.journal, unwatched.journal, strict=True):
        assert one.kind == other.kind
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@each
def test_one_world_is_enough_where_evaluation_is_at_the_end(run_of, script):
    """It comes after the last step, and its first reset is the first thing that it does there."""
    seen = run_of(script, another_actor, another_actor, eval_frequency=0, eval_episodes=2)
    assert seen.run.eval_env.unwrapped is seen.world and len(seen.worlds) == 1
    resets = [entry for entry in seen.rest if entry.kind == "reset"]
    assert seen.rest[0] is resets[0]
    assert [reset.seed for reset in resets] == [EVAL_SEED, EVAL_SEED + 1]
    actor = seen.actors[60]
    for entry in seen.rest:
        if entry.kind == "step":
            expected = in_own_units(np.tanh(policy_mean(script, actor, entry.obs)))
            np.testing.assert_allclose(entry.action, expected, rtol=1e-4, atol=1e-5)


@each_of_seven
def test_trajectories(script):
    """evaluate() alone: what it returns is what happened, and no generator has moved."""
    module = importlib.import_module(script)
    args = settings_of(script, "", eval_episodes=4)
    env = module.make_env(args.env_id)
    torch.manual_seed(7)
    agent = module.Agent(env.observation_space.shape[0], 2, args)
    another_actor_of_any_kind(agent)
    env.reset(seed=1)
    journal = env.unwrapped.journal
    journal.clear()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    trajectories = module.evaluate(agent.actor, env, args)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0]
    for one, other in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.equal(before[2], after[2])
    assert len(trajectories) == 4
    resets = [entry for entry in journal if entry.kind == "reset"]
    assert [reset.seed for reset in resets] == [EVAL_SEED + i for i in range(4)]
    flat = [step for trajectory in trajectories for step in trajectory]
    entries = [entry for entry in journal if entry.kind == "step"]
    for step, entry in zip(flat, entries, strict=True):
        obs, action, reward, next_obs, terminated, info = step
        np.testing.assert_array_equal(obs, entry.obs)
        np.testing.assert_array_equal(next_obs, entry.next_obs)
        np.testing.assert_allclose(in_own_units(action), entry.action, rtol=1e-5, atol=1e-6)
        assert (reward, terminated, info) == (entry.reward, entry.terminated, {})
    again = module.evaluate(agent.actor, env, args)
    for one, other in zip(trajectories, again, strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a[1], b[1])


def another_actor_of_any_kind(agent):
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))


@each_of_seven
def test_an_evaluation_that_does_not_end_is_ended(script, monkeypatch):
    """Where there is no time limit: after 10,000 steps, here 20; and not a step earlier."""
    module = importlib.import_module(script)
    assert module.EVAL_STEPS == 10_000
    monkeypatch.setattr(module, "EVAL_STEPS", 20)
    args = settings_of(script, "", eval_episodes=1)
    for length, limit, fails in ((21, None, True), (20, None, False), (30, 40, False)):
        env = module.make_env(args.env_id)
        env.reset(seed=1)
        world = env.unwrapped
        reset = world.reset

        def endless(*, seed=None, options=None, world=world, reset=reset, length=length):
            result = reset(seed=seed, options=options)
            world.length = length
            return result

        monkeypatch.setattr(world, "reset", endless)
        env.spec.max_episode_steps = limit
        agent = module.Agent(env.observation_space.shape[0], 2, args)
        if fails:
            with pytest.raises(module.RunError, match="--max-episode-steps"):
                module.evaluate(agent.actor, env, args)
        else:
            assert len(module.evaluate(agent.actor, env, args)[0]) == length


# === The end ======================================================================================
@each
def test_the_last_step_is_like_any_other(run_of, script):
    """It is learnt from, evaluated, logged and saved, in this order; then there is none."""
    settings = {"total_timesteps": 37, "learning_starts": 30}
    settings |= {"eval_frequency": 10, "eval_episodes": 2}
    seen = run_of(script, files=True, **settings)
    assert seen.run.step == len(seen.steps) == 37
    assert seen.updates[-1].step == 37
    folder = seen.results["run_dir"]
    model = torch.load(folder / "model.pt", weights_only=True)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["step"] == 37
    assert checkpoint["parts"]["replay"]["added"] == 37
    for name, value in seen.agent.state_dict().items():
        assert torch.equal(model[name], value), name
        assert torch.equal(checkpoint["parts"]["agent"][name], value), name
    last = rows_of_table(seen.results)[-1]
    assert last["global_step"] == "37"
    episodes = evaluations_of(seen.run.eval_env.unwrapped)[-1]
    step = episodes[0][1][0]
    actor = weights(seen.agent.actor)
    expected = in_own_units(np.tanh(policy_mean(script, actor, step.obs)))
    np.testing.assert_allclose(step.action, expected, rtol=1e-4, atol=1e-5)


@each
def test_what_train_returns(run_of, script):
    """The agent that was trained and its actor, the folder, and the last row's results."""
    settings = {"eval_frequency": 20, "eval_episodes": 3, "log_frequency": 6}
    seen = run_of(script, nothing, nothing, **settings)
    results = seen.results
    assert results["agent"] is seen.agent and results["actor"] is seen.agent.actor
    assert results["run_dir"] == seen.run.dir and results["global_step"] == 60
    rows = rows_of_table(results)
    for name in ("eval_return_mean", "eval_return_std"):
        assert results[name] == pytest.approx(float(rows[-1][name]))
    assert results["eval_episodes"] == 3 and results["seconds"] > 0
    args = json.loads((results["run_dir"] / "args.json").read_text())
    expected = dataclasses.asdict(settings_of(script, seen.run.args.runs_dir))
    expected |= settings
    assert expected.items() <= args.items()


@each
def test_episodes_are_counted_as_they_ended(run_of, script):
    """Number, mean return and mean length of those that ended since the row before."""
    seen = run_of(script, nothing, nothing, log_frequency=9)
    done, since, total, length = 0, [], 0.0, 0
    rows = {int(row["global_step"]): row for row in rows_of_table(seen.results)}
    for number, step in enumerate(seen.steps, 1):
        total, length = total + step.reward, length + 1
        if ended(step):
            since.append((total, length))
            done, total, length = done + 1, 0.0, 0
        if number in rows:
            row = rows[number]
            assert int(row["episodes"]) == done
            if since:
                means = np.mean(since, axis=0)
                assert float(row["episodic_return"]) == pytest.approx(means[0])
                assert float(row["episodic_length"]) == pytest.approx(means[1])
            since = []
    assert list(rows) == [9, 18, 27, 36, 45, 54, 60]


# === The adapter ==================================================================================
class Given(gym.Env):
    """It keeps the actions it was given, and returns what it was told to."""

    def __init__(self, low, high, kind):
        self.action_space = gym.spaces.Box(np.array(low, kind), np.array(high, kind), dtype=kind)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
        self.given = []
        self.obs = np.arange(4.0).reshape(2, 2)
        self.answer = (1.0, False, False)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs, {"options": options}

    def step(self, action):
        self.given.append(action)
        return self.obs, *self.answer, {"key": 1}


for name, low, high, kind in [
    ("Matrix", [[-3, 0], [1, -1]], [[5, 1], [9, -0.5]], np.float32),
    ("Fine", [-0.3, 10], [0.1, 11], np.float64),
    ("Integer", [-3, 0], [5, 10], np.int64),
]:
    worlds.register(f"Given{name}", Given, None, low=low, high=high, kind=kind)

WITHOUT_GOALS = [script for script in WATCHED if script != HER] + ["ppo_continuous"]


@pytest.fixture
def adapted(script):
    """The script's environment around one of those above, unchecked by gymnasium."""
    module = importlib.import_module(script)

    def adapted(name):
        return module.make_env(f"Given{name}-v0", disable_env_checker=True)

    return adapted


@scripts(*WITHOUT_GOALS)
@pytest.mark.parametrize("name", ["Matrix", "Fine", "Integer"])
def test_actions_are_rescaled_number_by_number(name, adapted):
    """Linearly, -1 and 1 being the bounds themselves, beyond which nothing leads."""
    env = adapted(name)
    space = env.unwrapped.action_space
    size = space.low.size
    assert env.action_space == gym.spaces.Box(-1, 1, (size,), np.float32)
    env.reset(seed=1)
    low, high = space.low.ravel().astype(float), space.high.ravel().astype(float)
    for value in (-1.0, -0.5, 0.0, 0.25, 1.0, 3.0, -7.0):
        action = np.full(size, value, np.float32) * np.linspace(0.5, 1, size, dtype=np.float32)
        untouched = action.copy()
        env.step(action)
        np.testing.assert_array_equal(action, untouched)
        given = env.unwrapped.given[-1]
        assert given.dtype == space.dtype and given.shape == space.shape
        assert space.contains(given)
        expected = low + (high - low) * (np.clip(action.astype(float), -1, 1) + 1) / 2
        if name == "Integer":
            assert (given == np.rint(expected)).all()
        else:
            np.testing.assert_allclose(given.ravel(), expected, rtol=1e-6, atol=1e-6)
    for value, bound in ((-1, space.low), (1, space.high)):
        env.step(np.full(size, value, np.float32))
        np.testing.assert_array_equal(env.unwrapped.given[-1], bound)


@scripts(*WITHOUT_GOALS)
def test_observations_are_flat_and_float32_and_copies(adapted):
    env = adapted("Matrix")
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    world = env.unwrapped
    first, info = env.reset(seed=1, options={"a": 2})
    assert info == {"options": {"a": 2}}
    world.obs += 10
    second, *_ = env.step(np.zeros(4, np.float32))
    for obs, expected in ((first, [0, 1, 2, 3]), (second, [10, 11, 12, 13])):
        assert obs.dtype == np.float32
        np.testing.assert_array_equal(obs, expected)


@scripts(*WITHOUT_GOALS)
def test_the_rest_of_an_answer_is_passed_on(adapted):
    """As plain Python numbers, each in its own place."""
    env = adapted("Matrix")
    env.reset(seed=1)
    for reward, terminated, truncated in [
        (0.5, False, True),
        (np.float64(2.5), True, False),
        (np.array([3.0]), np.bool_(True), np.bool_(True)),
        (7, np.bool_(False), False),
    ]:
        env.unwrapped.answer = (reward, terminated, truncated)
        _, *got, info = env.step(np.zeros(4, np.float32))
        assert got == [float(np.asarray(reward).item()), bool(terminated), bool(truncated)]
        assert [type(x) for x in got] == [float, bool, bool] and info == {"key": 1}


@scripts(*WITHOUT_GOALS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value, adapted, script):
    """An observation in any place, and a reward."""
    module = importlib.import_module(script)
    env = adapted("Matrix")
    env.reset(seed=1)
    world = env.unwrapped
    world.answer = (value, False, False)
    with pytest.raises(module.RunError, match="reward is not finite"):
        env.step(np.zeros(4, np.float32))
    world.answer = (0.0, False, False)
    world.obs = world.obs.copy()
    world.obs[1, 1] = value
    with pytest.raises(module.RunError, match="observation is not finite"):
        env.step(np.zeros(4, np.float32))
    with pytest.raises(module.RunError, match="observation is not finite"):
        env.reset(seed=1)


@each_of_seven
def test_options_reach_the_constructor_and_the_time_limit(script):
    """Those of --env-kwargs and of --max-episode-steps, by make_env."""
    module = importlib.import_module(script)
    env = module.make_env(world_of(script), shift=2.0, max_episode_steps=2)
    assert env.unwrapped.shift == 2 and env.spec.max_episode_steps == 2
    env.reset(seed=3)
    env.unwrapped.length = 50
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]


@each_of_seven
def test_double_precision_is_seen_in_single(script):
    module = importlib.import_module(script)
    env = module.make_env(world_of(script), dtype="float64")
    obs, _ = env.reset(seed=3)
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs, env.unwrapped.journal[-1].obs)


def test_the_worlds_of_this_file_are_all_they_should_be():
    """No two episodes alike, ends of all kinds, rewards that depend on each action."""
    env = gym.make("journal:Wayfarer-v0")
    ends = set()
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        rewards = []
        for action in (LOW, HIGH):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            _, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            if terminated or truncated:
                ends.add((terminated, truncated))
        assert rewards[1] - rewards[0] == pytest.approx(0.3 * 4 - 0.1 * 6)
    assert len(ends) == 3
    assert isinstance(Wayfarer.made, list) and SHORT["eval_episodes"] == 0
