# MIT licence. Part of Marginalia: algorithms to be read beside the lecture notes.
"""Hindsight experience replay (HER): learn from what was reached, whatever was wanted.

Where the reward only says whether a goal was met, an agent that never meets it learns nothing. But
every episode reaches something: pretend that this had been the goal, work out what the reward would
have been, and learn from that too. It needs an off-policy algorithm whose networks see the goal.
    [2017] Andrychowicz et al., Hindsight Experience Replay, NeurIPS 2017, arXiv:1707.01495

sac_her_continuous.py is SAC with it. A script with uniform replay needs three changes:
    open_env    env = FlattenGoal(gym.make(env_id, **kwargs))
    train       replay = HindsightReplayBuffer(ReplayBuffer(...), env)
    the loop    replay.end_episode(), where an episode has ended
"""

from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

Strategy = Literal["future", "final", "episode", "random"]
KEYS = ("observation", "achieved_goal", "desired_goal")


class FlattenGoal(gym.ObservationWrapper):
    """A goal environment's dictionary as one vector: observation, achieved goal, desired goal.

    `goals` has the slices of the two goals in that vector, and the environment that judges them.
    Raises ValueError where the environment has no goals.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        spaces = getattr(env.observation_space, "spaces", {})
        vectors = all(k in spaces and len(spaces[k].shape or ()) == 1 for k in KEYS)
        if not vectors or not hasattr(env.unwrapped, "compute_reward"):
            raise ValueError(
                "it has no goals (without them, use sac_continuous.py), for it observes "
                f"{env.observation_space}"
            )
        _, first, second, end = np.cumsum([0, *(spaces[k].shape[0] for k in KEYS)])
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (end,), np.float32)
        self.goals = slice(first, second), slice(second, end), env.unwrapped

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([observation[k] for k in KEYS], dtype=np.float32)


class HindsightReplayBuffer:
    """A script's ReplayBuffer whose batches have other goals in a share k / (k + 1) of their rows.

    As if k copies of every transition were stored, each with another goal: one that was achieved
    - "future"   after this transition, in the same episode (the paper's best)
    - "final"    at the end of the same episode
    - "episode"  anywhere in the same episode
    - "random"   anywhere in the buffer.
    Only finished episodes are sampled, and none of which a row has been overwritten (of an episode
    longer than the buffer, what is left counts as one).
    """

    def __init__(self, replay: Any, env: gym.Env, k: int = 4, strategy: Strategy = "future"):
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {get_args(Strategy)}, not {strategy!r}")
        self.replay, self.share, self.strategy = replay, k / (k + 1), strategy
        self.achieved, self.desired, self.judge = env.get_wrapper_attr("goals")
        # Transitions are numbered as they come; number n is in row n % capacity. Those from
        # `oldest` to `newest` may be sampled; each has the numbers at which its episode begins
        # and ends (the end not included).
        self.oldest = self.newest = 0
        self.begin, self.end = torch.zeros(2, len(replay.table), dtype=torch.int64)

    def __getattr__(self, name: str) -> Any:  # table, added, gather: the bookkeeping looks there
        return getattr(self.replay, name)

    def __len__(self) -> int:
        return len(self.replay)

    def row(self, number: Any) -> Any:
        return number % len(self.begin)

    def add(self, *transition: Any) -> None:
        """Store (obs, action, reward, next_obs, terminated), as ReplayBuffer does."""
        lost = self.replay.added - len(self.begin)  # the number that makes room
        if lost >= self.oldest:  # with it goes the whole of its episode
            self.oldest = max(lost + 1, int(self.end[self.row(lost)]))
            self.newest = max(self.newest, self.oldest)
        self.replay.add(*transition)

    def end_episode(self) -> None:
        """The last transition was an episode's last: from now on it may be sampled."""
        first, stop = self.newest, self.replay.added
        rows = self.row(torch.arange(first, stop))
        self.begin[rows], self.end[rows] = first, stop
        self.newest = stop

    def sample(self, batch_size: int) -> Any:
        """A Batch drawn uniformly and with replacement, partly with goals in hindsight."""
        if self.oldest == self.newest:
            raise RuntimeError(
                "no finished episode to sample: more warm-up, or a buffer for two of them"
            )
        number = torch.randint(self.oldest, self.newest, (batch_size,))
        batch = self.replay.gather(self.row(number))
        if self.share == 0:
            return batch
        chosen = torch.rand(batch_size) < self.share
        goal = self.replay.gather(self.row(self.goal_number(number))).next_obs[:, self.achieved]
        return self.relabel(batch, goal, chosen.to(goal.device))

    def goal_number(self, number: Tensor) -> Tensor:
        """For each transition the one whose next achieved goal it is given.  (B,) -> (B,)"""
        begin, end = self.begin[self.row(number)], self.end[self.row(number)]
        if self.strategy == "final":
            return end - 1
        first = {"future": number, "episode": begin}.get(self.strategy, self.oldest)
        stop = self.newest if self.strategy == "random" else end
        return first + (torch.rand(len(number), dtype=torch.float64) * (stop - first)).long()

    def relabel(self, batch: Any, goal: Tensor, chosen: Tensor) -> Any:
        """The chosen rows with that goal, and with the reward and termination that go with it.

        Both are judged by what the action led to, the *next* achieved goal.
        """
        obs, next_obs = batch.obs.clone(), batch.next_obs.clone()
        obs[chosen, self.desired] = next_obs[chosen, self.desired] = goal[chosen]
        reached = next_obs[chosen, self.achieved].cpu().numpy(), goal[chosen].cpu().numpy(), {}
        reward, terminated = batch.reward.clone(), batch.terminated.clone()
        for column, name in ((reward, "compute_reward"), (terminated, "compute_terminated")):
            if judge := getattr(self.judge, name, None):
                answers = judge(*reached)
                if np.shape(answers) != goal[chosen].shape[:1]:  # it takes one at a time
                    answers = [judge(*pair, {}) for pair in zip(*reached[:2], strict=True)]
                column[chosen] = torch.as_tensor(np.float32(answers), device=column.device)
        return batch._replace(obs=obs, reward=reward, next_obs=next_obs, terminated=terminated)

    def state_dict(self) -> dict[str, Any]:
        kept = {"oldest": self.oldest, "newest": self.newest, "begin": self.begin, "end": self.end}
        return self.replay.state_dict() | kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state)
        self.oldest, self.newest = state["oldest"], state["newest"]
        for name in ("begin", "end"):  # the buffer may have grown, but not after it was full
            getattr(self, name)[: len(state[name])] = state[name]


def success_rate(trajectories: list) -> float:
    """Share of an evaluation's episodes whose goal is met at their end."""
    ends = [trajectory[-1][5] for trajectory in trajectories]
    return float(np.mean([e["is_success" if "is_success" in e else "success"] for e in ends]))


class PointReach(gym.Env):
    """A point in the cube [-1, 1]^3 is to be flown to another: reward 0 where it is, -1 elsewhere.

    The action is its velocity. Where it starts and where it is to go is drawn uniformly; one flight
    in some hundreds meets the goal by chance. Episodes are cut after 50 steps and never terminate.
    """

    RADIUS, SPEED = 0.1, 0.1
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        cube = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(KEYS, cube))
        self.action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        return {
            key: np.array(x)
            for key, x in zip(KEYS, (self.point, self.point, self.goal), strict=True)
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 3)).astype(np.float32)
        return self.observe(), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        """(..., 3), (..., 3) -> (...,)"""
        return -np.float32(np.linalg.norm(achieved - desired, axis=-1) > self.RADIUS)

    def step(self, action: np.ndarray) -> tuple:
        self.point = np.clip(self.point + self.SPEED * action, -1, 1, dtype=np.float32)
        reward = float(self.compute_reward(self.point, self.goal, {}))
        return self.observe(), reward, False, False, {"is_success": reward == 0}

    def render(self) -> np.ndarray:
        """Seen from above, the goal in green and the point in black; the higher the larger."""
        image = np.full((128, 128, 3), 255, np.uint8)
        for place, colour in ((self.goal, (0, 160, 0)), (self.point, (0, 0, 0))):
            x, y, size = (place * (50, 50, 3) + (64, 64, 6)).astype(int)
            image[y - size : y + size, x - size : x + size] = colour
        return image


gym.register("PointReach-v0", PointReach, max_episode_steps=50)
