"""Each formula that only SAC with a value network has, and its updates, against NumPy float64."""

import numpy as np
import pytest
import torch
from oracles import (
    ACT,
    B,
    assert_slopes,
    assert_targets_followed,
    gaussian_sample,
    mlp,
    q_value,
    record,
    weights,
)

import sac_v1_value_net as v1

GAMMA, TAU, ALPHA, SCALE, REG = 0.9, 0.3, 0.3, 2.5, 0.05


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_value_loss_and_gradient():
    v, target = torch.randn(B).double().requires_grad_(), torch.randn(B).double()
    loss = v1.value_loss(v, target)
    error = (v - target).detach().numpy()
    assert loss.shape == () and loss.item() == pytest.approx(0.5 * np.mean(error**2))
    np.testing.assert_allclose(torch.autograd.grad(loss, v)[0], error / B)


def test_policy_regularisation():
    output = torch.randn(B, 2 * ACT).double().requires_grad_()
    mean, log_std = output.detach().numpy()[:, :ACT], output.detach().numpy()[:, ACT:]
    loss = v1.policy_regularisation(output)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(np.mean(mean**2) + np.mean(log_std**2))
    expected = 2 * output.detach().numpy() / (B * ACT)
    np.testing.assert_allclose(torch.autograd.grad(loss, output)[0], expected)


def test_the_value_network_has_one_number_per_state():
    value = v1.Value(3, 8)
    obs = torch.randn(B, 3)
    assert value(obs).shape == (B,)
    expected = mlp(weights(value), obs.double().numpy())[:, 0]
    np.testing.assert_allclose(value(obs).detach(), expected, atol=1e-6)


@pytest.mark.parametrize("c", [0.2, 5.0, 100.0])
def test_a_reward_scale_is_an_inverse_temperature(c):
    """Rewards times c at alpha 1: what they are at alpha 1/c, with all values times c."""
    reward, q1, q2, v, log_prob = torch.randn(5, B).double().unbind()
    terminated, one = (torch.arange(B) % 3 == 0).double(), torch.ones(()).double()
    soft, bellman, close = v1.soft_value, v1.bellman_target, torch.testing.assert_close
    value, scaled_value = soft(q1, q2, log_prob, 1 / c), soft(c * q1, c * q2, log_prob, one)
    close(scaled_value, c * value)
    y, scaled_y = (bellman(x * reward, terminated, x * v, GAMMA) for x in (1.0, c))
    close(scaled_y, c * y)
    close(v1.value_loss(c * v, scaled_value), c**2 * v1.value_loss(v, value))
    close(v1.critic_loss(c * q1, scaled_y), c**2 * v1.critic_loss(q1, y))
    loss = v1.actor_loss(log_prob, q1, q2, 1 / c)
    close(v1.actor_loss(log_prob, c * q1, c * q2, one), c * loss)


@pytest.mark.parametrize("alpha, scale, reg", [(ALPHA, SCALE, REG), (0.0, 1.0, 0.0)])
def test_an_update_by_hand(alpha, scale, reg):
    """Targets, losses, gradients and metrics of two updates, in which everything moves.

    The critics' target is Vbar's, and exactly the scaled reward where the episode terminated. V's
    target is of a fresh action, the actor's before its step, not of the one replayed. No step
    leaves a gradient in another network.
    """
    settings = {"alpha": alpha, "reward_scale": scale, "policy_reg": reg, "gamma": GAMMA}
    _, updates = record(v1, **settings, tau=TAU, q_lr=0.05, policy_lr=0.05)
    for update in updates:
        obs, action, reward, next_obs, terminated = (x.double().numpy() for x in update.batch)
        critics, actor, value = update.steps
        (noise,) = update.noise  # one draw serves the actor and V, and the critics need none
        metrics, nets = update.returned, update.before
        y = scale * reward + GAMMA * (1 - terminated) * mlp(nets["v_target"], next_obs)[:, 0]

        # Critics.
        assert list(critics.gradients) == ["q1", "q2"] and len(update.targets) == 3
        expected = 0.0
        for q, target in zip(("q1", "q2"), update.targets[:2], strict=True):
            np.testing.assert_allclose(target, y, atol=1e-5)
            assert target.shape == (B,)
            assert (target == scale * update.batch.reward.numpy())[terminated == 1].all()
            np.testing.assert_allclose(metrics[q], q_value(nets[q], obs, action), atol=1e-4)

            def half_square(q=q, nets=nets, y=y, obs=obs, action=action):
                return 0.5 * np.mean((q_value(nets[q], obs, action) - y) ** 2)

            expected += half_square()
            assert_slopes(half_square, nets[q], critics.gradients[q], rel=1e-3, abs=1e-4)
        assert critics.loss == metrics["critic_loss"] == pytest.approx(expected, rel=1e-5)

        # Actor.
        nets = actor.before

        def soft_value(nets=nets, obs=obs, noise=noise):
            new_action, log_prob = gaussian_sample(nets["actor"], obs, noise)
            smaller = np.minimum(*(q_value(nets[q], obs, new_action) for q in ("q1", "q2")))
            return smaller - alpha * log_prob

        def objective(nets=nets, obs=obs, soft_value=soft_value):
            mean, log_std = np.split(mlp(nets["actor"], obs), 2, axis=1)
            return reg * (np.mean(mean**2) + np.mean(log_std**2)) - np.mean(soft_value())

        assert list(actor.gradients) == ["actor"]
        assert actor.loss == metrics["actor_loss"] == pytest.approx(objective(), rel=1e-4, abs=1e-5)
        assert_slopes(objective, nets["actor"], actor.gradients["actor"], rel=1e-3, abs=1e-4)
        _, log_prob = gaussian_sample(nets["actor"], obs, noise)
        np.testing.assert_allclose(metrics["entropy"], -log_prob, atol=1e-3)

        # Value.
        soft, target, v = soft_value(), update.targets[2], value.before["v"]
        np.testing.assert_allclose(target, soft, atol=1e-4)
        assert target.shape == (B,)
        np.testing.assert_allclose(metrics["v"], mlp(v, obs)[:, 0], atol=1e-4)

        def value_half_square(soft=soft, obs=obs, v=v):
            return 0.5 * np.mean((mlp(v, obs)[:, 0] - soft) ** 2)

        assert list(value.gradients) == ["v"]
        assert value.loss == metrics["value_loss"] == pytest.approx(value_half_square(), rel=1e-4)
        assert_slopes(value_half_square, v, value.gradients["v"], rel=1e-3, abs=1e-4)

        assert_targets_followed(update, TAU)
