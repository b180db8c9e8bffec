"""The linear-quadratic regulator: an environment whose best policy and values can be written down.

    s' = A s + B a + w,    reward -(s' Q s + a' R a),    discount gamma

No episode terminates. In the docstrings ' is also the transpose, as in s'Qs. `regulator:Plane-v0`
(two numbers of state, two of action) and `regulator:Line-v0` (one of each) are the environments'
ids; the environments take actions in their own units, `unit` times those of the scripts.
"""

import dataclasses
import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """The matrices, and what the disturbance w and the bounds of the actions are."""

    a: np.ndarray  # (O, O)
    b: np.ndarray  # (O, A)
    q: np.ndarray  # (O, O)
    r: np.ndarray  # (A, A)
    unit: np.ndarray  # (A,), half the range of each action, in the environment's units
    push: float  # each number of w is this or minus this, with the same probability
    gamma: float

    def outcomes(self) -> list[tuple[float, ...]]:
        """The values of w, which are equally likely."""
        return list(itertools.product((-self.push, self.push), repeat=len(self.a)))

    def in_action_units(self) -> "Problem":
        """The same world for somebody whose actions are in [-1, 1]."""
        b = self.b * self.unit
        r = self.r * np.outer(self.unit, self.unit)
        return dataclasses.replace(self, b=b, r=r, unit=np.ones(len(self.unit)))


PLANE = Problem(
    a=np.array([[0.8, 0.3], [-0.2, 0.9]]),
    b=np.array([[0.5, 0.4], [0.0, 0.5]]),
    q=np.array([[1.0, 0.0], [0.0, 0.5]]),
    r=np.array([[0.4, 0.2], [0.2, 0.4]]),
    unit=np.array([10.0, 8.0]),  # so wide that the best action stays below a tenth of it
    push=0.2,
    gamma=0.8,
)
LINE = Problem(
    a=np.array([[0.9]]),
    b=np.array([[0.6]]),
    q=np.array([[1.0]]),
    r=np.array([[0.4]]),
    unit=np.array([2.0]),
    push=0.1,
    gamma=0.8,
)


class Regulator(gym.Env):
    """The problem as an environment. It starts anywhere in the square [-1, 1]^O.

    The options of reset() can fix what is drawn otherwise: "state", where the episode begins, and
    "push", the disturbance w of all of its steps.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(problem.a),), np.float64)
        self.action_space = gym.spaces.Box(-problem.unit, problem.unit, dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        options = options or {}
        self.state = options.get("state", self.np_random.uniform(-1, 1, len(self.problem.a)))
        self.push = options.get("push")
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple:
        world = self.problem
        push = self.push
        if push is None:
            push = self.np_random.choice(world.outcomes())
        reward = -(self.state @ world.q @ self.state + action @ world.r @ action)
        self.state = world.a @ self.state + world.b @ action + push
        return self.state.copy(), float(reward), False, False, {}


gym.register("Plane-v0", Regulator, max_episode_steps=20, kwargs={"problem": PLANE})
gym.register("Line-v0", Regulator, max_episode_steps=20, kwargs={"problem": LINE})


class Solution:
    """What is best, and what it is worth, in the units of the problem.

    P is the fixed point of the Riccati equation, M = R + gamma B'PB, and the best mean action is
    -K s with K = gamma M^-1 B'PA, whether or not there is entropy or noise on the action:

        Q(s, a) = -s'Ps - (a + K s)' M (a + K s) + q0
        V(s)    = -s'Ps + q0 + chance,    q0 = gamma (chance - tr(P W)) / (1 - gamma)

    W is the covariance of w. `chance` is what the randomness of the action adds to a state's value:

        0                                  an action without noise
        -tr(M S)                           noise of covariance S on it (target smoothing)
        (alpha/2) sum_j ln(pi alpha/M_jj)  the best Gaussian with a diagonal covariance, where
                                           entropy counts alpha; its variances are alpha / (2 M_jj)
    """

    def __init__(self, problem: Problem, alpha: float = 0.0, smoothing: float = 0.0):
        self.problem = problem
        a, b, gamma = problem.a, problem.b, problem.gamma
        self.p = problem.q
        for _ in range(1000):  # the error shrinks by more than gamma each time
            self.m = problem.r + gamma * b.T @ self.p @ b
            self.gain = gamma * np.linalg.solve(self.m, b.T @ self.p @ a)
            self.p = problem.q + gamma * a.T @ self.p @ (a - b @ self.gain)
        self.alpha = alpha
        self.chance = -smoothing * np.trace(self.m)
        if alpha > 0:
            self.chance += alpha / 2 * np.log(np.pi * alpha / np.diag(self.m)).sum()
        noise = problem.push**2 * np.trace(self.p)
        self.q0 = gamma * (self.chance - noise) / (1 - gamma)

    def action(self, state: np.ndarray) -> np.ndarray:
        return -state @ self.gain.T

    def q(self, state: np.ndarray, action: np.ndarray) -> float:
        away = action - self.action(state)
        return self.q0 - state @ self.p @ state - away @ self.m @ away

    def v(self, state: np.ndarray) -> float:
        return self.q0 + self.chance - state @ self.p @ state

    def std(self) -> np.ndarray:
        return np.sqrt(self.alpha / 2 / np.diag(self.m))

    def entropy(self) -> float:
        """In nats: of each normal distribution ln(std sqrt(2 pi e))."""
        return np.log(self.std() * math.sqrt(2 * math.pi * math.e)).sum()


def best_temperature(problem: Problem, entropy: float) -> float:
    """Where the best policy has this entropy: alpha = e^(2 H / A) (M_11 M_22 ...)^(1/A) / (pi e)"""
    m = np.diag(Solution(problem).m)
    return math.exp(2 * entropy / len(m) + np.log(m).mean()) / (math.pi * math.e)


def clipped_variance(std: float, bound: float) -> float:
    """Of clip(N(0, std^2), -bound, bound). With k = bound / std and tails of T = P(|z| > k):

    std^2 (1 - T - 2 k phi(k) + k^2 T),  phi the density of z ~ N(0, 1)
    """
    k = bound / std
    tails = math.erfc(k / math.sqrt(2))
    density = math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi)
    return std**2 * (1 - tails - 2 * k * density + k**2 * tails)
