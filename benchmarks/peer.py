"""One training run of Stable-Baselines3 or SBX, as their users write it, in our scripts' words.

    python peer.py {sb3,sbx} CLASS JSON      (JSON: the keyword arguments of main)

Beside the peer nothing is imported that it does not import itself: start-up is the peer's own.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

EVAL_SEED = 1_000_000  # episode i of an evaluation is reset with EVAL_SEED + i, as in our scripts


def evaluate(act: Callable[[Any], Any], env_id: str, episodes: int) -> float:
    """Mean return of the deterministic policy from the same starts as in our scripts."""
    import gymnasium as gym

    total = 0.0
    env = gym.make(env_id)
    for episode in range(episodes):
        obs, done = env.reset(seed=EVAL_SEED + episode)[0], False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, done = total + float(reward), terminated or truncated
    env.close()
    return total / episodes


def main(
    library: str,
    algorithm: str,
    *,
    env_id: str,
    steps: int,
    seed: int,
    threads: int = 0,
    model: dict[str, Any] | None = None,
    marks: tuple[int, ...] = (),
    eval_frequency: int = 0,
    eval_episodes: int = 10,
) -> None:
    """Train; print the clock at each step of `marks`, and every evaluation. 0 threads: not set."""
    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    if library == "sb3":
        import stable_baselines3 as peers
    else:
        import sbx as peers  # built on SB3
    if threads:
        import torch

        torch.set_num_threads(threads)

    model = model or {}
    noise = model.pop("action_noise", 0.0)  # its standard deviation, for actions in [-1, 1]
    env = env_id
    if model.pop("normalise", False):
        env = VecNormalize(make_vec_env(env_id), gamma=model["gamma"])
    learner = getattr(peers, algorithm)("MlpPolicy", env, seed=seed, device="cpu", **model)
    if noise:
        std = np.full(learner.action_space.shape, noise)
        learner.action_noise = NormalActionNoise(0 * std, std)

    def act(obs: Any) -> Any:
        if normaliser := learner.get_vec_normalize_env():
            obs = normaliser.normalize_obs(obs)
        return learner.predict(obs, deterministic=True)[0]

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps in marks:
                print(f"step {self.num_timesteps} at {time.perf_counter():.6f} s", flush=True)
            return True

        def _on_rollout_start(self) -> None:  # after the update, as in our scripts
            step = learner.num_timesteps
            if step and eval_frequency and (step % eval_frequency == 0 or step >= steps):
                mean = evaluate(act, env_id, eval_episodes)
                print(f"step {step}: mean return {mean:.1f} in evaluation", flush=True)

        _on_training_end = _on_rollout_start

    learner.learn(steps, callback=Watch())


if __name__ == "__main__":
    main(*sys.argv[1:3], **json.loads(sys.argv[3]))
