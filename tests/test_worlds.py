"""What SAC learns in worlds whose answers are known."""

import numpy as np
import pytest
import torch
import worlds  # noqa: F401, registers the environments

import sac_continuous as sac

SMALL = {"num_threads": 1, "hidden_dim": 32, "batch_size": 64, "learning_starts": 100}
SMALL |= {"eval_frequency": 0, "checkpoint_frequency": 0, "eval_episodes": 1}
FAST = {"gamma": 0.9, "tau": 0.05, "q_lr": 3e-3, "policy_lr": 3e-3, "alpha_lr": 1e-2}


def train(tmp_path, world, **settings):
    args = sac.Args(env_id=world, runs_dir=str(tmp_path), **SMALL | FAST | settings)
    results = sac.train(args)
    parts = torch.load(results["run_dir"] / "model.pt", weights_only=True)
    q1 = sac.Critic(3, 2, args.hidden_dim)
    q1.load_state_dict({k[3:]: v for k, v in parts.items() if k.startswith("q1.")})
    rows = (results["run_dir"] / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    return results["actor"], q1, {k: float(v) for k, v in last.items() if v}


def q_of(q, actor, time):
    obs = torch.full((1, 3), float(time))
    return q(obs, actor(obs)).item()


FIXED = {"autotune": False, "alpha": 0.0}


def test_a_time_limit_is_not_death(tmp_path):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10; taken for an end it would be 3.6."""
    actor, q, _ = train(tmp_path, "worlds:Forever-v0", total_timesteps=1500, **FIXED)
    assert q_of(q, actor, 0) == pytest.approx(10, rel=0.02)


def test_with_a_temperature_entropy_is_worth_something_too(tmp_path):
    """Q = (1 + gamma alpha H) / (1 - gamma), and the best policy is nearly uniform on [-1, 1]^2."""
    settings = {"autotune": False, "alpha": 0.5, "total_timesteps": 2500}
    actor, q, last = train(tmp_path, "worlds:Forever-v0", **settings)
    assert last["entropy"] == pytest.approx(2 * np.log(2), abs=0.1)
    expected = (1 + 0.9 * 0.5 * last["entropy"]) / (1 - 0.9)
    assert q_of(q, actor, 0) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("world", ["Ending", "Both"])
def test_termination_is_the_end_also_at_a_time_limit(world, tmp_path):
    """The last step is worth exactly its reward, the first 1 + 0.9 + ... + 0.9^4 = 4.1."""
    settings = {"total_timesteps": 2500, "tau": 0.1} | FIXED
    actor, q, _ = train(tmp_path, f"worlds:{world}-v0", **settings)
    for time in range(5):
        left = 5 - time
        assert q_of(q, actor, time) == pytest.approx((1 - 0.9**left) / 0.1, abs=0.1)


@pytest.mark.parametrize("alpha", [0.01, 3.0])
def test_entropy_settles_on_its_target_from_both_sides(alpha, tmp_path):
    """Started too cold and too hot; the target is -1 * dim(A) nats."""
    settings = {"alpha": alpha, "alpha_lr": 3e-2, "total_timesteps": 2500, "gamma": 0.0}
    _, _, last = train(tmp_path, "worlds:Target-v0", **settings)
    assert last["entropy"] == pytest.approx(-2, abs=0.3)
    assert last["alpha"] != pytest.approx(alpha, rel=0.1)


def test_linear_quadratic_regulator(tmp_path):
    """The learnt return is within a few percent of the Riccati solution's."""
    world = worlds.Regulator
    a, b, q, r = world.a, world.b, world.q, world.r
    p = q
    for _ in range(1000):  # the Riccati recursion, to its fixed point
        p = q + a**2 * p - (a * b * p) ** 2 / (r + b**2 * p)
    gain = a * b * p / (r + b**2 * p)
    settings = {"total_timesteps": 4000, "gamma": 0.99, "eval_episodes": 10}
    actor, _, last = train(tmp_path, "worlds:Regulator-v0", **settings)

    best = []
    env = sac.make_env("worlds:Regulator-v0")
    for episode in range(10):
        obs, _ = env.reset(seed=sac.EVAL_SEED + episode)
        total, truncated = 0.0, False
        while not truncated:
            obs, reward, _, truncated, _ = env.step(np.array([-gain * obs[0]]))
            total += reward
        best.append(total)
    assert last["eval_return_mean"] == pytest.approx(np.mean(best), rel=0.1)
    assert last["eval_return_mean"] <= np.mean(best) + 1e-3  # nothing beats the optimum
    x = torch.linspace(-0.8, 0.8, 9)
    obs = torch.stack([x, 0 * x, 0 * x], 1)
    np.testing.assert_allclose(actor(obs)[:, 0].detach(), -gain * x, atol=0.15)
