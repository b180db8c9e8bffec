"""Small environments with known answers, and one for each way an environment can misbehave.

`worlds:Name-v0` is their id from any process that has tests/ on its path.
"""

from typing import Any

import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    """Reward 1 at every step, whatever is done; the observation is the step number.

    `ends` is the step at which the episode terminates, 0 for never; `blind` makes every observation
    zero, so that there is one state and the value of going on for ever is known.
    """

    def __init__(self, ends: int = 0, dtype: str = "float32", blind: bool = False):
        self.ends, self.shape, self.dtype, self.blind = ends, (3,), np.dtype(dtype), blind
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.shape, self.dtype.type)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def observe(self) -> np.ndarray:
        return np.full(self.shape, 0 if self.blind else self.time, self.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        self.time += 1
        return self.observe(), 1.0, self.time == self.ends, False, {}


class Bounds(gym.Env):
    """Bounds that differ per dimension: it keeps the actions that it was given, in `seen`."""

    seen: list[np.ndarray] = []

    def __init__(self, low: tuple = (3.0, -1.0), high: tuple = (11.0, 0.0)):
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple:
        Bounds.seen.append(np.array(action))
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Poisoned(Corridor):
    """Its observation (or reward) is not finite at step `at` of its life."""

    def __init__(self, what: str = "observation", at: int = 30, value: float = np.nan):
        super().__init__()
        self.what, self.at, self.value, self.life = what, at, value, 0

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, info = super().step(action)
        self.life += 1
        if self.life == self.at and self.what == "observation":
            obs = np.full(self.shape, self.value, self.dtype)
        if self.life == self.at and self.what == "reward":
            reward = self.value
        if self.life == self.at and self.what == "exception":
            raise ZeroDivisionError("a fault of the environment's own")
        return obs, reward, terminated, truncated, info


class Target(Corridor):
    """The nearer the action is to a point, the better: there is something to be gained by order."""

    def step(self, action: np.ndarray) -> tuple:
        obs, _, *rest = super().step(action)
        return obs, -float(np.sum((action - 0.3) ** 2)), *rest


class Changing(Corridor):
    """What it does changes between two runs, for a reason that no seed can put back."""

    now = ""  # what has changed

    def observe(self) -> np.ndarray:
        changed = self.now == "start" and self.time == 0
        changed |= self.now == "observation" and self.time == 3
        return super().observe() + self.dtype.type(changed)

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, info = super().step(action)
        late = self.time == 3
        terminated |= late and self.now == "terminated"
        truncated |= late and self.now == "truncated"
        return obs, reward + (late and self.now == "reward"), terminated, truncated, info


class Regulator(Corridor):
    """x' = a x + b u, reward -(q x^2 + r u^2): its solution is known from the Riccati equation."""

    a, b, q, r = 1.0, 0.5, 1.0, 0.5

    def observe(self) -> np.ndarray:
        return np.array([self.x, 0, 0], self.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        gym.Env.reset(self, seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        u = float(action[0])
        reward = -(self.q * self.x**2 + self.r * u**2)
        self.x = self.a * self.x + self.b * u
        return self.observe(), reward, False, False, {}


class Odd(Corridor):
    """Spaces out of the ordinary: the symbol and the matrix are served, the others refused."""

    def __init__(self, space: str):
        super().__init__()
        box = gym.spaces.Box(-1, 1, (3,), np.float32)
        unbounded = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        observations = {
            "dictionary": gym.spaces.Dict({"observation": box, "desired_goal": box}),
            "image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "symbol": gym.spaces.Discrete(4),
        }
        actions = {
            "discrete": gym.spaces.Discrete(2),
            "unbounded": unbounded,
            "matrix": gym.spaces.Box(-1, 1, (2, 2), np.float32),
        }
        self.observation_space = observations.get(space, self.observation_space)
        self.action_space = actions.get(space, self.action_space)

    def observe(self) -> Any:
        discrete = isinstance(self.observation_space, gym.spaces.Discrete)
        return np.int64(self.time % 4) if discrete else super().observe()


class Stateful(Corridor):
    """What it observes depends on how often it was reset, which no seed can put back."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        Stateful.resets += 1
        return super().reset(seed=seed)

    def observe(self) -> np.ndarray:
        return np.full(self.shape, self.time + 1000 * Stateful.resets, self.dtype)


def register(name: str, world: type, limit: int | None, **kwargs: Any) -> None:
    gym.register(f"{name}-v0", world, max_episode_steps=limit, kwargs=kwargs)


register("Endless", Corridor, 5)  # reward 1, cut by a time limit after 5 steps
register("Forever", Corridor, 5, blind=True)  # the same, without knowing the time
register("Ending", Corridor, 50, ends=5)  # reward 1, terminated at step 5
register("Both", Corridor, 5, ends=5)  # both at once
register("Target", Target, 10, blind=True)
register("Regulator", Regulator, 10)
register("OneStep", Corridor, 50, ends=1)
register("Double", Corridor, 7, dtype="float64")
register("Whole", Corridor, 7, dtype="int64")
register("Lopsided", Bounds, 10)
register("PendulumBounds", Bounds, 10, low=(-2.0,), high=(2.0,))
register("UnitInterval", Bounds, 10, low=(0.0,), high=(1.0,))
for what in ("observation", "reward", "exception"):
    register(f"Poisoned-{what}", Poisoned, 10, what=what)
for space in ("dictionary", "image", "symbol", "discrete", "unbounded", "matrix"):
    register(f"Odd-{space}", Odd, 10, space=space)
register("Stateful", Stateful, 40)
register("Changing", Changing, 40)
