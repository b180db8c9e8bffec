"""Each formula of DDPG and TD3, and their updates, against NumPy float64."""

import numpy as np
import pytest
import torch
from oracles import (
    ACT,
    OBS,
    B,
    assert_slopes,
    assert_targets_followed,
    mlp,
    q_value,
    record,
    weights,
)

import ddpg_continuous as ddpg
import td3_continuous as td3

GAMMA, TAU = 0.9, 0.3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=[ddpg, td3], ids=lambda module: module.__name__)
def module(request):
    return request.param


def mu(weights, obs):
    return np.tanh(mlp(weights, obs))


# --- acting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.1, 1.5])
def test_explore_adds_noise_and_clips(module, std, monkeypatch):
    action, noise = torch.tensor([-0.95, 0.3, 0.9]), torch.tensor([-1.0, 0.5, 1.2])
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    expected = np.clip(action.numpy() + std * noise.numpy(), -1, 1)
    assert expected[0] == -1 and expected[2] == 1 and -1 < expected[1] <= 1
    np.testing.assert_allclose(module.explore(action, std), expected, atol=1e-6)


def test_the_noise_of_every_dimension_is_its_own_and_as_wide_as_asked(module):
    noise = torch.stack([module.explore(torch.zeros(3), 0.1) for _ in range(4000)])
    assert noise.shape == (4000, 3)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(noise.std(0), 0.1, rtol=0.05)
    correlation = np.corrcoef(noise.T) - np.eye(3)
    assert abs(correlation).max() < 0.08
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.08  # nor does it remember


def test_no_noise_is_no_noise(module):
    action = torch.tensor([-1.0, 0.3, 0.99])
    assert torch.equal(module.explore(action, 0.0), action)


def test_linear_schedule(module):
    values = [module.linear_schedule(0.5, 0.1, fraction) for fraction in (0, 0.25, 0.5, 1)]
    assert values == pytest.approx([0.5, 0.4, 0.3, 0.1])
    assert module.linear_schedule(0.2, 0.2, 0.3) == pytest.approx(0.2)


def test_the_noise_shrinks_from_the_first_step_of_the_run_to_the_last(
    module, tmp_path, monkeypatch
):
    stds = []

    def explore(action, std):
        stds.append(std)
        return action

    monkeypatch.setattr(module, "explore", explore)
    settings = {"exploration_noise": 1.0, "exploration_noise_final": 0.2, "learning_starts": 4}
    settings |= {"total_timesteps": 20, "batch_size": 4, "hidden_dim": 4, "eval_episodes": 1}
    settings |= {"env_id": "worlds:Endless-v0", "num_threads": 1, "runs_dir": str(tmp_path)}
    module.train(module.Args(**settings))
    assert stds == pytest.approx([1 - 0.8 * step / 20 for step in range(5, 21)])


def test_the_first_actions_are_where_tanh_is_steep(module):
    action = module.Actor(17, 6, 256)(3 * torch.randn(1000, 17))
    assert action.shape == (1000, 6)
    assert 0 < action.abs().max() < 0.1


# --- target smoothing ---------------------------------------------------------------------------


def test_smooth_clips_the_noise_and_then_the_action(monkeypatch):
    action, noise = 2 * torch.rand(50, 2) - 1, torch.randn(50, 2)
    action[0], noise[0] = torch.tensor([0.9, -0.9]), torch.tensor([9.0, -9.0])
    action[1], noise[1] = torch.tensor([0.0, 0.0]), torch.tensor([9.0, -9.0])
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    got = td3.smooth(action, 0.4, 0.5).numpy()
    clipped = np.clip(0.4 * noise.double().numpy(), -0.5, 0.5)
    np.testing.assert_allclose(got, np.clip(action.numpy() + clipped, -1, 1), atol=1e-6)
    np.testing.assert_array_equal(got[:2], [[1, -1], [0.5, -0.5]])


def test_the_noise_of_smoothing_differs_per_transition_and_dimension():
    noise = td3.smooth(torch.zeros(4000, ACT), 0.1, 0.5)
    np.testing.assert_allclose(noise.std(0), 0.1, rtol=0.05)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.08


def test_smoothing_that_is_off_draws_nothing():
    action, state = torch.randn(B, ACT), torch.get_rng_state()
    assert torch.equal(td3.smooth(action, 0.0, 0.5), action)
    assert torch.equal(torch.get_rng_state(), state)
    td3.smooth(action, 0.1, 0.5)
    assert not torch.equal(torch.get_rng_state(), state)


# --- updates ------------------------------------------------------------------------------------


def test_actor_loss_is_minus_the_mean_of_q(module):
    q = torch.randn(B).double().requires_grad_()
    loss = module.actor_loss(q)
    assert loss.shape == () and loss.item() == pytest.approx(-np.mean(q.tolist()))
    np.testing.assert_allclose(torch.autograd.grad(loss, q)[0], np.full(B, -1 / B))


TRICKS = {
    "all": {},
    "one critic": {"double_q": False},
    "no delay": {"policy_frequency": 1},
    "no smoothing": {"policy_noise": 0.0},
}


@pytest.mark.parametrize("name", ["DDPG", *TRICKS])
def test_an_update_by_hand(name):
    """Targets, losses, gradients and metrics of two updates, with each trick switched off.

    The actor's gradient is the deterministic policy gradient: finite differences of -mean Q(s,
    mu(s)) in the actor's weights alone, with Q as its own step has left it. No step leaves a
    gradient in another network. While the actor waits, so do the slow copies.
    """
    module, settings = ddpg, {}
    if name != "DDPG":
        module, settings = td3, {"policy_noise": 0.6} | TRICKS[name]
    _, updates = record(module, gamma=GAMMA, tau=TAU, q_lr=0.05, policy_lr=0.05, **settings)
    args = module.Args(**settings)
    critics = ["q"] if module is ddpg else ["q1", "q2"][: 1 + args.double_q]
    delay = getattr(args, "policy_frequency", 1)

    for number, update in enumerate(updates, start=1):
        obs, action, reward, next_obs, terminated = (x.double().numpy() for x in update.batch)
        nets, metrics = update.before, update.returned
        step, *actor_steps = update.steps
        next_action = mu(nets["actor_target"], next_obs)
        assert len(update.noise) == (getattr(args, "policy_noise", 0) > 0)
        for noise in update.noise:
            assert (abs(0.6 * noise) > 0.5).any()
            next_action = np.clip(next_action + np.clip(0.6 * noise, -0.5, 0.5), -1, 1)
        next_q = [q_value(nets[q + "_target"], next_obs, next_action) for q in critics]
        y = reward + GAMMA * (1 - terminated) * np.min(next_q, axis=0)

        assert list(step.gradients) == critics and len(update.targets) == len(critics)
        expected = 0.0
        for q, target in zip(critics, update.targets, strict=True):
            np.testing.assert_allclose(target, y, atol=1e-5)
            assert target.shape == (B,)
            assert (target == update.batch.reward.numpy())[terminated == 1].all()

            def half_square(q=q, nets=nets, y=y, obs=obs, action=action):
                return 0.5 * np.mean((q_value(nets[q], obs, action) - y) ** 2)

            expected += half_square()
            assert_slopes(half_square, nets[q], step.gradients[q], rel=1e-3, abs=1e-4)
        assert step.loss == metrics["critic_loss"] == pytest.approx(expected, rel=1e-5)
        q = critics[0]
        np.testing.assert_allclose(metrics[q], q_value(nets[q], obs, action), atol=1e-4)

        assert len(actor_steps) == (number % delay == 0)
        for step in actor_steps:
            nets = step.before

            def minus_q(nets=nets, obs=obs):
                return -np.mean(q_value(nets[critics[0]], obs, mu(nets["actor"], obs)))

            assert list(step.gradients) == ["actor"]
            loss = pytest.approx(minus_q(), rel=1e-4, abs=1e-6)
            assert step.loss == metrics["actor_loss"] == loss
            assert_slopes(minus_q, nets["actor"], step.gradients["actor"], rel=1e-3, abs=1e-4)
            at_bound = np.abs(mu(nets["actor"], obs)) > 0.99
            assert metrics["at_bound"].mean() == pytest.approx(at_bound.mean())
        assert ("actor_loss" in metrics) == (number % delay == 0)
        assert_targets_followed(update, TAU if number % delay == 0 else 0)


# --- overestimation -----------------------------------------------------------------------------


def episode(length, terminated):
    """As evaluate() returns it; the last next_obs is an observation that nobody acted on."""
    rng = np.random.default_rng(length)
    obs = rng.normal(size=(length + 1, OBS)).astype(np.float32)
    action = rng.uniform(-1, 1, (length, ACT)).astype(np.float32)
    return [
        (obs[t], action[t], float(rng.normal()), obs[t + 1], terminated and t == length - 1, {})
        for t in range(length)
    ]


@pytest.mark.parametrize(
    "episodes, counted",
    [
        ([(6, True)], 6),  # an episode that ended counts whole
        ([(6, False)], 3),  # of one that was cut off, the first half
        ([(5, False)], 3),
        ([(1, True)], 1),
        ([(1, False)], 1),
        ([(2, True), (9, False), (4, True), (3, False)], 2 + 5 + 4 + 2),
    ],
)
def test_q_bias_is_the_mean_over_steps_of_q_minus_the_return(module, episodes, counted):
    actor, q = module.Actor(OBS, ACT, 8), module.Critic(OBS, ACT, 8)
    torch.nn.init.normal_(actor.net[-1].weight)
    mu_weights, q_weights = weights(actor), weights(q)
    trajectories, errors = [episode(*of) for of in episodes], []
    for trajectory, (length, terminated) in zip(trajectories, episodes, strict=True):
        last = trajectory[-1][3][None].astype(float)
        rest = 0.0 if terminated else q_value(q_weights, last, mu(mu_weights, last))[0]
        for t in range(length if terminated else (length + 1) // 2):
            rewards = [trajectory[k][2] for k in range(t, length)]
            value = sum(GAMMA**k * reward for k, reward in enumerate(rewards))
            value += GAMMA ** (length - t) * rest
            obs, action = (x[None].astype(float) for x in trajectory[t][:2])
            errors.append(q_value(q_weights, obs, action)[0] - value)
    assert len(errors) == counted
    got = module.q_bias(q, actor, trajectories, GAMMA)
    assert got == pytest.approx(np.mean(errors), abs=1e-5)
