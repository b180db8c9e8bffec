"""PPO: what its functions do with the formulas, and what train() does with its functions.

The expectations are NumPy's, from ppo_by_hand.py, or what the worlds saw themselves.
"""

import copy
import dataclasses
import inspect
import math

import numpy as np
import oracles
import pytest
import torch
from helpers import read_checkpoint
from ppo_by_hand import (
    ByHand,
    Learner,
    Roaming,
    divergence,
    in_float64,
    in_own_units,
    made_up_rollout,
    network,
    numbers,
    small,
    true_steps,
    watch_updates,
    wild_agent,
)

import ppo_continuous as ppo

ENVS, STEPS, SIZE = 3, 16, 48  # of a small run's iteration
FIELDS = list(ppo.Steps._fields)


@pytest.fixture
def worlds_made(monkeypatch):
    """All worlds of this test: those of training come before that of evaluation."""
    monkeypatch.setattr(Roaming, "made", [])
    return Roaming.made


@pytest.fixture
def noise_drawn(monkeypatch):
    """What torch.randn gives for actions, (N, A) each."""
    drawn, randn = [], torch.randn

    def noted(*shape):
        drawn.append(randn(*shape))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", noted)
    return drawn


def in_order(monkeypatch):
    """Minibatches are whole rollouts, not shuffled."""
    once = lambda size, number, epochs: iter([torch.arange(size)])  # noqa: E731
    monkeypatch.setattr(ppo, "minibatches", once)


def nothing(agent, steps, args):
    """A gradient step that changes nothing."""


def move(agent):
    """Other weights, all of them."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


# === Line 1: a rollout ============================================================================
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_rollout_is_what_the_worlds_saw(num_envs, worlds_made, tmp_path, monkeypatch):
    """Over iterations, none of which begins anew; the last observation is the episode's own."""
    seen = watch_updates(monkeypatch)
    ppo.train(small(tmp_path, num_envs=num_envs, total_timesteps=6 * STEPS * num_envs))
    assert len(worlds_made) == num_envs and len(seen) == 6
    for i, world in enumerate(worlds_made):
        truth = true_steps(world, 0, 6 * STEPS)
        columns = zip(*(one.rollout for one in seen), strict=True)
        rollout = ppo.Rollout(*(np.concatenate(parts) for parts in columns))
        for name in ("obs", "next_obs", "reward"):
            got = getattr(rollout, name)[:, i]
            np.testing.assert_allclose(got, getattr(truth, name), rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(rollout.terminated[:, i], truth.terminated)
        np.testing.assert_array_equal(rollout.ended[:, i], truth.terminated | truth.truncated)
        kinds = set(zip(truth.terminated.tolist(), truth.truncated.tolist(), strict=True))
        assert len(kinds) == 4, "no end, a true one, a time limit, both"
        # The name is that of the episode, before and after the step.
        np.testing.assert_array_equal(rollout.obs[:, i, 0], rollout.next_obs[:, i, 0])


def test_actions_are_stored_as_drawn_and_clipped_for_the_world(worlds_made, tmp_path, monkeypatch):
    seen = watch_updates(monkeypatch)
    ppo.train(small(tmp_path))
    action = np.concatenate([one.rollout.action for one in seen])
    for i, world in enumerate(worlds_made):
        given = true_steps(world, 0, 3 * STEPS).action
        np.testing.assert_allclose(given, in_own_units(action[:, i]), rtol=1e-5, atol=1e-5)
    beyond = abs(action) > 1
    assert 0.1 < beyond.mean() < 0.6
    assert len(np.unique(action[beyond])) == beyond.sum(), "as drawn: none is at the bound"


@pytest.mark.parametrize("norm_obs", [True, False])
def test_actions_are_drawn_from_the_policy_as_it_is(norm_obs, noise_drawn, tmp_path, monkeypatch):
    """In each rollout from that which the update before it left, with all moments until then."""
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, norm_obs=norm_obs, learning_rate=0.05, anneal_lr=False)
    ppo.train(args)
    assert len(noise_drawn) == 3 * STEPS
    noise = torch.stack(noise_drawn).double().numpy().reshape(3, STEPS, ENVS, 2)
    by_hand = ByHand(args)
    for number, one in enumerate(seen):
        state = one.rollout.obs
        if number > 0:
            state = by_hand.normalise(state, by_hand.seen)
        elif norm_obs:
            state = np.clip(state, -10, 10)  # of moments 0 and 1
        mean = network(one.before, "actor.net", state)
        expected = mean + np.exp(one.before["actor.log_std"]) * noise[number]
        np.testing.assert_allclose(one.rollout.action, expected, rtol=1e-4, atol=1e-4)
        by_hand.seen.append(one.rollout.obs)
    moved = abs(seen[0].before["actor.log_std"] - seen[2].before["actor.log_std"])
    assert moved.min() > 0.005, "an old deviation would be seen"


def test_observations_at_the_limit_are_acted_on_alike(monkeypatch):
    """What the sampler's mean is, the networks' is too, far out and at a deviation of zero."""
    agent = wild_agent(small()).float()
    agent.actor.moments.mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    agent.actor.moments.var.copy_(torch.tensor([4.0, 0.0, 0.01]))
    with torch.no_grad():
        agent.actor.net[4].weight.mul_(4)  # so that some means are beyond the bounds
    obs = np.float32([[1, -2, 3], [100, -2.0004, 3.5], [-50, -1.9997, 2], [3, -2, 30]])
    shifted = (obs.astype(float) - [1, -2, 3]) / np.sqrt(np.array([4, 0, 0.01]) + 1e-8)
    state = np.clip(shifted, -10, 10)
    assert (state != shifted).any() and abs(state[1, 1]) > 3
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.zeros(shape))
    mean = network(numbers(agent), "actor.net", state)
    np.testing.assert_allclose(agent.actor.sampler()(obs), mean, rtol=1e-3, atol=1e-3)
    normalised = agent.actor.normalise(torch.from_numpy(obs)).detach()
    np.testing.assert_allclose(normalised, state, rtol=1e-3, atol=1e-3)
    greedy = agent.actor(torch.from_numpy(obs)).detach()
    np.testing.assert_allclose(greedy, np.clip(mean, -1, 1), rtol=1e-3, atol=1e-3)
    assert (mean > 1.1).any() and (mean < -1.1).any()


def test_plain_observations_have_no_limit(monkeypatch):
    """With --no-norm-obs they are what they are, in acting too."""
    agent = wild_agent(small(norm_obs=False)).float()
    obs = np.float32([[1, -2, 3], [100, -2, 3.5], [-50, 30, 2]])
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.zeros(shape))
    mean = network(numbers(agent), "actor.net", obs.astype(float))
    cut = network(numbers(agent), "actor.net", np.clip(obs.astype(float), -10, 10))
    assert abs(mean - cut).max() > 0.1
    np.testing.assert_allclose(agent.actor.sampler()(obs), mean, rtol=1e-3, atol=1e-4)
    greedy = agent.actor(torch.from_numpy(obs)).detach()
    np.testing.assert_allclose(greedy, np.clip(mean, -1, 1), rtol=1e-3, atol=1e-4)


def test_the_sampler_draws_for_each_environment_and_dimension():
    """Independent noise of the policy's own deviation, around its own mean."""
    agent = wild_agent(small()).float()
    obs = np.float32([[0.3, -0.2, 1.0]] * 20_000)
    drawn = agent.actor.sampler()(obs)
    values = numbers(agent)
    mean = network(values, "actor.net", obs[0].astype(float))
    std = np.exp(values["actor.log_std"])
    assert drawn.shape == (20_000, 2) and drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.05)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.05


def test_the_sampler_is_of_the_moment_it_was_made(monkeypatch):
    """What is learnt while it is in use does not reach it; nor does it hold on to the agent."""
    agent = wild_agent(small()).float()
    obs = np.float32([[0.3, -0.2, 1.0]])
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.ones(shape))
    sample = agent.actor.sampler()
    first = sample(obs)
    move(agent)
    agent.actor.moments.mean.add_(1)
    np.testing.assert_array_equal(sample(obs), first)
    assert not np.allclose(agent.actor.sampler()(obs), first)


# === Line 2: look back ============================================================================
def compare_steps(got, expected):
    for name in FIELDS:
        x = getattr(expected, name)
        assert getattr(got, name).shape == x.shape, name
        np.testing.assert_allclose(getattr(got, name), x, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_obs": False},
        {"norm_reward": False},
        {"norm_adv": False},
        {"norm_obs": False, "norm_reward": False, "norm_adv": False},
        {"gamma": 0.5, "gae_lambda": 0.3},
        {"gae_lambda": 1.0},
        {"num_envs": 1},
    ],
    ids=str,
)
def test_what_is_looked_back_on(changes, monkeypatch):
    """Five rollouts: all that the steps hold, in float64 to a billionth.

    The third is of observations and rewards that are a hundred times as large, and the fifth ends
    with an enormous reward, so that both limits are met.
    """
    in_order(monkeypatch)
    args = small(**changes)
    agent, by_hand, given = wild_agent(args), ByHand(args), []
    for number in range(5):
        rollout = made_up_rollout(args, agent, seed=number)
        if number == 2:
            large = {n: 100 * getattr(rollout, n) for n in ("obs", "next_obs", "reward")}
            rollout = rollout._replace(**large)
        if number == 4:
            rollout.reward[-1, 0] = 1e6
        before = numbers(agent)
        ppo.update(agent, rollout, args, lambda agent, steps, args: given.append(steps))
        expected = by_hand.look_back(in_float64(rollout), before)
        compare_steps(given.pop(), expected)
        if number == 2 and args.norm_obs:
            assert (abs(expected.state) == 10).mean() > 0.2
        move(agent)
    if args.norm_reward and args.num_envs > 1:
        assert 10 * np.std(by_hand.brought) < 1e6


def test_rewards_and_observations_that_never_change(monkeypatch):
    """Their deviation is 0, and nothing is divided by it."""
    in_order(monkeypatch)
    args, given = small(), []
    agent, by_hand = wild_agent(args), ByHand(args)
    for number in range(3):
        rollout = made_up_rollout(args, agent, seed=number)
        rollout.obs[..., 1] = 5.0 + 3e-4 * (number == 2)
        rollout.next_obs[..., 1] = 5.0 - 2e-4 * (number == 2)
        if number < 2:
            rollout.reward.zero_()
        before = numbers(agent)
        ppo.update(agent, rollout, args, lambda agent, steps, args: given.append(steps))
        compare_steps(given.pop(), by_hand.look_back(in_float64(rollout), before))


def test_steps_remember_the_policy_that_acted(monkeypatch):
    """Whatever becomes of it: no number in them moves with the weights, and none has a gradient."""
    in_order(monkeypatch)
    for norm_obs in (True, False):
        args, kept = small(norm_obs=norm_obs), []
        agent = wild_agent(args)

        def step(agent, steps, args, kept=kept):
            kept.append(steps)
            move(agent)

        rollout = made_up_rollout(args, agent)
        with torch.no_grad():
            steps = ppo.look_back(agent, rollout, args)
        copies = [x.clone() for x in steps]
        move(agent)
        for name, x, expected in zip(FIELDS, steps, copies, strict=True):
            assert torch.equal(x, expected), name
        kl = ppo.update(agent, rollout, args, step)["kl"]
        assert not any(x.requires_grad for x in kept[0])
        assert kl > 0.003, "a deviation that moved with the policy would not be seen to move"


def test_what_follows_an_end(monkeypatch):
    """After termination, or both flags, V(s') is nothing; at a time limit it is all."""
    in_order(monkeypatch)
    args = small(norm_obs=False, norm_adv=False, norm_reward=False)
    agent, given = wild_agent(args), []
    rollout = made_up_rollout(args, agent)
    keep = lambda agent, steps, args: given.append(steps.advantage.clone())  # noqa: E731
    true_end = rollout.terminated == 1
    cut = (rollout.ended == 1) & ~true_end
    for where in (true_end, cut):
        for shift in (0.0, 3.0):
            changed = torch.where(where.unsqueeze(-1), rollout.next_obs + shift, rollout.next_obs)
            ppo.update(agent, rollout._replace(next_obs=changed), args, keep)
    same, other, same_cut, other_cut = (x.reshape(STEPS, ENVS) for x in given)
    assert torch.equal(same, other)
    assert (same_cut != other_cut)[cut].all()


def test_value_at_a_time_limit_is_of_the_episode_that_was_cut(worlds_made, tmp_path, monkeypatch):
    """And not of the next episode's first observation, which is worth something else."""
    seen, values, gae = watch_updates(monkeypatch), [], ppo.gae

    def noted(rollout, value, next_value, *rest):
        values.append(next_value.double().numpy().copy())
        return gae(rollout, value, next_value, *rest)

    monkeypatch.setattr(ppo, "gae", noted)
    args = small(tmp_path, norm_obs=False)
    ppo.train(args)
    differences = []
    for number, (one, got) in enumerate(zip(seen, values, strict=True)):
        for i, world in enumerate(worlds_made):
            for t in range(STEPS - 1):
                this, following = world.happened[STEPS * number + t : STEPS * number + t + 2]
                last, first = (
                    network(one.before, "critic", x.astype(float))[0]
                    for x in (this.next_obs, following.obs)
                )
                assert got[t, i] == pytest.approx(last, rel=1e-4, abs=1e-4)
                if this.truncated and not this.terminated:
                    differences.append(abs(last - first))
    assert len(differences) > 5 and np.median(differences) > 0.1


def test_running_return_crosses_rollouts_and_ends_with_the_episode(monkeypatch):
    """Rollouts of two steps, reward 1, two environments: one ends in the third step, one never.

    G of the first: 1, 1.5, 1.75 | 1, 1.5, 1.75; of the other 1, 1.5, 1.75, 1.875, ...
    """
    in_order(monkeypatch)
    args = small(num_envs=2, num_steps=2, gamma=0.5, norm_adv=False)
    agent = wild_agent(args)
    brought = [[1, 1], [1.5, 1.5], [1.75, 1.75], [1, 1.875], [1.5, 1.9375], [1.75, 1.96875]]
    for number in range(3):
        rollout = made_up_rollout(dataclasses.replace(args, num_steps=16), agent)
        rollout = ppo.Rollout(*(x[:2].clone() for x in rollout))
        rollout.reward.fill_(1)
        rollout.terminated.zero_()
        rollout.ended.zero_()
        if number == 1:
            rollout.ended[0, 0] = 1
        ppo.update(agent, rollout, args, nothing)
        so_far = np.array(brought[: 2 * number + 2])
        assert agent.return_moments.mean.item() == pytest.approx(so_far.mean())
        assert agent.return_moments.var.item() == pytest.approx(so_far.var())
        assert agent.return_moments.count.item() == so_far.size


def test_moments_of_observations_are_joined_once_per_rollout(monkeypatch):
    """Of `obs` alone, each observation once, the first rollout's too."""
    in_order(monkeypatch)
    args = small()
    agent, seen = wild_agent(args), []
    for number in range(4):
        rollout = made_up_rollout(args, agent, seed=number)
        ppo.update(agent, rollout, args, nothing)
        seen.append(rollout.obs.flatten(0, 1).numpy())
        so_far = np.concatenate(seen)
        moments = agent.actor.moments
        np.testing.assert_allclose(moments.mean, so_far.mean(0), rtol=1e-9)
        np.testing.assert_allclose(moments.var, so_far.var(0), rtol=1e-9)
        assert moments.count == len(so_far)


# === Line 3: the loss, and a step on it ===========================================================
def made_up_steps(agent, size=40):
    """Steps in float64 of a policy that was another one: ratios, V and deviations are far apart."""
    rng = np.random.default_rng(1)
    state, action, old_mean = (rng.normal(size=(size, n)) for n in (3, 2, 2))
    advantage, returns, value = rng.normal(size=(3, size))
    old_log_std = np.tile([0.3, -0.4], (size, 1))
    values = numbers(agent)
    mean, std = network(values, "actor.net", state), np.exp(values["actor.log_std"])
    log_prob = oracles.log_normal(action, mean, std).sum(1) + 0.3 * rng.normal(size=size)
    columns = (state, action, advantage, returns, value, old_mean, old_log_std, log_prob)
    return ppo.Steps(*(torch.from_numpy(x) for x in columns))


@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("surrogate", ["clip", "clip-no-min", "kl-penalty", "unclipped"])
def test_losses(surrogate, clip_vloss):
    """All four that it returns, by hand; the ratio is to the stored log-probability."""
    args = small(surrogate=surrogate, clip_vloss=clip_vloss, clip_coef=0.2, kl_coef=0.7)
    agent = wild_agent(args)
    steps = made_up_steps(agent)
    got = ppo.losses(agent, steps, args, with_kl=True)
    s = ppo.Steps(*(x.numpy() for x in steps))
    values = numbers(agent)
    mean, log_std = network(values, "actor.net", s.state), values["actor.log_std"]
    new = oracles.log_normal(s.action, mean, np.exp(log_std)).sum(1)
    ratio = np.exp(new - s.log_prob)
    kl = divergence(s.mean, s.log_std, mean, log_std).mean()
    back = divergence(mean, log_std, s.mean, s.log_std).mean()
    assert abs(kl - back) > 0.1
    cut = np.clip(ratio, 0.8, 1.2)
    gain = {"clip": np.minimum(ratio * s.advantage, cut * s.advantage)}
    gain["clip-no-min"] = cut * s.advantage
    gain = gain.get(surrogate, ratio * s.advantage).mean()
    gain -= 0.7 * kl * (surrogate == "kl-penalty")
    value = network(values, "critic", s.state)[:, 0]
    error, near = (value - s.returns) ** 2, s.value + np.clip(value - s.value, -0.2, 0.2)
    if clip_vloss:
        error = np.maximum(error, (near - s.returns) ** 2)
    assert got[0].item() == pytest.approx(-gain, rel=1e-9)
    assert got[1].item() == pytest.approx(error.mean() / 2, rel=1e-9)
    np.testing.assert_allclose(got[2].detach(), ratio, rtol=1e-9)
    assert got[3].item() == pytest.approx(kl, rel=1e-9)
    assert ppo.losses(agent, steps, args, with_kl=False)[3] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"surrogate": "clip-no-min"},
        {"surrogate": "kl-penalty", "kl_coef": 3.0},
        {"surrogate": "unclipped", "max_grad_norm": 0.0},
        {"clip_vloss": True},
        {"vf_coef": 0.0},
        {"vf_coef": 3.0, "max_grad_norm": 0.0},
        {"ent_coef": 0.5},
        {"max_grad_norm": 0.01},
        {"max_grad_norm": 100.0},
    ],
    ids=str,
)
def test_gradients_of_a_step(changes):
    """Those of the loss by hand, of all weights together no longer than the limit."""
    args = small(**{"clip_coef": 0.2, "max_grad_norm": 0.5} | changes)
    agent = wild_agent(args)
    steps = made_up_steps(agent)
    learner = Learner(numbers(agent), args)
    with oracles.gradients_of(agent.optimizer) as pairs:
        ppo.minibatch_step(agent, steps, args)
    expected = learner.gradients(ppo.Steps(*(x.numpy() for x in steps)), args.kl_coef)
    norm = math.sqrt(sum((g**2).sum().item() for g in expected.values()))
    factor = 1.0
    if args.max_grad_norm and norm > args.max_grad_norm:
        factor = args.max_grad_norm / (norm + 1e-6)
    names = {p: name for name, p in agent.named_parameters()}
    assert len(pairs) == len(expected) == 13
    for parameter, got in pairs:
        torch.testing.assert_close(got, factor * expected[names[parameter]], rtol=1e-9, atol=1e-12)


def test_entropy_is_raised():
    """With nothing else to gain, each logarithm of a deviation grows at the same rate."""
    args = small(ent_coef=0.3, vf_coef=0.0, max_grad_norm=0.0)
    agent = wild_agent(args)
    steps = made_up_steps(agent)._replace(advantage=torch.zeros(40).double())
    with oracles.gradients_of(agent.optimizer) as pairs:
        ppo.minibatch_step(agent, steps, args)
    for parameter, gradient in pairs:
        if parameter is agent.actor.log_std:
            torch.testing.assert_close(gradient, torch.full((2,), -0.3).double())
        else:
            assert (gradient == 0).all()


def test_adam_of_this_script():
    """Its epsilon is 1e-5: a gradient as small as that moves all weights by half a step."""
    args = small(learning_rate=0.02)
    agent = ppo.Agent(3, 2, args).double()
    agent.optimizer.lr.fill_(0.02)
    before = [p.clone() for p in agent.parameters()]
    agent.optimizer.step([torch.full_like(p, 1e-5) for p in agent.optimizer.params])
    assert len(before) == 13
    for old, new in zip(before, agent.parameters(), strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, 0.01), rtol=1e-9, atol=1e-12)


def test_adam_is_that_of_pytorch():
    """Over 20 steps with gradients of many sizes."""
    rng = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 5)] for _ in "ab"
    )
    adam = ppo.Adam(ours, 0.03, eps=1e-5).double()
    adam.lr.fill_(0.03)
    peer = torch.optim.Adam(theirs, lr=0.03, eps=1e-5)
    for number in range(20):
        sizes = 10.0 ** (number % 7 - 5)
        gradients = [sizes * torch.randn(n, generator=rng, dtype=torch.float64) for n in (3, 5)]
        adam.step(gradients)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        peer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_new_agent():
    """V's last layer is as large as any, the policy's small; deviation 1; no moments yet."""
    agent = ppo.Agent(3, 2, small(hidden_dim=16))
    for net, gain in ((agent.actor.net, 0.01), (agent.critic, 1.0)):
        layers = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
            lengths = torch.linalg.svdvals(layer.weight.detach())
            torch.testing.assert_close(lengths, torch.full_like(lengths, scale))
            assert (layer.bias == 0).all()
        kinds = [type(layer).__name__ for layer in net][:5]
        assert kinds == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
        assert [layer.in_features for layer in layers] == [3, 16, 16]
    assert not torch.equal(agent.actor.net[0].weight, agent.critic[0].weight)
    assert (agent.actor.log_std == 0).all() and agent.actor.log_std.shape == (2,)
    assert agent.actor.moments.count == 0 and agent.return_moments.count == 0
    assert agent.critic(torch.zeros(7, 3)).shape == (7,)
    assert agent.critic(torch.zeros(5, 7, 3)).shape == (5, 7)


@pytest.mark.parametrize("surrogate", ["clip", "clip-no-min", "kl-penalty", "unclipped"])
def test_weight_of_the_penalty_is_only_for_the_penalty(surrogate):
    agent = ppo.Agent(3, 2, small(surrogate=surrogate, kl_coef=2.5))
    assert agent.kl_coef == (2.5 if surrogate == "kl-penalty" else 0)


# === update() =====================================================================================
def test_every_epoch_has_every_step_once_in_a_new_order():
    """Rows stay together, and no two epochs or updates have the same order."""
    args = small(update_epochs=3, num_minibatches=4)
    agent, by_hand, orders = wild_agent(args), ByHand(args), []
    for number in range(2):
        rollout, given = made_up_rollout(args, agent, seed=number), []
        before = numbers(agent)
        ppo.update(agent, rollout, args, lambda agent, steps, args, to=given: to.append(steps))
        expected = by_hand.look_back(in_float64(rollout), before)
        assert [len(steps.state) for steps in given] == [SIZE // 4] * 12
        for epoch in range(3):
            parts = given[4 * epoch : 4 * epoch + 4]
            steps = ppo.Steps(*(torch.cat(x).numpy() for x in zip(*parts, strict=True)))
            order = [int(abs(expected.action - a).sum(1).argmin()) for a in steps.action]
            assert sorted(order) == list(range(SIZE))
            orders.append(tuple(order))
            for name in FIELDS:
                got, all_of_them = getattr(steps, name), getattr(expected, name)
                np.testing.assert_allclose(got, all_of_them[order], 1e-9, 1e-9, err_msg=name)
    assert len({*orders, tuple(range(SIZE))}) == 7


def spread(agent, steps, args):
    """A step that widens both deviations by a tenth, and counts."""
    with torch.no_grad():
        agent.actor.log_std.add_(0.1)
    agent.widened += 1


def kl_when_widened(times):
    """KL(old||new) of two dimensions after so many of these steps."""
    return 2 * (0.1 * times + 0.5 * math.exp(-0.2 * times) - 0.5)


@pytest.mark.parametrize("factor, number", [(0.99, 3), (1.01, 4)])
def test_target_kl_is_the_limit_itself_in_the_direction_that_is_said(factor, number):
    """KL(old||new) after three steps is as large as the goal, or nearly; nothing is multiplied.

    KL(new||old) would end it a step earlier, 1.5 times the goal a step later. The next update
    begins anew.
    """
    args = small(target_kl=factor * kl_when_widened(3))
    agent = wild_agent(args)
    for seed in (0, 1):
        agent.widened = 0
        metrics = ppo.update(agent, made_up_rollout(args, agent, seed), args, spread)
        assert agent.widened == number
        assert metrics["kl"].item() == pytest.approx(kl_when_widened(number), rel=1e-9)


@pytest.mark.parametrize("target_kl, number", [(0.0, 12), (1e9, 12), (1e-9, 1)])
def test_target_kl_off_never_reached_and_at_once(target_kl, number):
    args = small(target_kl=target_kl)
    agent = wild_agent(args)
    agent.widened = 0
    ppo.update(agent, made_up_rollout(args, agent), args, spread)
    assert agent.widened == number


@pytest.mark.parametrize("surrogate", ["clip", "kl-penalty"])
def test_target_kl_is_measured_on_each_minibatch_before_its_step(surrogate, monkeypatch):
    """The first one that is too far gets no step, and ends all epochs."""
    changes = {"kl_coef": 0.01, "update_epochs": 5, "learning_rate": 0.02}
    args = small(surrogate=surrogate, target_kl=0.05, **changes)
    chunks, taken, real = [], [], ppo.minibatches

    def remembered(*sizes):
        chunks[:] = real(*sizes)
        return iter(chunks)

    def step(agent, steps, args):
        taken.append(numbers(agent))
        ppo.minibatch_step(agent, steps, args)

    def kl_of(values, rows):
        mean = network(values, "actor.net", steps.state[rows])
        log_std = values["actor.log_std"]
        return divergence(steps.mean[rows], steps.log_std[rows], mean, log_std).mean()

    monkeypatch.setattr(ppo, "minibatches", remembered)
    another_would_be_near, all_are_near = 0, 0
    # With the seeds that are left out it ends at once.
    for seed in (1, 3, 4, 5, 6, 7, 8, 10, 12, 13, 14, 16, 17, 19, 20, 22, 23, 26, 28, 29):
        taken.clear()
        agent = wild_agent(args)
        torch.manual_seed(seed)  # of the minibatches
        rollout, before = made_up_rollout(args, agent, seed), numbers(agent)
        ppo.update(agent, rollout, args, step)
        steps = ByHand(args).look_back(in_float64(rollout), before)
        assert 1 < len(taken) < len(chunks) - 4, "it ends before the last epoch"
        for values, rows in zip(taken, chunks, strict=False):
            assert kl_of(values, rows) <= 0.05
        end = numbers(agent)
        assert kl_of(end, chunks[len(taken)]) > 0.05
        another_would_be_near += min(kl_of(end, rows) for rows in chunks[len(taken) :]) <= 0.05
        all_are_near += kl_of(end, slice(None)) <= 0.05
    assert another_would_be_near and all_are_near, "so that neither would do instead"


@pytest.mark.parametrize(
    "goal, factor",
    [(1 / 1.51, 2), (1 / 1.49, 1), (1.0, 1), (1.49, 1), (1.51, 0.5)],
)
def test_weight_of_the_penalty_adapts_to_the_divergence(goal, factor):
    """That of all steps after the last one. The weight that is shown is the one that was used."""
    kl = kl_when_widened(12)
    args = small(surrogate="kl-penalty", kl_coef=0.8, kl_coef_target=kl * goal)
    agent = wild_agent(args)
    agent.widened = 0
    metrics = ppo.update(agent, made_up_rollout(args, agent), args, spread)
    assert metrics["kl"].item() == pytest.approx(kl, rel=1e-9)
    assert metrics["kl_coef"].item() == pytest.approx(0.8)
    assert agent.kl_coef.item() == pytest.approx(0.8 * factor)


def test_the_step_that_is_given_is_the_one_that_is_made():
    """Without one, it is minibatch_step; the compiled one takes its place."""
    assert inspect.signature(ppo.update).parameters["step"].default is ppo.minibatch_step
    args = small()
    agent = wild_agent(args)
    before = numbers(agent)
    ppo.update(agent, made_up_rollout(args, agent), args)
    after = numbers(agent)
    for name in Learner(before, args).weights:
        assert (before[name] != after[name]).any(), name


# === train() ======================================================================================
def test_the_compiled_step_is_used(tmp_path, monkeypatch):
    """For every minibatch, and only if it is asked for."""
    made, steps = [], []

    def compiled(function, device):
        made.append((function, device))

        def step(*inputs):
            steps.append(len(inputs[1].state))
            return function(*inputs)

        return step

    monkeypatch.setattr(ppo, "compiled", compiled)
    ppo.train(small(tmp_path))
    assert made == [] and steps == []
    ppo.train(small(tmp_path, compile=True))
    assert made == [(ppo.minibatch_step, "cpu")] and steps == [SIZE // 4] * 36


@pytest.mark.parametrize("anneal_lr", [True, False])
def test_learning_rate_of_each_iteration(anneal_lr, tmp_path, monkeypatch):
    """It falls linearly from the first value, not to 0 before the end; a resumed run's goes on.

    Made longer, the run's rate is that of a longer run.
    """
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, anneal_lr=anneal_lr, learning_rate=0.012)
    folder = ppo.train(args)["run_dir"]
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=6 * SIZE)
    left = [1, 2 / 3, 1 / 3, 3 / 6, 2 / 6, 1 / 6] if anneal_lr else [1] * 6
    np.testing.assert_allclose([one.rate for one in seen], 0.012 * np.array(left), rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    """The third of four iterations fails: it is made again, and no other one."""
    seen, collect, calls = watch_updates(monkeypatch), ppo.collect, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 3:
            raise ConnectionError
        return collect(*args)

    monkeypatch.setattr(ppo, "collect", fails_once)
    args = small(tmp_path, total_timesteps=4 * SIZE, learning_rate=0.012, anneal_lr=True)
    with pytest.raises(ConnectionError):
        ppo.train(args)
    (folder,) = tmp_path.iterdir()
    results = ppo.resume(str(folder / "checkpoint.pt"))
    assert len(calls) == 5 and len(seen) == 4 and results["global_step"] == 4 * SIZE
    rates = 0.012 * np.array([4, 3, 2, 1]) / 4
    np.testing.assert_allclose([one.rate for one in seen], rates, rtol=1e-5)
    for one, following in zip(seen[:-1], seen[1:], strict=True):
        assert following.before.keys() == one.after.keys()
        for name, value in one.after.items():
            np.testing.assert_array_equal(following.before[name], value, err_msg=name)


@pytest.mark.parametrize("total, iterations", [(SIZE - 1, 1), (SIZE + 1, 2), (2 * SIZE, 2)])
def test_the_last_iteration_is_a_whole_one(total, iterations, worlds_made, tmp_path, monkeypatch):
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, total_timesteps=total, learning_rate=0.012, anneal_lr=True)
    results = ppo.train(args)
    assert results["global_step"] == iterations * SIZE
    assert [len(world.happened) for world in worlds_made] == [iterations * STEPS] * ENVS
    rates = 0.012 * np.arange(iterations, 0, -1) / iterations
    np.testing.assert_allclose([one.rate for one in seen], rates, rtol=1e-5)


def test_evaluation_moves_nothing(tmp_path, monkeypatch):
    """Rare or often: the same rollouts, so the same weights, moments and steps of Adam."""
    runs = []
    for every in (0, 1):
        with monkeypatch.context() as patch:
            runs.append(watch_updates(patch))
            ppo.train(small(tmp_path, eval_episodes=2, eval_frequency=every))
    for rare, often in zip(*runs, strict=True):
        for name, value in rare.after.items():
            np.testing.assert_array_equal(often.after[name], value, err_msg=name)


def test_evaluation_is_deterministic(worlds_made):
    """Twice the same trajectories, of the mean action, each from a start of its own."""
    agent = wild_agent(small()).float()
    agent.actor.moments.update(torch.randn(50, 3))
    before, args = numbers(agent), small(eval_episodes=4)
    env = ppo.make_env(args.env_id)
    state = torch.get_rng_state()
    first, second = (ppo.evaluate(agent.actor, env, args) for _ in "ab")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, second, strict=True):
        for one, other in zip(a, b, strict=True):
            for x, y in zip(one[:5], other[:5], strict=True):
                np.testing.assert_array_equal(x, y)
    for name, value in numbers(agent).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    moments = agent.actor.moments
    for trajectory in first:
        for obs, action, _, next_obs, _, _ in trajectory:
            state = np.clip((obs - moments.mean.numpy()) / moments.var.numpy() ** 0.5, -10, 10)
            mean = network(before, "actor.net", state)
            np.testing.assert_allclose(action, np.clip(mean, -1, 1), rtol=1e-3, atol=1e-4)
            assert next_obs[1] == obs[1] + 1 and next_obs[0] == obs[0]
    assert len({trajectory[0][0][0] for trajectory in first}) == 4


# === Seeds and starts =============================================================================
def names(worlds):
    """Of all episodes of these worlds, in their order."""
    found = []
    for world in worlds:
        steps = world.happened
        begins = [s for n, s in enumerate(steps) if n == 0 or steps[n - 1].next_obs[0] != s.obs[0]]
        found += [float(step.obs[0]) for step in begins]
    return found


def test_no_two_environments_share_their_draws(worlds_made, tmp_path):
    """Neither in one run nor in those of neighbouring seeds, from the first episode to the last."""
    for seed in (1, 2, 3, 4):
        ppo.train(small(tmp_path, seed=seed))
    assert len(worlds_made) == 4 * ENVS
    every = names(worlds_made)
    assert len(every) > 90 and len(set(every)) == len(every)


def test_the_same_seed_has_the_same_draws(worlds_made, tmp_path):
    for _ in "ab":
        ppo.train(small(tmp_path, seed=5))
    assert names(worlds_made[:ENVS]) == names(worlds_made[ENVS:])


# === Resume =======================================================================================
def test_all_that_is_learnt_is_restored(tmp_path, monkeypatch):
    """Networks, both kinds of moments, Adam's state, the penalty's weight, random numbers."""
    changes = {"surrogate": "kl-penalty", "kl_coef_target": 1e-9}
    changes |= {"eval_episodes": 1, "eval_frequency": 1}
    path = ppo.train(small(tmp_path, **changes))["run_dir"] / "checkpoint.pt"
    saved, loaded, load = read_checkpoint(path.parent), [], ppo.Run.load

    def noted(run):
        load(run)
        state = {name: value.clone() for name, value in run.agent.state_dict().items()}
        counters = [run.step, run.seconds, run.episodes, run.ended, run.best_return]
        loaded.append((state, torch.get_rng_state(), copy.deepcopy(counters)))

    monkeypatch.setattr(ppo.Run, "load", noted)
    ppo.resume(str(path), total_timesteps=4 * SIZE)
    ((state, generator, counters),) = loaded
    assert state.keys() == saved["parts"]["agent"].keys()
    for name, value in saved["parts"]["agent"].items():
        assert torch.equal(state[name], value), name
    assert state["kl_coef"] == 2.0 * 2**3, "it was doubled three times"
    assert state["optimizer.t"] == 36 and state["return_moments.count"] == 3 * SIZE
    assert state["actor.moments.count"] == 3 * SIZE
    assert sum(name.startswith("optimizer.m") for name in state) == 13
    assert sum(name.startswith("optimizer.v") for name in state) == 13
    progress = saved["progress"]
    assert torch.equal(generator, progress["generators"][0])
    kept = [progress[name] for name in "step seconds episodes ended best_return".split()]
    assert counters == kept and counters[0] == 3 * SIZE and counters[2] > 0
    assert counters[4] > -math.inf


def test_a_resumed_run_begins_with_other_starts_and_other_noise(worlds_made, noise_drawn, tmp_path):
    """Than the run before it, each time, or it would learn from the same episodes again."""
    args = small(tmp_path, total_timesteps=SIZE)
    folder = ppo.train(args)["run_dir"]
    for total in (2, 3):
        ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=total * SIZE)
    assert len(worlds_made) == 3 * ENVS
    every = names(worlds_made)
    assert len(set(every)) == len(every)
    drawn = torch.cat([noise.flatten() for noise in noise_drawn])
    assert len(drawn) == 3 * SIZE * 2 and len(drawn.unique()) > 0.99 * len(drawn)


def test_shuffling_goes_on_after_a_resume(tmp_path, monkeypatch):
    """The orders of the first run do not come again."""
    orders, real = [], torch.randperm

    def noted(size):
        orders.append(real(size))
        return orders[-1]

    monkeypatch.setattr(torch, "randperm", noted)
    folder = ppo.train(small(tmp_path, total_timesteps=SIZE))["run_dir"]
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=2 * SIZE)
    assert len(orders) == 6 and len({tuple(order.tolist()) for order in orders}) == 6


def test_running_returns_begin_anew_after_a_resume(worlds_made, tmp_path, monkeypatch):
    """What the episodes that were left behind had brought is no part of the new ones."""
    seen = watch_updates(monkeypatch)
    args = small(tmp_path, total_timesteps=SIZE, gamma=1.0)
    folder = ppo.train(args)["run_dir"]
    ppo.resume(str(folder / "checkpoint.pt"), total_timesteps=2 * SIZE)
    brought = []
    for one in seen:
        running = np.zeros(ENVS)
        for reward, ended in zip(one.rollout.reward, one.rollout.ended, strict=True):
            running = running + reward
            brought.append(running)
            running = np.where(ended, 0, running)
    after = seen[1].after
    assert after["return_moments.mean"] == pytest.approx(np.mean(brought), rel=1e-4)
    assert after["return_moments.var"] == pytest.approx(np.var(brought), rel=1e-4)


def test_a_finished_run_learns_no_more(tmp_path, monkeypatch):
    folder = ppo.train(small(tmp_path))["run_dir"]
    seen = watch_updates(monkeypatch)
    results = ppo.resume(str(folder / "checkpoint.pt"))
    assert seen == [] and results["global_step"] == 3 * SIZE
