"""What the off-policy scripts learn in worlds whose answers are known."""

import csv
import importlib

import numpy as np
import pytest
import torch
import worlds

SMALL = {"num_threads": 1, "hidden_dim": 32, "batch_size": 64, "learning_starts": 100}
SMALL |= {"eval_frequency": 0, "checkpoint_frequency": 0, "eval_episodes": 1}
FAST = {"gamma": 0.9, "tau": 0.05, "q_lr": 3e-3, "policy_lr": 3e-3}
# The conventional objective, and enough noise to see all actions.
SETTINGS = {
    "ddpg_continuous": {"exploration_noise": 0.5, "exploration_noise_final": 0.5},
    "td3_continuous": {"exploration_noise": 0.5, "exploration_noise_final": 0.5},
    "sac_continuous": {"autotune": False, "alpha": 0.0},
    "sac_v1_value_net": {"alpha": 0.0},
}
every_script = pytest.mark.parametrize("script", SETTINGS)


def trained_in(script, tmp_path, world, **settings):
    """The agent as it is in model.pt, and the last metrics."""
    module = importlib.import_module(script)
    args = module.Args(
        env_id=f"worlds:{world}-v0", runs_dir=str(tmp_path), **SMALL | FAST | settings
    )
    results = module.train(args)
    agent = module.Agent(3, 2, args)
    agent.load_state_dict(torch.load(results["run_dir"] / "model.pt", weights_only=True))
    with open(results["run_dir"] / "metrics.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    return agent, {k: float(v) for k, v in last.items() if v}


def q_of(agent, time):
    """What the first critic thinks of what the actor does then."""
    obs = torch.full((1, 3), float(time))
    q = agent.q if hasattr(agent, "q") else agent.q1
    return q(obs, agent.actor(obs)).item()


@every_script
@pytest.mark.slow
def test_a_time_limit_is_not_death(script, tmp_path):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10; taken for an end it would be 3.6."""
    settings = {"total_timesteps": 800, "tau": 0.2} | SETTINGS[script]
    agent, _ = trained_in(script, tmp_path, "Forever", **settings)
    assert q_of(agent, 0) == pytest.approx(10, rel=0.02)


@every_script
@pytest.mark.parametrize("world", ["Both", "Ending"])
@pytest.mark.slow
def test_termination_is_the_end_also_at_a_time_limit(world, script, tmp_path):
    """The last step is worth exactly its reward, the first 1 + 0.9 + ... + 0.9^4 = 4.1."""
    settings = {"total_timesteps": 1500, "tau": 0.1} | SETTINGS[script]
    agent, _ = trained_in(script, tmp_path, world, **settings)
    for time in range(5):
        left = 5 - time
        assert q_of(agent, time) == pytest.approx((1 - 0.9**left) / 0.1, abs=0.1)


@pytest.mark.parametrize(
    "script, c, settings",
    [
        ("sac_continuous", 1, {"autotune": False}),
        ("sac_v1_value_net", 3, {"reward_scale": 3.0}),
    ],
)
@pytest.mark.slow
def test_with_a_temperature_entropy_is_worth_something_too(script, c, settings, tmp_path):
    """Q = (c + gamma alpha H) / (1 - gamma), and the best policy is nearly uniform on [-1, 1]^2.

    c is the reward, as scaled. V is Q and the entropy of the action that Q has been told.
    """
    settings = settings | {"alpha": 0.5, "total_timesteps": 1500, "tau": 0.1}
    agent, last = trained_in(script, tmp_path, "Forever", **settings)
    assert last["entropy"] == pytest.approx(2 * np.log(2), abs=0.1)
    expected = (c + 0.9 * 0.5 * last["entropy"]) / (1 - 0.9)
    assert q_of(agent, 0) == pytest.approx(expected, rel=0.03)
    if hasattr(agent, "v"):
        value = agent.v(torch.zeros(1, 3)).item()
        assert value == pytest.approx(expected + 0.5 * last["entropy"], rel=0.03)
        assert value - q_of(agent, 0) == pytest.approx(0.5 * last["entropy"], abs=0.2)


@pytest.mark.parametrize("alpha", [0.01, 3.0])
@pytest.mark.slow
def test_entropy_settles_on_its_target_from_both_sides(alpha, tmp_path):
    """Started too cold and too hot; the target is -1 * dim(A) nats."""
    settings = {"alpha": alpha, "alpha_lr": 3e-2, "total_timesteps": 2500, "gamma": 0.0}
    _, last = trained_in("sac_continuous", tmp_path, "Target", **settings)
    assert last["entropy"] == pytest.approx(-2, abs=0.3)
    assert last["alpha"] != pytest.approx(alpha, rel=0.1)


REGULATED = {
    "sac_continuous": {"total_timesteps": 4000, "alpha_lr": 1e-2},
    "td3_continuous": {"total_timesteps": 2000, "exploration_noise": 1.0},
}
REGULATED["td3_continuous"] |= {"policy_lr": 1e-3, "tau": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, rel, atol", [("sac_continuous", 0.1, 0.15), ("td3_continuous", 0.25, 0.3)]
)
def test_linear_quadratic_regulator(script, rel, atol, tmp_path):
    """The learnt return is near the Riccati solution's; doing nothing is five times worse."""
    world = worlds.Regulator
    a, b, q, r = world.a, world.b, world.q, world.r
    p = q
    for _ in range(1000):  # the Riccati recursion, to its fixed point
        p = q + a**2 * p - (a * b * p) ** 2 / (r + b**2 * p)
    gain = a * b * p / (r + b**2 * p)
    settings = REGULATED[script] | {"gamma": 0.99, "eval_episodes": 10}
    agent, last = trained_in(script, tmp_path, "Regulator", **settings)

    best = []
    module = importlib.import_module(script)
    env = module.make_env("worlds:Regulator-v0")
    for episode in range(10):
        obs, _ = env.reset(seed=module.EVAL_SEED + episode)
        total, truncated = 0.0, False
        while not truncated:
            obs, reward, _, truncated, _ = env.step(np.array([-gain * obs[0]]))
            total += reward
        best.append(total)
    assert last["eval_return_mean"] == pytest.approx(np.mean(best), rel=rel)
    assert last["eval_return_mean"] <= np.mean(best) + 1e-3  # nothing beats the optimum
    x = torch.linspace(-0.8, 0.8, 9)
    obs = torch.stack([x, 0 * x, 0 * x], 1)
    np.testing.assert_allclose(agent.actor(obs)[:, 0].detach(), -gain * x, atol=atol)
