"""The blocks that the off-policy scripts share, tested in each of them, in float64 where it helps.

test_formulas*.py explain the formulas on one script; here every script has to be right by itself.
"""

import importlib
import math

import numpy as np
import pytest
import torch
from helpers import OFF_POLICY, same
from oracles import ACT, OBS, B, gaussian_sample, gradients_of, log_normal, log_slope, mlp, weights
from papers import in_float64
from torch import nn

HER = "sac_her_continuous"
SCRIPTS = [*OFF_POLICY, HER]
GAUSSIAN = ["sac_continuous", "sac_v1_value_net", HER]
DETERMINISTIC = ["ddpg_continuous", "td3_continuous", "td3_per_continuous"]
SMOOTHING = ["td3_continuous", "td3_per_continuous"]


@pytest.fixture(params=SCRIPTS)
def module(request):
    return importlib.import_module(request.param)


def only(*names):
    return pytest.mark.parametrize("module", names, indirect=True)


@pytest.fixture(autouse=True)
def float64():
    with in_float64():
        yield


# === Networks =====================================================================================
def test_a_network_has_two_hidden_layers_and_pytorchs_first_weights(module):
    torch.manual_seed(3)
    network = module.mlp(5, 7, 2)
    torch.manual_seed(3)
    expected = [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 2)]
    assert [type(layer) for layer in network] == [type(layer) for layer in expected]
    for layer, other in zip(network, expected, strict=True):
        same(dict(layer.state_dict()), dict(other.state_dict()))


def test_a_critic_takes_observation_and_action_and_gives_one_number(module):
    critic = module.Critic(OBS, ACT, 8)
    obs, action = torch.randn(B, OBS), torch.randn(B, ACT)
    q = critic(obs, action)
    expected = mlp(weights(critic), np.concatenate([obs, action], axis=1))[:, 0]
    assert q.shape == (B,)
    np.testing.assert_allclose(q.detach(), expected, atol=1e-12)


@only("sac_v1_value_net")
def test_the_value_network_takes_the_observation_alone(module):
    value = module.Value(OBS, 8)
    obs = torch.randn(B, OBS)
    assert value(obs).shape == (B,)
    expected = mlp(weights(value), obs.numpy())[:, 0]
    np.testing.assert_allclose(value(obs).detach(), expected, atol=1e-12)


@only(*DETERMINISTIC)
def test_a_deterministic_actor_is_tanh_of_its_network(module):
    actor, obs = module.Actor(OBS, ACT, 8), torch.randn(B, OBS)
    nn.init.normal_(actor.net[-1].weight)
    action = actor(obs)
    assert action.shape == (B, ACT)
    expected = np.tanh(mlp(weights(actor), obs.numpy()))
    np.testing.assert_allclose(action.detach(), expected, atol=1e-12)


@only(*DETERMINISTIC)
def test_a_deterministic_actor_begins_where_tanh_is_steep(module):
    """Its last layer is uniform within 3e-3 [2016, sec. 7], the others are PyTorch's."""
    torch.manual_seed(3)
    actor = module.Actor(OBS, 50, 64)
    for parameter in actor.net[-1].parameters():
        assert parameter.abs().max() <= 3e-3
        assert parameter.std().item() == pytest.approx(3e-3 / math.sqrt(3), rel=0.3)
    weight = actor.net[-1].weight
    assert weight.max() > 2.9e-3 and weight.min() < -2.9e-3
    torch.manual_seed(3)
    expected = module.mlp(OBS, 64, 50)
    for layer in (0, 2):
        same(dict(actor.net[layer].state_dict()), dict(expected[layer].state_dict()))


# --- the Gaussian actor ---------------------------------------------------------------------------


@only(*GAUSSIAN)
def test_a_gaussian_actor_by_numpy(module):
    """Its action, the log density of it, and the mean's action, which evaluation takes."""
    actor, obs = module.Actor(OBS, ACT, 8), torch.randn(B, OBS)
    torch.manual_seed(5)
    action, log_prob = actor.sample(obs)
    torch.manual_seed(5)
    noise = torch.randn(B, ACT).numpy()
    expected, expected_log_prob = gaussian_sample(weights(actor), obs.numpy(), noise)
    assert action.shape == (B, ACT) and log_prob.shape == (B,)
    np.testing.assert_allclose(action.detach(), expected, atol=1e-12)
    np.testing.assert_allclose(log_prob.detach(), expected_log_prob, atol=1e-10)
    mean = np.split(mlp(weights(actor), obs.numpy()), 2, axis=1)[0]
    np.testing.assert_allclose(actor(obs).detach(), np.tanh(mean), atol=1e-12)


@only(*GAUSSIAN)
def test_the_log_standard_deviation_is_cut_at_minus_20_and_2(module, monkeypatch):
    """And at nothing in between; the mean is not cut."""
    actor = module.Actor(OBS, ACT, 8)
    for parameter in actor.parameters():
        nn.init.zeros_(parameter)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the sample is the mean
    for given, kept in ((-21, -20), (-19.9, -19.9), (-5.5, -5.5), (0, 0), (1.9, 1.9), (2.1, 2)):
        with torch.no_grad():
            actor.net[-1].bias[:ACT] = 3.0
            actor.net[-1].bias[ACT:] = given
        action, log_prob = actor.sample(torch.randn(B, OBS))
        expected = ACT * (-kept - 0.5 * np.log(2 * np.pi) - log_slope(3.0))
        np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-12)
        np.testing.assert_allclose(action.detach(), np.tanh(3.0), rtol=1e-12)


@only(*GAUSSIAN)
def test_a_sample_is_spread_as_the_network_says(module):
    """Every transition and every dimension has noise of its own."""
    actor = module.Actor(OBS, 2, 8)
    for parameter in actor.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        actor.net[-1].bias.copy_(torch.tensor([0.2, -0.3, math.log(0.5), math.log(0.1)]))
    torch.manual_seed(1)
    action, _ = actor.sample(torch.zeros(20_000, OBS))
    u = action.detach().atanh().numpy()
    np.testing.assert_allclose(u.mean(0), [0.2, -0.3], atol=0.015)
    np.testing.assert_allclose(u.std(0), [0.5, 0.1], rtol=0.03)
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.03


@only(*GAUSSIAN)
def test_the_log_density_near_and_far(module):
    """Also where log(1 - a^2) would be minus infinity."""
    u = torch.tensor([-40.0, -10, -1, 0, 0.5, 8, 30]).unsqueeze(1).repeat(1, 2)
    log_std, noise = torch.tensor([-1.5, 0.5]).expand(7, 2), torch.randn(7, 2)
    got = module.squashed_log_prob(u, log_std, noise)
    std = log_std.exp().numpy()
    mean = u.numpy() - std * noise.numpy()
    expected = (log_normal(u.numpy(), mean, std) - log_slope(u.numpy())).sum(1)
    assert got.shape == (7,)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


# === Replay =======================================================================================
def transition(number):
    """A transition that can be told from every other, in each of its columns."""
    obs, next_obs = np.full(OBS, number) + np.arange(OBS) / 8, np.full(OBS, -number - 0.5)
    return obs, np.full(ACT, number / 64), 3.0 * number, next_obs, number % 3 == 1


def filled(module, capacity, count):
    replay = module.ReplayBuffer(capacity, OBS, ACT)
    for number in range(count):
        replay.add(*transition(number))
    return replay


def assert_rows(batch, numbers):
    """These transitions, in every column."""
    columns = zip(*(transition(number) for number in numbers), strict=True)
    for got, expected in zip(batch, columns, strict=True):
        np.testing.assert_array_equal(got, np.asarray(expected, np.float32))


@pytest.mark.parametrize("added", [0, 1, 4, 5, 6, 13, 15])
def test_the_replay_is_a_ring(module, added):
    """Number n is in row n modulo the capacity, in every column, until it is overwritten."""
    replay = filled(module, 5, added)
    length = min(added, 5)
    assert len(replay) == length and replay.added == added
    newest = [max(n for n in range(added) if n % 5 == row) for row in range(length)]
    batch = replay.gather(torch.arange(length))
    assert batch._fields == ("obs", "action", "reward", "next_obs", "terminated")
    if length:
        assert_rows(batch, newest)
    shapes = [tuple(column.shape) for column in batch]
    assert shapes == [(length, OBS), (length, ACT), (length,), (length, OBS), (length,)]
    assert {column.dtype for column in batch} == {torch.float32}


def test_the_replay_keeps_copies(module):
    """An environment may go on writing into the array that it returned."""
    replay = module.ReplayBuffer(5, OBS, ACT)
    obs, action, reward, next_obs, terminated = transition(4)
    replay.add(obs, action, reward, next_obs, terminated)
    for array in (obs, action, next_obs):
        array[:] = 99
    batch = replay.gather(torch.tensor([0]))
    assert_rows(batch, [4])
    for column in batch:
        column.fill_(99)
    assert_rows(replay.gather(torch.tensor([0])), [4])


@pytest.mark.parametrize("added, capacity", [(4, 9), (9, 9), (25, 9)])
def test_a_uniform_batch(module, added, capacity):
    """Rows of one transition, all that are there and no others, equally often, with replacement."""
    replay = filled(module, capacity, added)
    torch.manual_seed(2)
    draws = 4_000
    batch = replay.sample(draws)
    number = (batch.reward / 3).round().int().tolist()
    assert_rows(batch, number)
    kept = range(added - min(added, capacity), added)
    counts = np.bincount(number, minlength=added)[kept.start :]
    assert counts.sum() == draws, "nothing older"
    expected = draws / len(kept)
    assert abs(counts - expected).max() < 5 * math.sqrt(expected)
    first = np.array(number).reshape(-1, 2)
    assert (first[:, 0] == first[:, 1]).any(), "the same one may come twice in a row"


def test_a_uniform_batch_is_drawn_by_torch(module):
    """Whose random state is saved: after a resume the same rows are drawn."""
    replay = filled(module, 50, 33)
    torch.manual_seed(6)
    batch = replay.sample(20)
    after = torch.get_rng_state()
    torch.manual_seed(6)
    assert_rows(batch, torch.randint(33, (20,)).tolist())
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("added", [0, 3, 7, 17])
def test_the_replay_goes_through_a_file(module, added, tmp_path):
    """With all its rows, where the next one goes, and nothing beyond what was stored."""
    replay = filled(module, 7, added)
    state = replay.state_dict()
    assert state["added"] == added and state["table"].shape == (min(added, 7), 2 * OBS + ACT + 2)
    torch.save(state, tmp_path / "replay.pt")
    other = module.ReplayBuffer(7, OBS, ACT)
    other.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for number in range(added, added + 3):
        assert len(other) == len(replay) and other.added == number
        np.testing.assert_array_equal(other.table, replay.table)
        for which in (replay, other):
            which.add(*transition(number))
    np.testing.assert_array_equal(other.table, replay.table)


# === Steps ========================================================================================
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_adam_is_pytorchs(module, lr, eps):
    """For a vector, a matrix and a number; with gradients of all sizes, and some that are zero."""
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,), ())]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, peer = module.Adam(ours, lr, eps), torch.optim.Adam(theirs, lr, eps=eps)
    for step in range(30):
        gradients = [10.0 ** (step % 9 - 6) * torch.randn_like(p) for p in ours]
        gradients[1][0] = 0
        optimizer.step(gradients)
        for p, gradient in zip(theirs, gradients, strict=True):
            p.grad = gradient.clone()
        peer.step()
        for p, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)
    assert optimizer.t == 30


def test_adam_has_pytorchs_epsilon_unless_told_otherwise(module):
    assert module.Adam([nn.Parameter(torch.zeros(2))], 0.1).eps == 1e-8


def test_adam_goes_through_a_file(module, tmp_path):
    """Its moments and how many steps it has made, but not its step size."""
    shapes = ((2, 3), (2,))
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = module.Adam(ours, 0.1)
    gradients = [torch.randn(shape) for shape in shapes]
    optimizer.step(gradients)
    torch.save(optimizer.state_dict(), tmp_path / "adam.pt")
    others = [nn.Parameter(p.detach().clone()) for p in ours]
    other = module.Adam(others, 0.1)
    other.load_state_dict(torch.load(tmp_path / "adam.pt", weights_only=True))
    for which in (optimizer, other):
        which.step([2 * gradient for gradient in gradients])
    for p, expected in zip(others, ours, strict=True):
        assert torch.equal(p, expected)
    assert set(optimizer.state_dict()) == {"t", "m0", "v0", "m1", "v1"}


def gradients_given(module, parameters, loss, limit):
    """What a gradient_step hands to the optimizer."""
    optimizer = module.Adam(parameters, 0.0)
    with gradients_of(optimizer) as pairs:
        module.gradient_step(optimizer, loss, limit)
    return [gradient for _, gradient in pairs]


@pytest.mark.parametrize("limit", [0.0, 0.5, 4.99, 5.01, 1e9])
def test_a_long_gradient_is_shortened_as_a_whole(module, limit):
    """Of (3, 0) and 4 together the length is 5. Shorter ones stay as they are; 0 is no limit."""
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    loss = 3 * one[0] - 4 * other
    factor = min(1.0, limit / (5 + 1e-6)) if limit > 0 else 1.0
    got = gradients_given(module, [one, other], loss, limit)
    torch.testing.assert_close(got[0], factor * torch.tensor([3.0, 0.0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(got[1], factor * torch.tensor(-4.0), rtol=1e-12, atol=0)


def test_a_gradient_of_zero_stays_zero(module):
    parameter = nn.Parameter(torch.zeros(2))
    (got,) = gradients_given(module, [parameter], (0 * parameter).sum(), 0.5)
    assert torch.equal(got, torch.zeros(2))


def test_a_step_descends_and_touches_its_own_parameters_alone(module):
    """It goes down, and another parameter of the same loss neither moves nor gets a gradient."""
    mine, another = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(5.0))
    optimizer = module.Adam([mine], 0.25)
    for number in (1, 2):
        module.gradient_step(optimizer, mine * another, 0.0)
        assert mine.item() == pytest.approx(2 - 0.25 * number)
    assert another.item() == 5 and another.grad is None
    module.gradient_step(module.Adam([another], 0.25), -mine * another, 0.0)
    assert another.item() == pytest.approx(5.25), "gradients of earlier steps do not add up"


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.9, 1.0])
def test_a_slow_copy_moves_by_the_share_tau(module, tau):
    """And the network that it follows does not move."""
    fast, slow = module.Critic(2, 1, 4), module.Critic(2, 1, 4)
    before = [weights(fast), weights(slow)]
    module.update_target(slow, fast, tau)
    for new, old, got in zip(*before, weights(slow), strict=True):
        np.testing.assert_allclose(got, tau * new + (1 - tau) * old, rtol=1e-12, atol=1e-15)
    for old, now in zip(before[0], weights(fast), strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.mark.parametrize("rate", [0, 0.1, 0.29, 0.5, 1, 1.5, 2, 3])
def test_updates_are_spread_evenly_over_the_steps(module, rate):
    """After n steps there were floor(n rate) of them, numbered from 1; none in the warm-up."""
    given = []
    for step in range(-4, 301):
        given += module.updates_due(step, rate)
        assert given == list(range(1, int(max(step, 0) * rate) + 1))


# === Formulas of the deterministic scripts ========================================================
@only(*DETERMINISTIC)
@pytest.mark.parametrize("std", [0.0, 0.1, 1.5])
def test_exploration_is_noise_of_this_width_cut_at_the_bounds(module, std):
    action = torch.tensor([-0.95, 0.0, 0.9])
    torch.manual_seed(4)
    got = torch.stack([module.explore(action, std) for _ in range(50)])
    torch.manual_seed(4)
    noise = torch.stack([torch.randn(3) for _ in range(50)])
    expected = np.clip(action.numpy() + std * noise.numpy(), -1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@only(*DETERMINISTIC)
def test_a_schedule_is_a_straight_line(module):
    values = [module.linear_schedule(0.5, 0.1, fraction) for fraction in (0, 0.25, 0.5, 1)]
    assert values == pytest.approx([0.5, 0.4, 0.3, 0.1])
    assert module.linear_schedule(0.1, 0.5, 0.25) == pytest.approx(0.2)


@only(*SMOOTHING)
def test_smoothing_cuts_the_noise_and_then_the_action(module):
    torch.manual_seed(4)
    action = 2 * torch.rand(50, 2) - 1
    torch.manual_seed(5)
    got = module.smooth(action, 0.7, 0.5)
    torch.manual_seed(5)
    noise = 0.7 * torch.randn(50, 2).numpy()
    smoothed = action.numpy() + np.clip(noise, -0.5, 0.5)
    for number, limit in ((noise, 0.5), (smoothed, 1)):
        assert (number > limit).any() and (number < -limit).any()
    expected = np.clip(smoothed, -1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@only(*SMOOTHING)
def test_smoothing_that_is_off_draws_no_random_number(module):
    action, state = torch.randn(B, ACT), torch.get_rng_state()
    assert torch.equal(module.smooth(action, 0.0, 0.5), action)
    assert torch.equal(torch.get_rng_state(), state)


def episode(length, terminated):
    """As evaluate() returns it."""
    rng = np.random.default_rng(length)
    obs = rng.normal(size=(length + 1, OBS))
    action = rng.uniform(-1, 1, (length, ACT))
    return [
        (obs[t], action[t], float(rng.normal()), obs[t + 1], terminated and t == length - 1, {})
        for t in range(length)
    ]


@only(*DETERMINISTIC)
@pytest.mark.parametrize("ends", [(True,), (False,), (True, False, False)])
def test_the_bias_of_q_is_q_minus_what_came_of_it(module, ends):
    """From every step of an episode that ended, and of the first half of one that was cut off,
    where the critic's own value stands for what is missing.
    """
    actor, q = module.Actor(OBS, ACT, 8), module.Critic(OBS, ACT, 8)
    nn.init.normal_(actor.net[-1].weight)
    trajectories = [episode(7 + number, end) for number, end in enumerate(ends)]
    errors = []
    for trajectory, terminated in zip(trajectories, ends, strict=True):
        length = len(trajectory)
        last = trajectory[-1][3][None]
        rest = 0.0
        if not terminated:
            action = np.tanh(mlp(weights(actor), last))
            rest = mlp(weights(q), np.concatenate([last, action], axis=1))[0, 0]
        for t, (obs, action, *_) in enumerate(trajectory):
            if terminated or t < length / 2:
                later = [0.9 ** (k - t) * trajectory[k][2] for k in range(t, length)]
                value = mlp(weights(q), np.concatenate([obs, action])[None])[0, 0]
                errors.append(value - sum(later) - 0.9 ** (length - t) * rest)
    got = module.q_bias(q, actor, trajectories, 0.9)
    assert got == pytest.approx(np.mean(errors), abs=1e-10)
