"""Each formula of SAC against a NumPy float64 version written from the papers.

The blocks that every off-policy script has to the letter (replay, steps, shared losses) are tested
here for all of them.
"""

import numpy as np
import pytest
import torch
from oracles import (
    ACT,
    OBS,
    B,
    assert_slopes,
    assert_targets_followed,
    gaussian_sample,
    gradients_of,
    log_normal,
    log_slope,
    numbers,
    q_value,
    record,
    weights,
)
from torch import nn

import sac_continuous as sac


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def log_prob_of(u, mean, std):
    """The function under test, on NumPy arrays (B, ACT)."""
    u, mean, std = (torch.as_tensor(np.broadcast_to(x, np.shape(u)).copy()) for x in (u, mean, std))
    return sac.squashed_log_prob(u, std.log(), (u - mean) / std).numpy()


# --- log pi -------------------------------------------------------------------------------------


def test_log_prob_is_the_change_of_variables():
    rng = np.random.default_rng(0)
    mean, std, noise = (
        rng.normal(size=(B, ACT)),
        rng.uniform(0.1, 2, (B, ACT)),
        rng.normal(size=(B, ACT)),
    )
    u = mean + std * noise
    expected = (log_normal(u, mean, std) - log_slope(u)).sum(1)
    got = log_prob_of(u, mean, std)
    assert got.shape == (B,)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("mean, std", [(0.0, 0.5), (1.5, 1.0), (-0.7, 0.2), (0.0, 2.0)])
def test_density_integrates_to_one_over_the_action_interval(mean, std):
    u = np.linspace(mean - 12 * std, mean + 12 * std, 200_001)
    density = np.exp(log_prob_of(u[:, None], mean, std))
    assert np.trapezoid(density, np.tanh(u)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("u", [-10.0, 10.0])
def test_log_slope_is_right_where_the_naive_form_saturates(u):
    value = torch.full((1, 1), u)  # float32
    log_slope_here = -sac.squashed_log_prob(value, torch.zeros(1, 1), torch.zeros(1, 1)).item()
    log_slope_here -= 0.5 * np.log(2 * np.pi)
    assert log_slope_here == pytest.approx(log_slope(u), abs=1e-4)
    assert log_slope_here == pytest.approx(-18.61, abs=0.01)
    naive = torch.log(1 - value.tanh() ** 2 + 1e-6).item()
    assert naive == pytest.approx(-13.8, abs=0.05)  # what the formula is there to avoid


def test_log_prob_and_its_gradient_are_finite_far_out():
    u = torch.linspace(-50, 50, 101).unsqueeze(1).requires_grad_()
    value = sac.squashed_log_prob(u, torch.zeros_like(u), torch.zeros_like(u))
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert value.isfinite().all() and gradient.isfinite().all()
    # d/du of -log(1 - tanh(u)^2) is 2 tanh(u)
    torch.testing.assert_close(gradient, 2 * u.detach().tanh())


# --- the actor ----------------------------------------------------------------------------------


def test_sample_agrees_with_the_distribution_that_the_network_describes(monkeypatch):
    actor, obs = sac.Actor(OBS, ACT, 16), torch.randn(B, OBS)
    noise = torch.randn(B, ACT)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    action, log_prob = actor.sample(obs)
    mean, log_std = actor.net(obs).detach().double().numpy().reshape(B, 2, ACT).transpose(1, 0, 2)
    u = mean + np.exp(log_std) * noise.numpy()
    assert action.shape == (B, ACT) and log_prob.shape == (B,)
    np.testing.assert_allclose(action.detach(), np.tanh(u), atol=1e-6)
    expected = (log_normal(u, mean, np.exp(log_std)) - log_slope(u)).sum(1)
    np.testing.assert_allclose(log_prob.detach(), expected, atol=1e-5)
    np.testing.assert_allclose(actor(obs).detach(), np.tanh(mean), atol=1e-6)


def test_log_std_stays_between_its_bounds():
    actor, obs = sac.Actor(OBS, ACT, 16), torch.randn(B, OBS)
    for bias, bound in ((100.0, 2.0), (-100.0, -20.0)):
        nn.init.constant_(actor.net[-1].bias[ACT:], bias)
        _, log_prob = actor.sample(obs)
        assert log_prob.isfinite().all()
        assert actor.net(obs)[:, ACT:].clamp(-20, 2).eq(bound).all()
    # with the smallest standard deviation the sample is the mean
    torch.testing.assert_close(actor.sample(obs)[0], actor(obs), atol=1e-6, rtol=0)


def test_one_observation_needs_no_batch():
    actor = sac.Actor(OBS, ACT, 16)
    action, log_prob = actor.sample(torch.randn(OBS))
    assert action.shape == (ACT,) and log_prob.shape == ()


# --- targets and losses -------------------------------------------------------------------------


def random_batch():
    reward, q1, q2, log_prob = torch.randn(4, B).double().unbind()
    terminated = torch.tensor([0, 1, 0, 1, 0, 0, 1]).double()
    return reward, terminated, q1, q2, log_prob


@pytest.mark.parametrize("alpha", [0.0, 0.2, 3.0])
def test_soft_target_by_hand(alpha):
    reward, terminated, q1, q2, log_prob = random_batch()
    y = sac.bellman_target(
        reward, terminated, sac.soft_value(q1, q2, log_prob, torch.tensor(alpha)), 0.9
    )
    for i in range(B):
        following = min(q1[i].item(), q2[i].item()) - alpha * log_prob[i].item()
        expected = reward[i].item() + (0 if terminated[i] else 0.9 * following)
        assert y[i].item() == pytest.approx(expected, abs=1e-6)
    assert y.shape == (B,)
    assert (y == reward)[terminated == 1].all()  # exactly r, whatever alpha


def test_critic_loss_and_gradient():
    q, y = torch.randn(B).double().requires_grad_(), torch.randn(B).double()
    loss = sac.critic_loss(q, y)
    error = (q - y).detach().numpy()
    assert loss.shape == () and loss.item() == pytest.approx(0.5 * np.mean(error**2))
    np.testing.assert_allclose(torch.autograd.grad(loss, q)[0], error / B)


def test_actor_loss_is_the_mean_of_alpha_log_pi_minus_the_smaller_q():
    _, _, q1, q2, log_prob = (x.requires_grad_() for x in random_batch())
    loss = sac.actor_loss(log_prob, q1, q2, torch.tensor(0.3))
    smaller = np.minimum(q1.detach().numpy(), q2.detach().numpy())
    assert loss.shape == ()
    assert loss.item() == pytest.approx(np.mean(0.3 * log_prob.detach().numpy() - smaller))
    gradients = torch.autograd.grad(loss, (log_prob, q1, q2))
    np.testing.assert_allclose(gradients[0], np.full(B, 0.3 / B), rtol=1e-6)
    first = (q1 < q2).numpy()
    np.testing.assert_allclose(gradients[1], np.where(first, -1 / B, 0))
    np.testing.assert_allclose(gradients[2], np.where(first, 0, -1 / B))


def test_actor_gradient_through_the_reparameterised_action(monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        actor = sac.Actor(OBS, ACT, 8)
        q1, q2 = sac.Critic(OBS, ACT, 8), sac.Critic(OBS, ACT, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    obs, noise, alpha = torch.randn(B, OBS).double(), torch.randn(B, ACT).double(), 0.7
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    action, log_prob = actor.sample(obs)
    loss = sac.actor_loss(log_prob, q1(obs, action), q2(obs, action), torch.tensor(alpha))
    gradients = torch.autograd.grad(loss, list(actor.parameters()))

    actor_weights, critics = weights(actor), [weights(q) for q in (q1, q2)]

    def objective():
        action, log_pi = gaussian_sample(actor_weights, obs.numpy(), noise.numpy())
        smaller = np.minimum(*(q_value(q, obs.numpy(), action) for q in critics))
        return np.mean(alpha * log_pi - smaller)

    assert loss.item() == pytest.approx(objective())
    assert_slopes(objective, actor_weights, gradients, abs=1e-7)


def new_agent(**settings):
    return sac.Agent(OBS, ACT, sac.Args(hidden_dim=16, **settings))


@pytest.mark.parametrize("entropy, direction", [(-2.0, 1), (0.5, -1)])
def test_temperature_moves_towards_the_target_entropy(entropy, direction):
    """Entropy below its target (-1) raises alpha, above it lowers alpha; alpha stays positive."""
    agent = new_agent(alpha=0.5, alpha_lr=0.1, target_entropy_scale=1 / ACT)
    assert agent.target_entropy == pytest.approx(-1)
    log_prob = torch.full((B,), -entropy)
    loss = sac.temperature_loss(agent.log_alpha.exp(), log_prob, agent.target_entropy)
    assert loss.item() == pytest.approx(-0.5 * (-entropy - 1.0))
    (gradient,) = torch.autograd.grad(loss, agent.log_alpha)
    assert gradient.item() == pytest.approx(
        -0.5 * (-entropy - 1.0)
    )  # d alpha / d log alpha = alpha
    for _ in range(300):
        loss = sac.temperature_loss(agent.log_alpha.exp(), log_prob, agent.target_entropy)
        sac.gradient_step(agent.alpha_optimizer, loss, 0)
        assert agent.log_alpha.exp() > 0
    assert (agent.log_alpha.exp().item() - 0.5) * direction > 0


@pytest.mark.parametrize("alpha", [0.0, 0.2, 5.0])
def test_a_fixed_temperature_is_what_was_asked_for(alpha):
    """Also after updates; 0 is the conventional objective."""
    agent, updates = record(sac, autotune=False, alpha=alpha, alpha_lr=1.0)
    for value in (agent.log_alpha.exp(), *(update.returned["alpha"] for update in updates)):
        assert value.item() == (pytest.approx(alpha) if alpha else 0)
    assert all("temperature_loss" not in update.returned for update in updates)


# --- updates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("autotune", [True, False])
def test_an_update_by_hand(autotune):
    """Targets, losses, gradients and metrics of two updates, in which everything moves.

    Each step sees the networks as the step before has left them, but the temperature is that of the
    update's beginning. No step leaves a gradient in another network.
    """
    gamma, tau = 0.9, 0.3
    moving = {"q_lr": 0.05, "policy_lr": 0.05, "alpha_lr": 0.05, "tau": tau}
    settings = {"gamma": gamma, "alpha": 0.3, "autotune": autotune, "target_entropy_scale": 0.5}
    agent, updates = record(sac, **settings, **moving)
    for update in updates:
        obs, action, reward, next_obs, terminated = (x.double().numpy() for x in update.batch)
        alpha, metrics = np.exp(update.before["log_alpha"][0]), update.returned
        critics, actor, *temperature = update.steps
        next_noise, noise = update.noise
        assert len(temperature) == autotune

        # Critics.
        nets = update.before
        next_action, next_log_prob = gaussian_sample(nets["actor"], next_obs, next_noise)
        next_q = [q_value(nets[q], next_obs, next_action) for q in ("q1_target", "q2_target")]
        y = reward + gamma * (1 - terminated) * (np.min(next_q, axis=0) - alpha * next_log_prob)
        assert list(critics.gradients) == ["q1", "q2"] and len(update.targets) == 2
        expected = 0.0
        for q, target in zip(("q1", "q2"), update.targets, strict=True):
            np.testing.assert_allclose(target, y, atol=1e-4)
            assert target.shape == (B,)
            assert (target == update.batch.reward.numpy())[terminated == 1].all()
            np.testing.assert_allclose(metrics[q], q_value(nets[q], obs, action), atol=1e-4)

            def half_square(q=q, nets=nets, y=y, obs=obs, action=action):
                return 0.5 * np.mean((q_value(nets[q], obs, action) - y) ** 2)

            expected += half_square()
            assert_slopes(half_square, nets[q], critics.gradients[q], rel=1e-3, abs=1e-4)
        assert critics.loss == metrics["critic_loss"] == pytest.approx(expected, rel=1e-4)

        # Actor.
        nets = actor.before

        def objective(nets=nets, obs=obs, noise=noise, alpha=alpha):
            new_action, log_prob = gaussian_sample(nets["actor"], obs, noise)
            smaller = np.minimum(*(q_value(nets[q], obs, new_action) for q in ("q1", "q2")))
            return np.mean(alpha * log_prob - smaller)

        _, log_prob = gaussian_sample(nets["actor"], obs, noise)
        assert list(actor.gradients) == ["actor"]
        assert actor.loss == metrics["actor_loss"] == pytest.approx(objective(), rel=1e-4, abs=1e-5)
        assert_slopes(objective, nets["actor"], actor.gradients["actor"], rel=1e-3, abs=1e-4)
        np.testing.assert_allclose(metrics["entropy"], -log_prob, atol=1e-3)
        assert metrics["alpha"].item() == pytest.approx(alpha)

        # Temperature.
        for step in temperature:
            slope = -alpha * np.mean(log_prob - 0.5 * ACT)
            assert list(step.gradients) == ["log_alpha"]
            assert step.gradients["log_alpha"] == [pytest.approx(slope, rel=1e-4)]
            assert step.loss == metrics["temperature_loss"] == pytest.approx(slope, rel=1e-4)

        assert_targets_followed(update, tau)
    moved = updates[0].before["log_alpha"] != updates[1].before["log_alpha"]
    assert moved == autotune


# --- steps --------------------------------------------------------------------------------------


def networks_changed_by(agent, optimizer, loss):
    before = numbers(agent)
    sac.gradient_step(optimizer, loss, 0)
    after = numbers(agent)
    return {
        name for name, arrays in before.items() if not all(map(np.array_equal, arrays, after[name]))
    }


def test_no_step_leaks_into_another_network():
    agent, obs = new_agent(), torch.randn(B, OBS)
    actor, q1, q2 = agent.actor, agent.q1, agent.q2

    action, log_prob = actor.sample(obs)
    loss = sac.temperature_loss(agent.log_alpha.exp(), log_prob.detach(), -1.0)
    assert networks_changed_by(agent, agent.alpha_optimizer, loss) == {"log_alpha"}

    alpha = agent.log_alpha.exp().detach()
    loss = sac.actor_loss(log_prob, q1(obs, action), q2(obs, action), alpha)
    assert networks_changed_by(agent, agent.actor_optimizer, loss) == {"actor"}

    loss = sac.critic_loss(q1(obs, action.detach()), torch.zeros(B))
    loss = loss + sac.critic_loss(q2(obs, action.detach()), torch.zeros(B))
    assert networks_changed_by(agent, agent.q_optimizer, loss) == {"q1", "q2"}


@pytest.mark.parametrize("limit", [0, 0.1, 1e9])
def test_gradient_norm_is_limited_by_the_flag_alone(limit):
    q, obs, action = sac.Critic(OBS, ACT, 16), torch.randn(B, OBS), torch.randn(B, ACT)
    target = 100 * torch.ones(B)
    loss = sac.critic_loss(q(obs, action), target)
    expected = torch.autograd.grad(loss, list(q.parameters()))
    norm = torch.cat([g.flatten() for g in expected]).norm()
    optimizer = sac.Adam(q.parameters(), 0.0)
    with gradients_of(optimizer) as pairs:
        sac.gradient_step(optimizer, sac.critic_loss(q(obs, action), target), limit)
    factor = min(1.0, limit / norm.item()) if limit else 1.0
    for (_, got), gradient in zip(pairs, expected, strict=True):
        torch.testing.assert_close(got, factor * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_adam_is_that_of_pytorch(eps):
    """Over many steps, with gradients of very different sizes, and for a single number."""
    shapes = [(4, 3), (3,), ()]
    ours = [nn.Parameter(torch.randn(shape).double()) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = sac.Adam(ours, 1e-2, eps).double()
    peer = torch.optim.Adam(theirs, 1e-2, eps=eps)
    for step in range(50):
        gradients = [10.0 ** (step % 7 - 4) * torch.randn_like(p) for p in ours]
        optimizer.step(gradients)
        for p, gradient in zip(theirs, gradients, strict=True):
            p.grad = gradient.clone()
        peer.step()
        for p, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate():
    """[Kingma and Ba 2015, sec. 2.1]: in the direction of the gradient's sign alone."""
    p = nn.Parameter(torch.zeros(3))
    sac.Adam([p], 0.25).step([torch.tensor([1e-3, -5.0, 1e4])])
    np.testing.assert_allclose(p.detach(), [-0.25, 0.25, -0.25], rtol=2e-5)


def test_target_networks_follow_slowly():
    q, target = sac.Critic(OBS, ACT, 16), sac.Critic(OBS, ACT, 16)
    expected = [
        0.1 * p.detach().numpy() + 0.9 * t.detach().numpy()
        for p, t in zip(q.parameters(), target.parameters(), strict=True)
    ]
    sac.update_target(target, q, 0.1)
    for t, e in zip(target.parameters(), expected, strict=True):
        np.testing.assert_allclose(t.detach(), e, atol=1e-7)
    sac.update_target(target, q, 1.0)
    assert all(torch.equal(t, p) for t, p in zip(target.parameters(), q.parameters(), strict=True))


@pytest.mark.parametrize("rate", [0, 0.1, 0.25, 0.3, 0.5, 1, 1.5, 2, 3])
def test_fractional_updates_per_step(rate):
    numbers = [sac.updates_due(step, rate) for step in range(-5, 1001)]
    due = [len(of) for of in numbers]
    assert sum(due[:6]) == 0  # before learning starts, and at its zeroth step
    counts = np.cumsum(due[6:])
    assert all(count == int(step * rate) for step, count in enumerate(counts, start=1))
    assert max(due) - min(due[6:]) <= 1  # evenly spread
    # No number is left out or comes twice: TD3's delay looks at them.
    assert [n for of in numbers for n in of] == list(range(1, counts[-1] + 1))


# --- replay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [1, 4, 5, 6, 13])
def test_replay_keeps_the_latest_transitions(added):
    buffer, kept = sac.ReplayBuffer(5, OBS, ACT), {}
    for i in range(added):
        transition = (
            np.full(OBS, i),
            np.full(ACT, -i),
            10.0 * i,
            np.full(OBS, i + 0.5),
            i % 2 == 1,
        )
        buffer.add(*transition)
        kept[i] = transition
    latest = sorted(kept)[-5:]
    assert len(buffer) == len(latest)
    batch = buffer.sample(400)
    assert batch.obs.shape == (400, OBS) and batch.action.shape == (400, ACT)
    assert batch.reward.shape == batch.terminated.shape == (400,)
    assert all(field.dtype == torch.float32 for field in batch)
    assert set(batch.obs[:, 0].int().tolist()) == set(latest)  # all of them, and no others
    for row in zip(*batch, strict=True):
        expected = kept[int(row[0][0])]
        for got, value in zip(row, expected, strict=True):
            np.testing.assert_array_equal(got, np.asarray(value, np.float32))


def test_replay_draws_uniformly_with_replacement():
    buffer = sac.ReplayBuffer(10, 1, 1)
    for i in range(10):
        buffer.add(i, 0, 0, 0, False)
    counts = np.bincount(buffer.sample(100_000).obs[:, 0].int(), minlength=10)
    expected, sigma = 10_000, np.sqrt(100_000 * 0.1 * 0.9)
    assert (abs(counts - expected) < 5 * sigma).all()


def test_replay_goes_through_a_checkpoint_and_into_a_larger_buffer():
    small, large = sac.ReplayBuffer(6, 1, 1), sac.ReplayBuffer(9, 1, 1)
    for i in range(6):
        small.add(i, 0, 0, 0, False)
    large.load_state_dict(small.state_dict())
    for i in range(6, 12):
        large.add(i, 0, 0, 0, False)
    assert sorted(large.table[:, 0]) == list(range(3, 12))


def test_replay_reserves_no_memory_before_it_is_written():
    resource = pytest.importorskip("resource", reason="POSIX only")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    buffer = sac.ReplayBuffer(2_000_000, 100, 10)  # 1.7 GB if it were committed
    buffer.add(np.zeros(100), np.zeros(10), 0, np.zeros(100), False)
    assert buffer.table.nbytes > 1.5e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB (macOS: B)
