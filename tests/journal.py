"""Worlds that keep a journal of what happens to them, and runs of train() that are watched."""

import csv
import importlib
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from oracles import mlp

HER = "sac_her_continuous"
PER = "td3_per_continuous"
GAUSSIAN = ["sac_continuous", "sac_v1_value_net", HER]
NOISY = ["td3_continuous", PER, "ddpg_continuous"]  # their actor's action gets noise
WATCHED = [*GAUSSIAN, *NOISY]
EVAL_SEED = 1_000_000  # of an evaluation's first episode

LOW, HIGH = np.array([-2, 0], np.float32), np.array([2, 6], np.float32)  # the worlds' own actions


class Entry(SimpleNamespace):
    """What happened, once: it equals nothing but itself."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]  # the base class has none


class Wayfarer(gym.Env):
    """It goes its way whatever is done: observations do not depend on actions, rewards do.

    It observes the episode's name, which is drawn, the time, and its place, a random walk. Episodes
    have two to six steps; a die says whether time cuts them, they terminate, or both. Rewards hold
    draws of all the generators that code can share. `journal` is what happened.
    """

    made: list["Wayfarer"] = []

    def __init__(self, reuse: bool = False, dtype: str = "float32", shift: float = 0.0):
        self.dtype = np.dtype(dtype)
        self.array = np.zeros(3, self.dtype)
        self.reuse = reuse  # the same arrays, written into again and again
        self.shift = shift
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), self.dtype.type)
        self.action_space = gym.spaces.Box(LOW, HIGH)
        self.made_with = (random.random(), np.random.random())
        self.journal: list[Entry] = []
        Wayfarer.made.append(self)

    def vector(self) -> np.ndarray:
        """What a script should see of it now."""
        return np.array([self.name, 0.2 * self.time + self.shift, self.place], np.float32)

    def observe(self) -> Any:
        if not self.reuse:
            return self.vector().astype(self.dtype)
        self.array[:] = self.vector()
        return self.array

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.name = self.np_random.uniform(-1, 1)
        self.place = self.np_random.uniform(-1, 1)
        self.length = int(self.np_random.integers(2, 7))
        self.die = int(self.np_random.integers(3))
        self.time = 0
        shared = (random.random(), np.random.random())
        entry = Entry(kind="reset", seed=seed, obs=self.vector(), shared=shared)
        self.journal.append(entry)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        entry = Entry(kind="step", obs=self.vector(), action=np.array(action))
        self.time += 1
        self.place += 0.3 * self.np_random.normal()
        draws = random.random() + np.random.random() + torch.rand(()).item()
        given = entry.action.tolist()
        entry.reward = float(self.name + 0.3 * given[0] - 0.1 * given[1] + 0.1 * draws)
        entry.next_obs = self.vector()
        over = self.time == self.length
        entry.terminated = over and self.die > 0
        entry.truncated = over and self.die < 2
        self.journal.append(entry)
        if self.reuse:
            action[...] = 99
        return self.observe(), entry.reward, entry.terminated, entry.truncated, {}


class Seeker(Wayfarer):
    """The same with a goal that it never looks at."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        spaces = {"observation": self.observation_space}
        goal = gym.spaces.Box(-np.inf, np.inf, (2,), self.dtype.type)
        spaces |= {"achieved_goal": goal, "desired_goal": goal}
        self.observation_space = gym.spaces.Dict(spaces)

    def vector(self) -> np.ndarray:
        goal = [0.5 * self.name, 2.0]
        return np.concatenate([super().vector(), self.achieved(), goal]).astype(np.float32)

    def achieved(self) -> np.ndarray:
        return np.array([self.place, self.name])

    def observe(self) -> Any:
        parts = np.split(self.vector().astype(self.dtype), [3, 5])
        keys = ("observation", "achieved_goal", "desired_goal")
        if not self.reuse:
            return dict(zip(keys, parts, strict=True))
        if self.array.shape != (7,):
            self.array = np.zeros(7, self.dtype)
        self.array[:] = self.vector()
        return dict(zip(keys, np.split(self.array, [3, 5]), strict=True))

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        return -abs(achieved - desired).sum(-1)


worlds.register("Wayfarer", Wayfarer, None)
worlds.register("Seeker", Seeker, None)
GOAL = slice(5, 7)  # where the goal that is wanted stands in a Seeker's observation

# A run of sixty steps that nothing but the test looks at.
SHORT = {"total_timesteps": 60, "learning_starts": 15, "batch_size": 8, "hidden_dim": 8}
SHORT |= {"log_frequency": 0, "checkpoint_frequency": 0, "eval_episodes": 0}
ROLLOUTS = {"num_steps": 10, "num_minibatches": 2, "update_epochs": 1}  # in PPO's


def world_of(script: str) -> str:
    return f"journal:{'Seeker' if script == HER else 'Wayfarer'}-v0"


def settings_of(script: str, runs_dir: Any, **changes: Any) -> Any:
    """The Args of a short run in this script's own world."""
    module = importlib.import_module(script)
    settings = SHORT | {"env_id": world_of(script), "runs_dir": str(runs_dir)}
    if script == "ppo_continuous":
        settings = {n: x for n, x in settings.items() if hasattr(module.Args, n)} | ROLLOUTS
    return module.Args(**settings | changes)


def in_own_units(action: np.ndarray) -> np.ndarray:
    """What the world gets for an action in [-1, 1]."""
    return LOW + (HIGH - LOW) * (np.clip(action, -1, 1) + 1) / 2


def grouped(agent: Any) -> dict[str, list[torch.Tensor]]:
    """All that an agent learns, by network; a bare parameter is a network of its own."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, parameter in agent.named_parameters():
        groups.setdefault(name.split(".")[0], []).append(parameter)
    return groups


def copied(tensors: Any) -> list[np.ndarray]:
    """In float64."""
    return [tensor.detach().numpy().astype(np.float64) for tensor in tensors]


def numbers(groups: dict[str, list[torch.Tensor]]) -> dict[str, list[np.ndarray]]:
    return {name: copied(parameters) for name, parameters in groups.items()}


def watched_run(
    script: str,
    runs_dir: Any,
    prepare: Callable = lambda agent: None,
    fake: Callable | None = None,
    files: bool = False,
    **changes: Any,
) -> SimpleNamespace:
    """A run of an off-policy script's train(), and what happened in it.

    prepare  called with the agent before the first step
    fake     called with the agent in place of each update
    files    whether model.pt and the like are written

    run, agent, replay, results    as they were at the end
    steps, resets, journal         of the world of training, from its first episode on; `rest` is
                                   what it saw after the last step
    initial                        numbers of all networks, before `prepare`
    actors                         weights of the actor after 0, 1, 2, ... steps
    updates                        each with step, batch and the rest of its arguments; where it is
                                   none that is faked, numbers before and after, noise, gradients
                                   by optimizer, targets, what it returned, generator
    """
    module = importlib.import_module(script)
    seen = SimpleNamespace(module=module, updates=[], actors=[], noise=[])
    start, update, after_step = module.Run.start, module.update, module.Run.after_step
    step, critic_loss, randn_like = module.Adam.step, module.critic_loss, torch.randn_like
    names: dict[int, str] = {}

    def watched_start(run: Any, env: Any, agent: Any, replay: Any) -> Any:
        obs = start(run, env, agent, replay)
        seen.run, seen.agent, seen.replay = run, agent, replay
        seen.world = env.unwrapped
        seen.first = len(seen.world.journal) - 1
        seen.groups = grouped(agent)
        seen.initial = numbers(seen.groups)
        for name, part in agent.named_children():
            names[id(part)] = name
        prepare(agent)
        seen.actors.append(copied(seen.groups["actor"]))
        return obs

    def watched_update(agent: Any, batch: Any, *rest: Any) -> Any:
        one = SimpleNamespace(step=seen.run.step, batch=batch, rest=rest, gradients={}, targets=[])
        one.noise, seen.noise = [], []
        one.added, one.threads = seen.replay.added, torch.get_num_threads()
        seen.updates.append(one)
        if fake is None:
            one.before = numbers(seen.groups)
            one.returned = update(agent, batch, *rest)
            one.noise = list(seen.noise)
            one.after, one.generator = numbers(seen.groups), torch.get_rng_state()
        else:
            fake(agent)
            one.returned = {}
            if script == PER:
                one.returned = ({}, [torch.zeros(len(batch.reward))])
        return one.returned

    def watched_step(optimizer: Any, gradients: Any) -> None:
        name = names[id(optimizer)]
        seen.updates[-1].gradients.setdefault(name, []).append(copied(gradients))
        step(optimizer, gradients)

    def watched_randn_like(like: Any) -> Any:
        drawn = randn_like(like)
        seen.noise.append(drawn.numpy().astype(np.float64))
        return drawn

    def watched_loss(q: Any, target: Any, *weight: Any) -> Any:
        seen.updates[-1].targets.append(target.double().numpy().copy())
        return critic_loss(q, target, *weight)

    def watched_after_step(run: Any) -> None:
        after_step(run)
        seen.actors.append(copied(seen.groups["actor"]))

    Wayfarer.made.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "start", watched_start)
        patch.setattr(module.Run, "after_step", watched_after_step)
        patch.setattr(module, "update", watched_update)
        patch.setattr(module.Adam, "step", watched_step)
        patch.setattr(module, "critic_loss", watched_loss)
        patch.setattr(torch, "randn_like", watched_randn_like)
        without_waiting(patch, module, files)
        seen.results = module.train(settings_of(script, runs_dir, **changes))
    seen.worlds = list(Wayfarer.made)
    seen.journal = seen.world.journal[seen.first :]
    total = seen.run.args.total_timesteps
    seen.steps = [entry for entry in seen.journal if entry.kind == "step"][:total]
    # After the last step, and the reset if it ended an episode, comes only evaluation.
    stop = seen.journal.index(seen.steps[-1]) + 1 + ended(seen.steps[-1])
    seen.resets = [entry for entry in seen.journal[:stop] if entry.kind == "reset"]
    seen.rest = seen.journal[stop:]
    return seen


def without_waiting(patch: pytest.MonkeyPatch, module: ModuleType, files: bool) -> None:
    """The module does not wait for the disk. Without files it writes no networks at all."""
    patch.setattr(module.os, "fsync", lambda file: None)
    if not files:
        patch.setattr(module, "write_file", lambda path, content: None)


def ended(entry: Entry) -> bool:
    """Whether an episode ended with this step."""
    return entry.terminated or entry.truncated


def stored(replay: Any) -> SimpleNamespace:
    """All that a buffer holds, oldest first, as arrays."""
    count, capacity = len(replay), len(replay.table)
    rows = np.arange(replay.added - count, replay.added) % capacity
    names = ("obs", "action", "reward", "next_obs", "terminated")
    columns = [column[rows].copy() for column in replay.columns]
    return SimpleNamespace(**dict(zip(names, columns, strict=True)))


def column(entries: list, name: str) -> np.ndarray:
    """One array of what these entries of a journal have under a name."""
    return np.stack([getattr(entry, name) for entry in entries])


def step_numbers(seen: SimpleNamespace, batch: Any) -> np.ndarray:
    """From which step of the run (0, 1, ...) each transition of a batch is. No two are alike."""
    known = {}
    for number, entry in enumerate(seen.steps):
        known[entry.obs[:3].tobytes()] = number
    assert len(known) == len(seen.steps)
    rows = batch.obs[:, :3].numpy()
    return np.array([known[row.tobytes()] for row in rows])


def policy_mean(script: str, actor: list[np.ndarray], obs: np.ndarray) -> np.ndarray:
    """What the actor with these weights outputs, before tanh and noise: the mean in SAC."""
    output = mlp(actor, obs.astype(np.float64))
    return np.split(output, 2, axis=-1)[0] if script in GAUSSIAN else output


def noise_of(seen: SimpleNamespace, script: str, first: int) -> np.ndarray:
    """The noise that makes these actions of those policies, one row for each step from `first` on.

    Of noise that was drawn, in units of its deviation; the actions in between are not at a bound.
    """
    action = stored(seen.replay).action.astype(np.float64)
    assert len(action) == len(seen.steps)
    rows = []
    for number in range(first, len(seen.steps)):
        obs, actor = seen.steps[number].obs, seen.actors[number]
        output = mlp(actor, obs.astype(np.float64))
        if script in GAUSSIAN:
            mean, log_std = np.split(output, 2)
            std = np.exp(np.clip(log_std, -20, 2))
            rows.append((np.arctanh(action[number]) - mean) / std)
        else:
            rows.append((action[number] - np.tanh(output)) / seen.run.args.exploration_noise)
    return np.stack(rows)


def distance_from_uniform(values: np.ndarray) -> float:
    """Kolmogorov's: the largest difference between x and the share of values below it, in [0, 1].

    Chance leaves it below 1.95 / sqrt(n) in 999 of 1000 cases.
    """
    x, n = np.sort(values), len(values)
    assert x[0] >= 0 and x[-1] <= 1
    above, below = np.arange(1, n + 1) / n - x, x - np.arange(n) / n
    return float(max(above.max(), below.max()))


def rows_of_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with open(Path(results["run_dir"]) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
