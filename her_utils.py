# MIT licence. Part of Marginalia: algorithms to be read beside the lecture notes.
"""Hindsight experience replay (HER): learn from what was reached, whatever was wanted.

Where the reward only says whether a goal was met, an agent that never meets it learns nothing. But
every episode reaches something: pretend that this had been the goal, work out what the reward would
have been, and learn from that too. It needs an off-policy algorithm whose networks see the goal.
    [2017] Andrychowicz et al., Hindsight Experience Replay, NeurIPS 2017, arXiv:1707.01495

sac_her_continuous.py is SAC with it. A script with uniform replay needs four changes:
    the imports     from her_utils import FlattenGoal, HindsightReplayBuffer
    make_env        env = FlattenGoal(gym.make(env_id, **options))
    train           replay = HindsightReplayBuffer(replay, env), below replay = ReplayBuffer(...)
    the loop        replay.end_episode() where an episode has ended, after run.record(); and no
                    update before replay.ready()
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

Strategy = Literal["future", "final", "episode", "random"]
KEYS = ("observation", "achieved_goal", "desired_goal")


Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of B achieved and B desired goals: (B,)


def judge_of_goals(env: gym.Env, name: str, space: gym.Space) -> Judge:
    """A function of B achieved and B desired goals that answers as the method `name` of env does.

    The method is that of the outermost wrapper that has one. Whether it takes B pairs at once or
    only one is found out by trying both. It gets an empty info: hindsight has none. Raises
    ValueError where that is not enough.
    """
    method = env.get_wrapper_attr(name)
    shape = space.shape

    def one_by_one(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        answers = []
        for pair in zip(achieved, desired, strict=True):
            answer = method(pair[0].reshape(shape), pair[1].reshape(shape), {})
            answers.append(np.asarray(answer, np.float32).item())
        return np.array(answers, np.float32)

    def all_at_once(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        answers = method(achieved.reshape(-1, *shape), desired.reshape(-1, *shape), {})
        return np.asarray(answers, np.float32)

    space.seed(0)
    size = 2 * int(np.prod(shape)) + 3  # of no dimension of a goal
    achieved = np.array([space.sample().ravel() for _ in range(size)], np.float32)
    desired = achieved[::-1].copy()
    desired[0] = achieved[0]
    try:
        together = all_at_once(achieved, desired)
    except Exception:
        together = np.empty(0)
    try:
        answers = one_by_one(achieved, desired)
    except Exception as error:
        if together.shape == (size,):  # it takes many pairs only
            return all_at_once
        raise ValueError(
            f"{name} cannot judge a pair of goals with an empty info, which is all that hindsight "
            f"has: {error!r}"
        ) from error
    if together.shape == (size,) and np.allclose(together, answers, atol=1e-4):
        return all_at_once
    if together.shape == () and (together == answers).all():  # it is the same for all goals
        return lambda achieved, desired: np.full(len(achieved), together)
    return one_by_one


class FlattenGoal(gym.ObservationWrapper):
    """A goal environment's dictionary as one vector: observation, achieved goal, desired goal.

    `achieved` and `desired` are the slices of the two goals in that vector, `reward_of` and
    `end_of` (None where nothing ends at a goal) judge pairs of them. Raises ValueError where the
    environment has no goals, or cannot judge them.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        spaces = getattr(env.observation_space, "spaces", {})
        has_goals = all(key in spaces and spaces[key].shape for key in KEYS)
        if not has_goals or not env.has_wrapper_attr("compute_reward"):
            raise ValueError(
                "it has no goals: no Dict of observation, achieved_goal, desired_goal with "
                "compute_reward (gymnasium.wrappers.FlattenObservation makes one vector of a "
                f"dictionary, for the other scripts); it observes {env.observation_space}"
            )
        sizes = [int(np.prod(spaces[key].shape)) for key in KEYS]
        first, second, end = np.cumsum(sizes)
        self.achieved = slice(first, second)
        self.desired = slice(second, end)
        env.reset(seed=0)  # some judge by what a reset has made
        self.reward_of = judge_of_goals(env, "compute_reward", spaces["achieved_goal"])
        self.end_of = None
        if env.has_wrapper_attr("compute_terminated"):
            self.end_of = judge_of_goals(env, "compute_terminated", spaces["achieved_goal"])
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (end,), np.float32)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        parts = [np.asarray(observation[key], np.float32).ravel() for key in KEYS]
        return np.concatenate(parts)


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
        self.replay = replay
        self.share = k / (k + 1)
        self.strategy = strategy
        self.achieved = env.get_wrapper_attr("achieved")
        self.desired = env.get_wrapper_attr("desired")
        self.reward_of = env.get_wrapper_attr("reward_of")
        self.end_of = env.get_wrapper_attr("end_of")
        # Transitions are numbered as they come; number n is in row n % capacity. Those from
        # `oldest` to `newest` may be sampled; each has the numbers at which its episode begins
        # and ends (the end not included).
        self.oldest = 0
        self.newest = 0
        self.begin = torch.zeros(len(replay.table), dtype=torch.int64)
        self.end = torch.zeros(len(replay.table), dtype=torch.int64)
        self.noted = False

    @property
    def table(self) -> np.ndarray:
        return self.replay.table

    @property
    def columns(self) -> list[np.ndarray]:
        return self.replay.columns

    @property
    def added(self) -> int:
        return self.replay.added

    @added.setter
    def added(self, number: int) -> None:
        self.replay.added = number

    def gather(self, rows: Tensor) -> Any:
        return self.replay.gather(rows)

    def __len__(self) -> int:
        return len(self.replay)

    def ready(self) -> bool:
        """Whether an episode has ended that can be sampled; if not, one note says so."""
        if self.oldest == self.newest and not self.noted:
            self.noted = True
            print("note: updates wait for a finished episode (--buffer-size must hold two of them)")
        return self.oldest < self.newest

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
        numbers = torch.arange(self.newest, self.replay.added)
        self.begin[self.row(numbers)] = self.newest
        self.end[self.row(numbers)] = self.replay.added
        if self.newest == 0 and len(numbers) > 0:
            self.check_rewards(self.replay.gather(self.row(numbers)))
        self.newest = self.replay.added

    def check_rewards(self, episode: Any) -> None:
        """Print a note if the rewards of an episode are not those that compute_reward gives."""
        next_obs = episode.next_obs.cpu().numpy()
        expected = self.reward_of(next_obs[:, self.achieved], next_obs[:, self.desired])
        same = np.isclose(expected, episode.reward.cpu().numpy(), rtol=1e-3, atol=1e-3)
        if same.mean() < 0.9:
            print(
                "note: step() and compute_reward give different rewards, so hindsight mixes two: "
                "a wrapper changes one of them, or a part does not depend on the goal"
            )

    def sample(self, batch_size: int) -> Any:
        """A Batch drawn uniformly and with replacement, partly with goals in hindsight."""
        number = torch.randint(self.oldest, self.newest, (batch_size,))
        batch = self.replay.gather(self.row(number))
        if self.share == 0:
            return batch
        chosen = torch.rand(batch_size) < self.share
        goal = self.replay.gather(self.row(self.goal_number(number))).next_obs[:, self.achieved]
        return self.relabel(batch, goal, chosen.to(goal.device))

    def goal_number(self, number: Tensor) -> Tensor:
        """For each transition the one whose next achieved goal it is given.  (B,) -> (B,)"""
        begin = self.begin[self.row(number)]
        end = self.end[self.row(number)]
        if self.strategy == "final":
            return end - 1
        if self.strategy == "future":
            first, stop = number, end
        elif self.strategy == "episode":
            first, stop = begin, end
        else:
            first, stop = self.oldest, self.newest
        return first + (torch.rand(len(number), dtype=torch.float64) * (stop - first)).long()

    def relabel(self, batch: Any, goal: Tensor, chosen: Tensor) -> Any:
        """The chosen rows with that goal, and with the reward and termination that go with it.

        Both are judged by what the action led to, the *next* achieved goal.
        """
        obs = batch.obs.clone()
        next_obs = batch.next_obs.clone()
        reward = batch.reward.clone()
        terminated = batch.terminated.clone()
        obs[chosen, self.desired] = goal[chosen]
        next_obs[chosen, self.desired] = goal[chosen]
        achieved = next_obs[chosen, self.achieved].cpu().numpy()
        desired = goal[chosen].cpu().numpy()
        if len(achieved) > 0:
            reward[chosen] = torch.from_numpy(self.reward_of(achieved, desired)).to(obs.device)
            if self.end_of is not None:
                end = torch.from_numpy(self.end_of(achieved, desired))
                terminated[chosen] = end.to(obs.device)
        return batch._replace(obs=obs, reward=reward, next_obs=next_obs, terminated=terminated)

    def state_dict(self) -> dict[str, Any]:
        state = self.replay.state_dict()
        state |= {"oldest": self.oldest, "newest": self.newest}
        return state | {"begin": self.begin, "end": self.end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state)
        self.oldest = state["oldest"]
        self.newest = state["newest"]
        # The buffer may have grown with --total-timesteps, but not after it was full.
        self.begin[: len(state["begin"])] = state["begin"]
        self.end[: len(state["end"])] = state["end"]


def success_rate(trajectories: list) -> dict[str, float]:
    """Share of an evaluation's episodes whose goal is met at their end, if info tells."""
    ends = [trajectory[-1][5] for trajectory in trajectories]
    for key in ("is_success", "success"):
        if all(key in info for info in ends):
            return {"eval_success_rate": float(np.mean([info[key] for info in ends]))}
    print("note: info has no is_success, so there is no eval_success_rate")
    return {}


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
        values = (self.point.copy(), self.point.copy(), self.goal.copy())
        return dict(zip(KEYS, values, strict=True))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 3)).astype(np.float32)
        return self.observe(), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
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
