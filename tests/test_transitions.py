"""What is stored in the replay buffer, and what the environment is given."""

import collections

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from helpers import (
    off_policy,
    one,
)

# Here low + (high - low) is not high, for the difference is rounded.
worlds.register("Awkward", worlds.Bounds, 10, low=(-0.3, -10), high=(0.1, 0.7))


@pytest.mark.slow_but("Both", "sac_continuous")
@off_policy
@pytest.mark.parametrize("capacity", [1000, 23])
@pytest.mark.parametrize("world", ["Endless", "Ending", "Both"])
def test_stored_transitions(world, capacity, tiny_run, replays):
    """None crosses an episode, and only a true end is stored as one."""
    tiny_run(env_id=f"worlds:{world}-v0", buffer_size=capacity)
    (replay,) = replays
    assert len(replay) == min(60, capacity)
    stored = replay.gather(torch.arange(len(replay)))
    assert torch.equal(stored.next_obs, stored.obs + 1)
    assert set(stored.obs.flatten().tolist()) == {0, 1, 2, 3, 4}
    ends = stored.next_obs[:, 0] == 5
    assert torch.equal(stored.terminated, ends.float() * (world != "Endless"))
    assert (stored.reward == 1).all()


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@off_policy
@pytest.mark.parametrize("world", ["PendulumBounds", "UnitInterval", "Lopsided"])
def test_actions_span_their_range(world, tiny_run, module, replays, monkeypatch):
    """Warm-up and policy alike, dimension by dimension; what is stored is what was done."""
    monkeypatch.setattr(worlds.Bounds, "seen", [])
    total, warm_up = 900, 300
    env_id = f"worlds:{world}-v0"
    tiny_run(env_id=env_id, total_timesteps=total, learning_starts=warm_up, updates_per_step=0.05)
    space = gym.make(env_id).action_space
    assert len(worlds.Bounds.seen) == 10 + total + 10, "evaluations of 10 steps come first and last"
    assert all(space.contains(action) for action in worlds.Bounds.seen)
    seen, width = np.stack(worlds.Bounds.seen[10:-10]), space.high - space.low
    for phase in (seen[:warm_up], seen[warm_up:]) if hasattr(module.Actor, "sample") else (seen,):
        assert (phase.min(0) < space.low + 0.05 * width).all()
        assert (phase.max(0) > space.high - 0.05 * width).all()
    stored = replays[0].gather(torch.arange(total)).action.numpy()
    assert abs(stored).max() <= 1
    np.testing.assert_allclose(seen, space.low + width * (stored + 1) / 2, rtol=1e-5, atol=1e-5)


@one
@pytest.mark.parametrize(
    "env_id",
    ["worlds:PendulumBounds-v0", "worlds:UnitInterval-v0", "worlds:Lopsided-v0", "Awkward-v0"],
)
def test_bounds_are_reached_exactly(env_id, module, monkeypatch):
    """-1 and 1 are the bounds themselves, 0 is halfway, and nothing leads beyond."""
    monkeypatch.setattr(worlds.Bounds, "seen", [])
    env, space = module.make_env(env_id), gym.make(env_id).action_space
    assert env.action_space == gym.spaces.Box(-1, 1, space.shape, np.float32)
    env.reset()
    for value in (-1, 1, 0, -1.5, 1.5):
        env.step(np.full(space.shape, value, np.float32))
    low, high, middle, below, above = worlds.Bounds.seen
    for given, bound in [(low, space.low), (below, space.low), (high, space.high)]:
        np.testing.assert_array_equal(given, bound)
    np.testing.assert_array_equal(above, space.high)
    np.testing.assert_allclose(middle, (space.low + space.high) / 2, rtol=1e-6)


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@pytest.mark.parametrize("world, dtype", [("Double", np.float64), ("Whole", np.int64)])
def test_observations_of_other_types(world, dtype, tiny_run, replays):
    """They work, and every tensor that enters a network or a layer of one is float32."""
    assert gym.make(f"worlds:{world}-v0").observation_space.dtype == dtype
    entered = collections.Counter()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: entered.update((type(module).__name__, x.dtype) for x in inputs)
    )
    with hook:
        tiny_run(env_id=f"worlds:{world}-v0")
    names, dtypes = zip(*entered, strict=True)
    assert set(dtypes) == {torch.float32} and {"Actor", "Linear"} <= set(names)
    if replays:
        assert set(replays[0].gather(torch.arange(60)).obs.flatten().tolist()) == set(range(7))
