"""PPO: its formulas, what becomes of a batch, what it learns, and how a run goes on.

What it shares with the off-policy scripts is in the files that run for every script.
"""

import copy
import dataclasses
import functools
import math
import multiprocessing
import os
import re
import signal
import time
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
import worlds
from helpers import QUICK, child, main, metrics, read_checkpoint, run_dir, same
from oracles import ACT, OBS, B, log_normal
from processes import PROCESSES, at_call, begin, die, posix, refusal, refused, wait

import ppo_continuous as ppo

T, N = 11, 3  # steps and environments of a batch made by hand
SIZE = 20  # steps of a quick run's iteration; it has 12 of them
BASE = tyro.cli(ppo.Args, args=QUICK["ppo_continuous"])


class Staggered(worlds.Corridor):
    """Episodes of 1 to 6 steps; a die says whether time cuts them, a true end does, or both.

    It observes the episode's number, the time and the die; the reward is the time.
    """

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.time = 0
        self.ends, self.die = self.np_random.integers((1, 0), (7, 3))
        self.number = self.np_random.random()
        return self.observe(), {}

    def observe(self):
        return np.array([self.number, self.time, self.die], np.float32)

    def step(self, action):
        self.time += 1
        ended = self.time == self.ends
        return self.observe(), float(self.time), ended and self.die > 0, ended and self.die < 2, {}


worlds.register("Staggered", Staggered, None)
STAGGERED = "test_ppo:Staggered-v0"  # so that the processes of --async-envs find it too


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def ppo_run(tmp_path_factory):
    """Train here and now, quickly unless told otherwise, in a fresh --runs-dir."""

    def ppo_run(**settings):
        runs_dir = str(tmp_path_factory.mktemp("runs"))
        return ppo.train(dataclasses.replace(BASE, **{"runs_dir": runs_dir} | settings))

    return ppo_run


@pytest.fixture
def calls(monkeypatch):
    """Watch functions of the script: a list of (name, arguments, result), one for each call."""

    def watch(seen, name, real):
        def noted(*args):
            result = real(*args)
            seen.append((name, args, result))
            return result

        monkeypatch.setattr(ppo, name, noted)

    def calls(*names):
        seen = []
        for name in names:
            watch(seen, name, getattr(ppo, name))
        return seen

    return calls


@pytest.fixture
def batches(calls):
    """Every rollout of the runs of this test."""
    seen = calls("collect")
    return lambda: [result[0] for _, _, result in seen]


# === Formulas =====================================================================================
def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_log_prob():
    action, mean, log_std = rand(B, N, ACT), rand(B, N, ACT), rand(ACT)
    got = ppo.gaussian_log_prob(action, mean, log_std)
    assert got.shape == (B, N)
    expected = log_normal(action.numpy(), mean.numpy(), log_std.exp().numpy()).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def kl(*numbers):
    """The function under test in one dimension, of mean, standard deviation, mean and ditto."""
    mean, std, new_mean, new_std = torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)
    return ppo.gaussian_kl(mean, std.log(), new_mean, new_std.log()).item()


@pytest.mark.parametrize("numbers", [(0, 1, 0, 2), (0, 2, 0, 1), (1, 0.3, -0.5, 0.7)])
def test_kl_is_the_integral(numbers):
    """Of p_old log(p_old / p_new): the one that acted comes first."""
    mean, std, new_mean, new_std = numbers
    x = np.linspace(mean - 12 * std, mean + 12 * std, 100_001)
    old, new = log_normal(x, mean, std), log_normal(x, new_mean, new_std)
    assert kl(*numbers) == pytest.approx(np.trapezoid(np.exp(old) * (old - new), x), rel=1e-6)


def test_kl_of_several_dimensions():
    """It adds up; it is 0 between equals; and it has a direction."""
    mean, log_std, new_mean, new_log_std = rand(4, B, ACT).unbind()
    got = ppo.gaussian_kl(mean, log_std[0], new_mean, new_log_std[0])
    assert got.shape == (B,)
    for i in range(B):
        pairs = (mean[i], log_std[0].exp(), new_mean[i], new_log_std[0].exp())
        assert got[i].item() == pytest.approx(sum(kl(*p) for p in zip(*pairs, strict=True)))
    assert (ppo.gaussian_kl(mean, log_std, mean, log_std) == 0).all()
    assert kl(0, 1, 0, 2) == pytest.approx(math.log(2) + 1 / 8 - 1 / 2)
    assert kl(0, 2, 0, 1) == pytest.approx(-math.log(2) + 2 - 1 / 2)


def made_up():
    """Steps of reward, value and V(s'), with ends of all kinds; V(s') is V(s) of the next step."""
    terminated, truncated = torch.rand(2, T, N) < 0.25
    ended = terminated | truncated
    assert (terminated & truncated).any() and (truncated & ~terminated).any()
    value, next_value = rand(T + 1, N), rand(T, N)
    next_value = torch.where(ended, next_value, value[1:])
    batch = ppo.Rollout(None, None, rand(T, N), None, terminated.double(), ended.double())
    return batch, value[:-1], next_value


@pytest.mark.parametrize("lam", [0.0, 0.7, 0.95, 1.0])
def test_gae_is_the_weighted_sum_of_n_step_advantages(lam):
    """(1 - lambda) lambda^(n-1) of each, and lambda^(N-1) of the last: [2016], eq. 16, cut."""
    batch, value, next_value = made_up()
    got = ppo.gae(batch, value, next_value, 0.9, lam)
    assert got.shape == (T, N)
    _, _, reward, _, terminated, ended = (x if x is None else x.numpy() for x in batch)
    for i in range(N):
        for t in range(T):
            n_step, rewards = [], 0.0
            for k in range(t, T):
                rewards += 0.9 ** (k - t) * reward[k, i]
                rest = 0.0 if terminated[k, i] else 0.9 ** (k - t + 1) * next_value[k, i].item()
                n_step.append(rewards + rest - value[t, i].item())
                if ended[k, i]:
                    break
            weights = [(1 - lam) * lam**n for n in range(len(n_step) - 1)]
            weights.append(lam ** (len(n_step) - 1))
            assert sum(weights) == pytest.approx(1)
            assert got[t, i].item() == pytest.approx(np.dot(weights, n_step), abs=1e-12)


@pytest.mark.parametrize("flags, last", [("truncated", 0), ("terminated", -9), ("both", -9)])
def test_gae_at_an_end(flags, last):
    """Reward 1 for ever is worth V = 10; where there is no for ever, the last step loses 9.

    What comes after the end, a million here, leaks into nothing.
    """
    ones, step = torch.ones(5, 1), torch.zeros(5, 1)
    step[2] = 1
    reward = torch.where(torch.arange(5).unsqueeze(1) > 2, 1e6, ones)
    batch = ppo.Rollout(None, None, reward, None, step * (flags != "truncated"), step)
    got = ppo.gae(batch, 10 * ones, 10 * ones, 0.9, 0.8).flatten()
    assert got[3] > 1e6 - 100
    expected = [last * 0.72**2, last * 0.72, last]
    np.testing.assert_allclose(got[:3], expected, atol=1e-5)


# The ratios (below, within, above 0.8 to 1.2) and signs of A at which there is nothing to gain.
FLAT = {"clip": [(0.5, -1), (1.5, 1)], "kl-penalty": [], "unclipped": []}
FLAT["clip-no-min"] = [(0.5, -1), (0.5, 1), (1.5, -1), (1.5, 1)]


@pytest.mark.parametrize("kind", FLAT)
def test_surrogate(kind):
    """Value and slope in the six cases."""
    cases = [(ratio, sign) for ratio in (0.5, 1.1, 1.5) for sign in (-1, 1)]
    ratio, advantage = (x.double() for x in torch.tensor(cases).unbind(1))
    advantage *= 3
    gain = ppo.surrogate(kind, ratio.requires_grad_(), advantage, 0.2)
    (slope,) = torch.autograd.grad(gain.sum(), ratio)
    for i, (r, sign) in enumerate(cases):
        flat = (r, sign) in FLAT[kind]
        assert gain[i].item() == pytest.approx(3 * sign * (np.clip(r, 0.8, 1.2) if flat else r))
        assert slope[i].item() == (0 if flat else 3 * sign)


@pytest.mark.parametrize("limit", [0.2, math.inf])
def test_value_loss(limit):
    """Value and slope; both sides of the maximum and of the limit occur."""
    returns, old = rand(2, 200).unbind()
    value = (old + 0.3 * rand(200)).requires_grad_()
    loss = ppo.value_loss(value, returns, old, limit)
    (slope,) = torch.autograd.grad(loss, value)
    v, r, o = (x.detach().numpy() for x in (value, returns, old))
    near = o + np.clip(v - o, -limit, limit)
    held = (near - r) ** 2 > (v - r) ** 2 + 1e-12
    assert held.any() == (abs(v - o) > limit).any() == (limit < 1)
    assert loss.item() == pytest.approx(
        0.5 * np.mean(np.where(held, (near - r) ** 2, (v - r) ** 2))
    )
    np.testing.assert_allclose(slope, np.where(held, 0, v - r) / 200, atol=1e-12)


def test_adapted():
    """Doubled above 1.5 times the goal, halved below a 1.5th of it, else left alone."""
    for measured, factor in [(0.0151, 2), (0.0149, 1), (0.01, 1), (0.0067, 1), (0.0066, 0.5)]:
        assert ppo.adapted(3.0, measured, 0.01) == 3.0 * factor


def test_minibatches():
    """Each row once in every epoch, in another order each time."""
    chunks = [*ppo.minibatches(24, 4, 3)]
    assert [len(chunk) for chunk in chunks] == [6] * 12
    epochs = torch.cat(chunks).reshape(3, 24).tolist()
    assert all(sorted(epoch) == [*range(24)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(24)]}) == 4


@pytest.mark.parametrize("shape", [(), (OBS,)])
def test_moments(shape):
    """Joined in parts they are those of all; the first part's are just that part's."""
    samples = 5 + 3 * rand(60, *shape).float()
    moments, seen = ppo.Moments(*shape), 0
    for part in samples.split([7, 1, 30, 22]):
        moments.update(part)
        seen += len(part)
        so_far = samples[:seen].double().numpy()
        np.testing.assert_allclose(moments.mean, so_far.mean(0), rtol=1e-5)
        np.testing.assert_allclose(moments.var, so_far.var(0), rtol=1e-5)
        assert moments.count == seen and moments.mean.shape == moments.var.shape == shape


def test_initial_networks():
    """Orthogonal rows or columns of the length asked for, biases 0, actions near 0."""
    net = ppo.mlp(OBS, 16, ACT, gain=0.3)
    for layer, gain in zip((net[0], net[2], net[4]), (2**0.5, 2**0.5, 0.3), strict=True):
        weight = layer.weight.detach()
        square = weight @ weight.T if len(weight) < len(weight.T) else weight.T @ weight
        torch.testing.assert_close(square, gain**2 * torch.eye(len(square)))
        assert (layer.bias == 0).all()
    actor = ppo.Actor(OBS, ACT, 64)
    assert actor(torch.randn(1000, OBS)).abs().max() < 0.1
    drawn = actor.sampler()(torch.randn(9, OBS).numpy())
    assert (actor.log_std == 0).all() and abs(drawn).max() > 1 and drawn.dtype == np.float32


def test_actor(monkeypatch):
    """tanh layers on observations shifted, scaled and kept within 10; then a Gaussian."""
    actor, noise = ppo.Actor(OBS, ACT, 16), torch.randn(B, ACT)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.normal_(std=0.5)
    actor.moments.update(2 + 3 * torch.randn(50, OBS))
    obs = 2 + 20 * torch.randn(B, OBS)
    mean, var = (x.double().numpy() for x in (actor.moments.mean, actor.moments.var))
    x = (obs.numpy() - mean) / np.sqrt(var + 1e-8)
    assert (abs(x) > 10).any() and (abs(x) < 10).any()
    layers = [(m.weight, m.bias) for m in actor.net if hasattr(m, "weight")]
    for i, (weight, bias) in enumerate(layers):
        x = (np.clip(x, -10, 10) if i == 0 else np.tanh(x)) @ weight.detach().numpy().T
        x = x + bias.detach().numpy()
    monkeypatch.setattr(torch, "randn", lambda *shape: noise.reshape(shape))
    expected = x + np.exp(actor.log_std.detach().numpy()) * noise.numpy()
    np.testing.assert_allclose(actor.sampler()(obs.numpy()), expected, atol=1e-4)
    np.testing.assert_allclose(actor(obs).detach(), np.clip(x, -1, 1), atol=1e-4)
    assert (abs(x) > 1).any() and (abs(expected) > 1).any()


# === A batch ======================================================================================
@pytest.mark.parametrize("env_id", ["worlds:Lopsided-v0", "Pendulum-v1"])
def test_ratio_is_one_before_the_first_update(env_id, ppo_run, calls, monkeypatch):
    """In every iteration, to the policy that acted, although many actions are out of bounds.

    That of the first one saw observations that were not normalised yet; its mean is 0 either way.
    """
    log_prob, sampler, drawn, beyond = ppo.gaussian_log_prob, ppo.Actor.sampler, [], []

    def watched(actor):
        sample = sampler(actor)

        def act(obs):
            action = sample(obs)
            mean = actor.net(actor.normalise(torch.from_numpy(obs)))
            drawn.append(log_prob(torch.from_numpy(action), mean, actor.log_std).detach())
            beyond.append((torch.from_numpy(action).abs() > 1).any(-1))
            return action

        return act

    monkeypatch.setattr(ppo.Actor, "sampler", watched)
    seen = calls("gaussian_log_prob", "surrogate")
    ppo_run(env_id=env_id, num_envs=2, update_epochs=1, num_minibatches=1, learning_rate=0.01)
    ratios = [args[1] for name, args, _ in seen if name == "surrogate"][::2]
    stored = [result for name, _, result in seen if name == "gaussian_log_prob"][::3]
    assert len(ratios) == len(stored) == 6
    assert torch.cat(ratios).shape == (240,)
    torch.testing.assert_close(torch.cat(ratios), torch.ones(240), atol=1e-5, rtol=0)
    to_acting = (torch.cat(stored) - torch.stack(drawn)).exp()
    torch.testing.assert_close(to_acting[:SIZE], torch.ones(SIZE, 2), atol=0.1, rtol=0)
    torch.testing.assert_close(to_acting[SIZE:], torch.ones(100, 2), atol=1e-5, rtol=0)
    assert torch.cat(beyond).float().mean() > 0.2


def test_the_environment_sees_legal_actions(ppo_run, batches, monkeypatch):
    """The bounds' own units, clipped."""
    monkeypatch.setattr(worlds.Bounds, "seen", [])
    ppo_run(env_id="worlds:Lopsided-v0", total_timesteps=SIZE)
    space = gym.make("worlds:Lopsided-v0").action_space
    assert all(space.contains(action) for action in worlds.Bounds.seen)
    (batch,) = batches()
    unit = np.clip(batch.action[:, 0].numpy(), -1, 1)
    expected = space.low + (space.high - space.low) * (unit + 1) / 2
    seen = worlds.Bounds.seen[10:]  # after an evaluation's
    np.testing.assert_allclose(seen[:SIZE], expected, atol=1e-5)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_stored_transitions(num_envs, ppo_run, batches):
    """None crosses an episode, each has its true last observation, and only a true end is one."""
    ppo_run(env_id=STAGGERED, num_envs=num_envs)
    for batch in batches():
        shapes = [tuple(x.shape) for x in batch]
        each = (SIZE, num_envs)
        assert shapes == [(*each, 3), (*each, 2), each, (*each, 3), each, each]
        assert all(x.dtype == torch.float32 for x in batch)
    obs, _, reward, next_obs, terminated, ended = map(torch.cat, zip(*batches(), strict=True))
    assert torch.equal(next_obs, obs + torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(reward, next_obs[..., 1])
    assert torch.equal(terminated, ended * (obs[..., 2] > 0))
    # The next row is the next step, or another episode's first: over iterations too.
    cut = ended[:-1].bool()
    assert torch.equal(obs[1:][~cut], next_obs[:-1][~cut]) and (obs[1:][cut][:, 1] == 0).all()
    assert (obs[1:][cut][:, 0] != obs[:-1][cut][:, 0]).all()
    share = ended.mean(1)
    assert ((share > 0) & (share < 1)).any() == (num_envs > 1), "they end at different times"


def test_processes_change_nothing(ppo_run, calls):
    """--async-envs: the same rollouts, so the same weights."""
    seen = calls("make_envs")
    here, there = (
        ppo_run(env_id=STAGGERED, num_envs=3, total_timesteps=120, async_envs=async_envs)
        for async_envs in (False, True)
    )
    kinds = [isinstance(envs, gym.vector.AsyncVectorEnv) for _, _, envs in seen]
    assert kinds == [False, True]
    same(*(read_checkpoint(results["run_dir"])["parts"] for results in (here, there)))
    assert metrics(here["run_dir"]) == metrics(there["run_dir"])


class Dicing(worlds.Corridor):
    """It observes what it draws from the generator that all code shares."""

    def observe(self):
        return np.full(3, np.random.uniform(-1, 1), np.float32)


worlds.register("Dicing", Dicing, 5)


@pytest.mark.parametrize("async_envs", [False, True])
def test_shared_generators_obey_the_seed(async_envs, ppo_run, batches):
    """Same seed, same run; and no environment repeats the draws of another."""
    settings = {"env_id": "test_ppo:Dicing-v0", "num_envs": 3, "total_timesteps": 60}
    for seed in (1, 1, 2):
        ppo_run(async_envs=async_envs, seed=seed, **settings)
    first, second, other = (batch.obs[..., 0] for batch in batches())
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert len(first.unique()) == first.numel()


def test_same_seed_same_run_of_several_environments(ppo_run):
    first, second, other = (ppo_run(num_envs=2, seed=seed) for seed in (1, 1, 2))
    same(*(read_checkpoint(results["run_dir"])["parts"] for results in (first, second)))
    assert metrics(first["run_dir"]) == metrics(second["run_dir"]) != metrics(other["run_dir"])


@pytest.mark.parametrize("num_envs, log_frequency", [(1, 50), (3, 100), (3, 1)])
def test_rows(num_envs, log_frequency, ppo_run, batches):
    """Every episode of every environment is counted once, where it ended, with its own return."""
    results = ppo_run(env_id=STAGGERED, num_envs=num_envs, log_frequency=log_frequency)
    rows = {int(row["global_step"]): row for row in metrics(results["run_dir"])}
    size, step, episodes, ended = SIZE * num_envs, 0, 0, []
    sums = np.zeros((num_envs, 2))
    for batch in batches():
        for reward, ends in zip(batch.reward.numpy(), batch.ended.numpy(), strict=True):
            sums += np.stack([reward, np.ones(num_envs)], 1)
            ended += [sums[i].copy() for i in np.flatnonzero(ends)]
            sums[ends == 1] = 0
        step += size
        if step // log_frequency == (step - size) // log_frequency and step < 240:
            assert step not in rows
            continue
        episodes += len(ended)
        row = rows.pop(step)
        assert int(row["episodes"]) == episodes
        got = float(row["episodic_return"]), float(row["episodic_length"])
        assert got == pytest.approx(tuple(np.mean(ended, axis=0)))
        ended = []
    assert not rows and step == 240 and episodes > 50


@pytest.mark.parametrize("world", ["Endless", "Ending", "Both"])
def test_episodes_of_several_environments(world, ppo_run):
    """Cut, terminated or both: three environments finish an episode of 5 steps together."""
    rows = metrics(ppo_run(env_id=f"worlds:{world}-v0", num_envs=3)["run_dir"])
    for row in rows:
        assert int(row["episodes"]) == int(row["global_step"]) // 5
        assert (row["episodic_return"], row["episodic_length"]) == ("5.0", "5.0")
    assert [row["global_step"] for row in rows] == ["60", "120", "180", "240"]


def test_steps_are_rounded_up(ppo_run):
    """To whole iterations of 3 times 20 steps."""
    results = ppo_run(num_envs=3, total_timesteps=121)
    assert results["global_step"] == 180
    assert metrics(results["run_dir"])[-1]["global_step"] == "180"


def test_minibatches_must_divide(tmp_path):
    flags = [*QUICK["ppo_continuous"], "--num-minibatches=3", "--runs-dir", tmp_path / "runs"]
    message = refusal("ppo_continuous", *flags)
    assert "--num-minibatches 3" in message and str(SIZE) in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "flags, culprit",
    [
        (["--num-minibatches=0"], "--num-minibatches"),
        (["--surrogate=kl-penalty", "--kl-coef=0"], "--kl-coef 0"),
    ],
)
def test_refused(flags, culprit, tmp_path):
    """In one line, and without a folder."""
    flags = [*QUICK["ppo_continuous"], *flags, "--runs-dir", tmp_path / "runs"]
    assert culprit in refusal("ppo_continuous", *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("num_steps, num_minibatches", [(SIZE, SIZE), (1, 1)])
def test_minibatches_and_batches_of_one(num_steps, num_minibatches, ppo_run):
    """Nothing is divided by a deviation of 0: the run would stop at a number that is not finite."""
    settings = {"num_steps": num_steps, "num_minibatches": num_minibatches, "clip_vloss": True}
    results = ppo_run(total_timesteps=60, log_frequency=1, **settings)
    assert results["global_step"] == 60
    for row in metrics(results["run_dir"]):
        assert {"value_loss", "explained_variance", "kl"} < row.keys()
        assert all(np.isfinite(float(value)) for value in row.values() if value)
    assert all(x.isfinite().all() for x in results["actor"].state_dict().values())


# === Updates ======================================================================================
@pytest.mark.parametrize("target_kl", [0.0, 1e-6, 0.02, 1e9])
def test_target_kl(target_kl, ppo_run, calls):
    """The first minibatch that is too far ends all epochs, before its step; 0 measures none.

    On the first minibatch the divergence is 0: with a tiny goal there is one update, no more.
    """
    seen, made = calls("gaussian_kl", "gradient_step", "collect"), []
    ppo_run(target_kl=target_kl, learning_rate=0.02, update_epochs=4)
    for name, _, result in seen:
        if name == "collect":
            made.append([])
        elif name == "gradient_step":
            made[-1].append("step")
        elif len(result) < SIZE:  # the last one of an iteration is of the whole batch
            made[-1].append(result.mean().item())
    assert len(made) == 12
    for events in made:
        assert events[:2] == [pytest.approx(0, abs=1e-7) if target_kl else "step", "step"]
        far = [x for x in events if x != "step" and 0 < target_kl < x]
        assert far == [events[-1]] if events[-1] != "step" else not far
        steps = events.count("step")
        assert steps == (1 if target_kl == 1e-6 else 16 if target_kl in (0, 1e9) else steps)
    if target_kl == 0.02:
        assert len({events.count("step") for events in made}) > 2, "some end early"


@pytest.mark.parametrize("anneal_lr", [True, False])
def test_learning_rate(anneal_lr, ppo_run, monkeypatch):
    """It falls by the same amount in each iteration, towards 0 after the last one; or stays."""
    rates, real = [], ppo.gradient_step

    def gradient_step(optimizer, *args):
        rates.append(optimizer.lr.item())
        real(optimizer, *args)

    monkeypatch.setattr(ppo, "gradient_step", gradient_step)
    ppo_run(anneal_lr=anneal_lr, learning_rate=0.012)
    expected = np.arange(12, 0, -1) / 1000 if anneal_lr else np.full(12, 0.012)
    np.testing.assert_allclose(rates, np.repeat(expected, 8))


def test_observations_are_normalised_alike_within_an_iteration(ppo_run, batches, monkeypatch):
    """Acting, V and the update see the same moments: those of all observations before.

    Only the first rollout is acted without any; the update that follows has its own. They are saved
    with the actor, and an evaluation leaves them as they are.
    """
    used, iterations = [], []
    normalise, sampler = ppo.Actor.normalise, ppo.Actor.sampler
    start, after_step = ppo.Run.start, ppo.Run.after_step

    def note(actor, obs):
        used.append(torch.stack([actor.moments.mean, actor.moments.var]))
        return normalise(actor, obs)

    def act(actor):
        used.append(torch.stack([actor.moments.mean, actor.moments.var]).clone())
        return sampler(actor)

    def begin(*args):
        obs = start(*args)
        used.clear()  # of an evaluation
        return obs

    def close(run):
        iterations.append(torch.stack(used))
        after_step(run)
        used.clear()

    monkeypatch.setattr(ppo.Actor, "normalise", note)
    monkeypatch.setattr(ppo.Actor, "sampler", act)
    monkeypatch.setattr(ppo.Run, "start", begin)
    monkeypatch.setattr(ppo.Run, "after_step", close)
    results = ppo_run(num_envs=2, eval_frequency=80)
    all_obs = torch.cat([batch.obs for batch in batches()]).flatten(0, 1).double().numpy()
    assert len(all_obs) == 240
    so_far = [np.array([[0.0] * 3, [1.0] * 3])]
    for last in range(2 * SIZE, 241, 2 * SIZE):
        so_far.append(np.stack([all_obs[:last].mean(0), all_obs[:last].var(0)]))
    for number, moments in enumerate(iterations):
        assert len(moments) == 1 + 2
        np.testing.assert_allclose(moments[0], so_far[number], rtol=1e-4, atol=1e-5)
        for each in moments[1:]:
            np.testing.assert_allclose(each, so_far[max(number, 1)], rtol=1e-4, atol=1e-5)
    saved = torch.load(results["run_dir"] / "model.pt", weights_only=True)
    for i, name in enumerate(("mean", "var")):
        np.testing.assert_allclose(saved[f"actor.moments.{name}"], so_far[-1][i], rtol=1e-4)
    state = {k.removeprefix("actor."): v for k, v in saved.items() if k.startswith("actor.")}
    same(state, dict(results["actor"].state_dict()))

    actor, obs = ppo.Actor(3, 1, 16), torch.randn(100, 3)
    actor.load_state_dict(state)
    assert torch.equal(actor(obs), results["actor"](obs))


def test_without_normalisation(ppo_run, calls, batches):
    """Networks get observations as they are, and the advantages are of the rewards themselves."""
    seen = calls("gae")
    actor = ppo_run(norm_obs=False, norm_reward=False)["actor"]
    obs = 100 * torch.randn(9, 3)
    assert torch.equal(actor(obs), actor.net(obs).clamp(-1, 1))
    for (_, (used, *_), _), batch in zip(seen, batches(), strict=True):
        assert torch.equal(used.reward, batch.reward)


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return(ppo_run, calls, batches):
    """Of what each episode has brought until each step, over the rollouts' borders, in all so far.

    What is left beyond 10 is cut.
    """
    seen = calls("gae")
    results = ppo_run(env_id=STAGGERED, num_envs=3, gamma=0.9)
    so_far, last = [], np.zeros(3)
    for (_, (scaled, *_), _), raw in zip(seen, batches(), strict=True):
        for reward, ended in zip(raw.reward.numpy(), raw.ended.numpy(), strict=True):
            so_far.append(reward + 0.9 * last)
            last = (1 - ended) * so_far[-1]
        unit = np.std(so_far)
        np.testing.assert_allclose(scaled.reward, raw.reward / unit, rtol=1e-4)
    assert np.shape(so_far) == (80, 3)
    moments = read_checkpoint(results["run_dir"])["parts"]["agent"]
    assert moments["return_moments.var"].item() == pytest.approx(np.var(so_far), rel=1e-4)

    # Before this, all was small and often: so little changes the unit.
    for sign in (-1, 1):
        results["agent"].return_moments.count.fill_(1e9)
        ppo.update(results["agent"], raw._replace(reward=sign * 1000 * raw.reward), BASE)
        assert (seen[-1][1][0].reward == sign * 10).all()


@pytest.mark.parametrize("norm_adv", [True, False])
def test_advantages_are_normalised_over_the_iteration(norm_adv, ppo_run, calls):
    """With mean 0 and deviation 1 over its minibatches together; or as they are."""
    seen = calls("surrogate", "gae")
    ppo_run(env_id=STAGGERED, norm_adv=norm_adv, update_epochs=1)
    plain = [result.flatten() for name, _, result in seen if name == "gae"]
    used = [args[2] for name, args, _ in seen if name == "surrogate"]
    used = torch.stack([x for x in used if len(x) < SIZE]).reshape(12, -1)
    for advantage, x in zip(plain, used, strict=True):
        if norm_adv:
            advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        torch.testing.assert_close(x.sort()[0], advantage.sort()[0], rtol=1e-4, atol=1e-5)


def penalties(folder):
    rows = metrics(folder)
    return [(float(row["kl_coef"]), float(row["kl"])) for row in rows]


@pytest.mark.slow
def test_penalty_adapts_and_is_resumed(ppo_run):
    """Each iteration's weight follows from the divergence before it, over a resume too."""
    settings = {"surrogate": "kl-penalty", "anneal_lr": False, "learning_rate": 2e-3}
    folder = ppo_run(**settings, kl_coef=0.25, kl_coef_target=0.004)["run_dir"]
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=480)
    rows, beta, factors = penalties(folder), 0.25, set()
    assert len(rows) == 24
    for weight, measured in rows:
        assert weight == pytest.approx(beta)
        factors.add(2 if measured > 0.006 else 0.5 if measured < 0.004 / 1.5 else 1)
        beta *= 2 if measured > 0.006 else 0.5 if measured < 0.004 / 1.5 else 1
    assert len(factors) > 1 and rows[12][0] != 0.25
    assert {weight for weight, _ in penalties(ppo_run()["run_dir"])} == {0}


def test_a_whole_number_is_a_number_too(ppo_run):
    """A notebook may well write Args(kl_coef=1)."""
    assert penalties(ppo_run(surrogate="kl-penalty", kl_coef=1, total_timesteps=SIZE)["run_dir"])


def test_what_holds_the_policy_back(ppo_run):
    """With many steps on one batch the plain ratio leads far away; clipped or penalised not."""
    many = {"env_id": "worlds:Target-v0", "num_steps": 200, "total_timesteps": 600}
    many |= {"update_epochs": 30, "learning_rate": 3e-3, "num_minibatches": 1, "anneal_lr": False}
    far = {
        kind: np.mean(
            [kl for _, kl in penalties(ppo_run(surrogate=kind, kl_coef=30.0, **many)["run_dir"])]
        )
        for kind in ("unclipped", "clip", "kl-penalty")
    }
    assert far["unclipped"] > 5 * far["clip"] > 0
    assert far["unclipped"] > 5 * far["kl-penalty"] > 0


# === What it learns ===============================================================================
FAST = {"gamma": 0.9, "learning_rate": 1e-2, "update_epochs": 5, "num_minibatches": 2}


def value_in_reward(results):
    """V(s) of observations (N, 3), in the units of the reward."""
    agent = results["agent"]
    unit = agent.return_moments.var.sqrt()
    return lambda obs: agent.critic(agent.actor.normalise(obs)).detach() * unit


def test_a_time_limit_is_not_death(ppo_run):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10; taken for an end it would be 2.6 to 3.6."""
    settings = {"num_steps": 60, "num_envs": 2, "total_timesteps": 3000}
    results = ppo_run(env_id="worlds:Forever-v0", **FAST | settings)
    assert value_in_reward(results)(torch.zeros(1, 3)).item() == pytest.approx(10, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["Ending", "Both"])
def test_termination_is_the_end_also_at_a_time_limit(world, ppo_run):
    """The last step is worth its reward, the first 1 + 0.9 + ... + 0.9^4 = 4.1."""
    settings = {"num_steps": 60, "total_timesteps": 1500}
    results = ppo_run(env_id=f"worlds:{world}-v0", **FAST | settings)
    times = torch.arange(5.0)
    value = value_in_reward(results)(times.unsqueeze(1).expand(5, 3))
    np.testing.assert_allclose(value, (1 - 0.9 ** (5 - times)) / 0.1, atol=0.15)


def test_linear_quadratic_regulator(ppo_run):
    """The learnt return is near that of the best linear policy; doing nothing is far from it."""
    settings = {"num_steps": 100, "num_envs": 4, "total_timesteps": 6000, "anneal_lr": True}
    results = ppo_run(env_id="worlds:Regulator-v0", eval_episodes=10, **FAST | settings)
    args = dataclasses.replace(BASE, eval_episodes=10)
    trajectories = ppo.evaluate(results["actor"], ppo.make_env("worlds:Regulator-v0"), args)
    starts = [float(trajectory[0][0][0]) for trajectory in trajectories]
    world, gain = worlds.Regulator, np.linspace(0, 2, 201)
    x, returns = np.tile(starts, (201, 1)), 0.0
    for _ in range(10):
        u = -gain[:, None] * x
        returns = returns - (world.q * x**2 + world.r * u**2).mean(1)
        x = world.a * x + world.b * u
    assert results["eval_return_mean"] == pytest.approx(returns.max(), rel=0.1)
    assert returns[0] < 3 * returns.max()


# === Going on =====================================================================================
def steps_logged(folder):
    return [int(row["global_step"]) for row in metrics(folder)]


def parts_after(monkeypatch, method):
    """The state of all parts, copied after each call of this method of Run, by step."""
    copies, real = {}, getattr(ppo.Run, method)

    def noted(run):
        real(run)
        copies[run.step] = {"agent": copy.deepcopy(run.agent.state_dict())}

    monkeypatch.setattr(ppo.Run, method, noted)
    return copies


def test_killed_and_resumed(tmp_path, monkeypatch):
    """Twice, in a rollout and in an update: it goes on from the last checkpoint's step.

    No row is lost or doubled, and a line says that this is not bit for bit.
    """
    flags = [*QUICK["ppo_continuous"], "--env-id=worlds:Endless-v0", "--checkpoint-frequency=40"]
    flags += ["--eval-frequency=80", "--runs-dir", tmp_path / "runs"]
    for life, (moment, number, step) in enumerate([("randn", 75, 40), ("randperm", 7, 80)]):
        log = tmp_path / f"log-{life}"
        before = functools.partial(die, "torch", moment, number)
        process = begin("ppo_continuous", log, *flags, before=before)
        process.join()
        assert process.exitcode not in (0, 1), log.read_text()
        assert ("not bit for bit" in log.read_text()) == (life > 0)
        folder = run_dir(tmp_path / "runs")
        content = read_checkpoint(folder)
        assert content["progress"]["step"] == step
        flags = ["--resume", folder / "checkpoint.pt"]
    assert steps_logged(folder) == [20, 40, 60, 80, 100]

    loaded = parts_after(monkeypatch, "load")
    ppo.resume(str(folder / "checkpoint.pt"))
    same(loaded[80]["agent"], content["parts"]["agent"])
    moments = [name for name in loaded[80]["agent"] if re.search(r"optimizer.m\d+$", name)]
    assert len(moments) == 13, "moments of every parameter"
    assert steps_logged(folder) == [*range(20, 241, 20)]
    for row in metrics(folder):
        assert int(row["episodes"]) == int(row["global_step"]) // 5
        evaluated = int(row["global_step"]) % 80 == 0
        assert (row["eval_return_mean"] != "") == evaluated
        assert row["episodic_return"] == "5.0" and row["kl"]


@pytest.mark.slow_but("47")
@pytest.mark.parametrize("call, step", [(7, 0), (47, 40), (95, 80), (239, 220)])
def test_signal_in_a_rollout(call, step, ppo_run, tmp_path, monkeypatch, capsys):
    """The checkpoint is as of the last iteration's end; resumed, it counts as if never stopped."""
    settings = {"env_id": "worlds:Endless-v0", "eval_frequency": 80, "anneal_lr": False}
    whole = metrics(ppo_run(**settings)["run_dir"])
    copies = parts_after(monkeypatch, "after_step")
    with pytest.MonkeyPatch.context() as patch:
        # An evaluation before it takes five steps.
        number = call + 5 * (1 + (call > 80) + (call > 160))
        happen = lambda *_: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        calls = at_call(patch, worlds.Corridor, "step", number, happen)
        with pytest.raises(KeyboardInterrupt):
            ppo_run(**settings, runs_dir=str(tmp_path))
        assert next(calls) == number + 1, "steps after the signal"
    path = run_dir(tmp_path) / "checkpoint.pt"
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"stopped at step {step}: --resume {path}"
    content = read_checkpoint(path.parent)
    assert content["progress"]["step"] == step
    assert content["progress"]["episodes"] == step // 5
    if step:
        same(content["parts"], copies[step])
    main("ppo_continuous", "--resume", path)
    assert steps_logged(path.parent) == [int(row["global_step"]) for row in whole]
    counted = ("episodes", "episodic_return", "episodic_length", "eval_return_mean")
    for row, expected in zip(metrics(path.parent), whole, strict=True):
        assert [row[name] for name in counted] == [expected[name] for name in counted]


@pytest.mark.parametrize("name", ["gae", "gradient_step", "adapted"])
def test_signal_in_an_update(name, ppo_run, tmp_path, monkeypatch):
    """It does not wait for the update's end; what is kept is the iteration before."""
    copies = parts_after(monkeypatch, "after_step")
    happen = lambda *_: signal.raise_signal(signal.SIGTERM)  # noqa: E731
    number = 33 if name == "gradient_step" else 5
    calls = at_call(monkeypatch, ppo, name, number, happen)
    with pytest.raises(KeyboardInterrupt):
        ppo_run(env_id="worlds:Endless-v0", runs_dir=str(tmp_path))
    assert next(calls) == number + 1, "calls after the signal"
    same(read_checkpoint(run_dir(tmp_path))["parts"], copies[80])


def test_signal_while_a_row_is_written(ppo_run, tmp_path, monkeypatch, batches):
    """It comes once the run is resumed, and no other rollout is collected first."""
    happen = lambda *_: signal.raise_signal(signal.SIGTERM)  # noqa: E731
    at_call(monkeypatch, ppo.Run, "write_rows", 4, happen)  # the first call is for the header
    with pytest.raises(KeyboardInterrupt):
        ppo_run(env_id="worlds:Endless-v0", runs_dir=str(tmp_path))
    assert steps_logged(run_dir(tmp_path)) == [20, 40] and len(batches()) == 3
    main("ppo_continuous", "--resume", run_dir(tmp_path) / "checkpoint.pt")
    assert steps_logged(run_dir(tmp_path)) == [*range(20, 241, 20)]


def test_fault_of_a_simulator(ppo_run, tmp_path, capsys):
    """It propagates, and the last whole iteration is kept."""
    with pytest.raises(ZeroDivisionError, match="a fault of the environment's own"):
        ppo_run(env_id="worlds:Poisoned-exception-v0", runs_dir=str(tmp_path))
    assert "stopped at step 20: --resume" in capsys.readouterr().out
    assert read_checkpoint(run_dir(tmp_path))["progress"]["step"] == 20


class Unwell(worlds.Corridor):
    """In a process of its own, it leaves or stops answering in step 30."""

    def __init__(self, how):
        super().__init__()
        self.how, self.life = how, 0

    def step(self, action):
        self.life += 1
        if self.life == 30 and multiprocessing.parent_process():
            os._exit(3) if self.how == "dead" else time.sleep(1000)
        return super().step(action)


for how in ("dead", "stuck"):
    worlds.register(f"Unwell-{how}", Unwell, 5, how=how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dead", "stuck"])
def test_a_lost_process_ends_the_run(how, ppo_run, tmp_path, monkeypatch):
    """In one message, with the last whole iteration kept, and with no process left."""
    monkeypatch.setattr(ppo, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(ppo.Workers.step_wait, "__defaults__", (1,))
    settings = {"num_envs": 2, "num_steps": 10, "async_envs": True, "runs_dir": str(tmp_path)}
    with pytest.raises(ppo.RunError, match="--async-envs"):
        ppo_run(env_id=f"test_ppo:Unwell-{how}-v0", **settings)
    assert read_checkpoint(run_dir(tmp_path))["progress"]["step"] == 40
    for process in multiprocessing.active_children():
        process.join(5)
        assert process.exitcode is not None


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_signals_to_all_processes(number, tmp_path):
    """Ctrl-C, or a scheduler that ends a job, reaches the processes of --async-envs too.

    Within five seconds there is a checkpoint all the same, for --resume to go on from.
    """
    log, runs_dir = tmp_path / "log", tmp_path / "runs"
    flags = [*QUICK["ppo_continuous"], "--async-envs", "--num-envs=2", "--num-steps=1_000_000"]
    flags += ["--runs-dir", runs_dir]
    log.touch()
    # Not by begin(), whose processes may not have any of their own.
    arguments = "ppo_continuous", log, flags, os.setsid
    process = PROCESSES.Process(target=child, args=arguments)
    process.start()
    wait(process, log, lambda: "rollouts of" in log.read_text())
    time.sleep(0.3)
    os.killpg(process.pid, number)
    process.join(5)
    ended = process.exitcode
    process.kill()
    *_, line = log.read_text().splitlines()
    path = run_dir(runs_dir) / "checkpoint.pt"
    assert line == f"stopped at step 0: --resume {path}"
    assert ended == 1 and "Traceback" not in log.read_text()
    assert read_checkpoint(path.parent)["progress"]["step"] == 0


@pytest.mark.slow
def test_made_longer(ppo_run, capsys):
    """A finished run goes on to a larger total, and a row at the old end stays one row."""
    folder = ppo_run(total_timesteps=110, log_frequency=40)["run_dir"]
    assert steps_logged(folder) == [40, 80, 120]
    path = folder / "checkpoint.pt"
    main("ppo_continuous", "--resume", path, "--total-timesteps=240")
    assert "note: total_timesteps is now 240, not 110" in capsys.readouterr().out
    assert steps_logged(folder) == [40, 80, 120, 160, 200, 240]
    assert read_checkpoint(folder)["progress"]["step"] == 240


def test_damaged_checkpoint(ppo_run):
    path = Path(ppo_run(total_timesteps=SIZE)["run_dir"]) / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + 128 + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    refused("ppo_continuous", path)
