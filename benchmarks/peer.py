"""One training run of Stable-Baselines3 or SBX, as their users write it, in our scripts' words.

    python peer.py {sb3,sbx} CLASS JSON      (JSON: the keyword arguments of main)

Beside the peer only the standard library is imported, so that start-up is the peer's own.
"""

import json
import sys
import time
from typing import Any

EVAL_SEED = 1_000_000  # episode i of an evaluation is reset with EVAL_SEED + i, as in our scripts


def evaluate(model: Any, env_id: str, episodes: int) -> float:
    """Mean return of the deterministic policy from the same starts as in our scripts."""
    import gymnasium as gym

    total = 0.0
    env = gym.make(env_id)
    for episode in range(episodes):
        obs, done = env.reset(seed=EVAL_SEED + episode)[0], False
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
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
    if library == "sb3":
        import stable_baselines3 as peers
    else:
        import sbx as peers
    if threads:
        import torch

        torch.set_num_threads(threads)

    def after_step(*_: Any) -> bool:
        step = learner.num_timesteps
        if step in marks:
            print(f"step {step} at {time.perf_counter():.6f} s", flush=True)
        if eval_frequency and (step % eval_frequency == 0 or step == steps):
            mean = evaluate(learner, env_id, eval_episodes)
            print(f"step {step}: mean return {mean:.1f} in evaluation", flush=True)
        return True

    make = getattr(peers, algorithm)
    learner = make("MlpPolicy", env_id, seed=seed, device="cpu", **(model or {}))
    learner.learn(steps, callback=after_step)


if __name__ == "__main__":
    main(*sys.argv[1:3], **json.loads(sys.argv[3]))
