"""Environments, settings and places as real users have them: each works, or is one message."""

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
import runpy
import signal
import sys
import time
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from gymnasium.wrappers import FlattenObservation
from helpers import (
    OFF_POLICY,
    QUICK,
    SCRIPTS,
    TINY,
    main,
    metrics,
    read_checkpoint,
    run_dir,
    same,
    scripts,
    source,
)
from processes import begin, posix, wait

PPO, HER = "ppo_continuous", "sac_her_continuous"


# A test runs for one script of each kind where it does not say otherwise: what off-policy ones do
# here is the same to the letter, which tests/house/test_family.py holds.
SAC, PER = "sac_continuous", "td3_per_continuous"
each, each_off_policy = scripts(*SCRIPTS), scripts(*OFF_POLICY)
warned = pytest.mark.filterwarnings("ignore:.*WARN")  # gymnasium's, about the same


@pytest.fixture(params=[SAC, PPO])
def script(request):
    return request.param


def same_results(a, b):
    """To the bit: networks, optimizers, replay, random states, episodes and metrics."""
    contents = [read_checkpoint(results["run_dir"]) for results in (a, b)]
    same(*(content["parts"] for content in contents))
    for content in contents:
        del content["progress"]["seconds"]
    same(*(content["progress"] for content in contents))
    same(*(metrics(results["run_dir"]) for results in (a, b)))


class World(gym.Env):
    """A point on a line, pushed by the first action; where it starts is drawn."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def draw(self):
        return self.np_random.uniform(-1, 1)

    def observe(self):
        return np.array([self.x, self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.x = 0, float(self.draw())
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        self.x = float(np.clip(self.x + 0.1 * np.ravel(action)[0] + 0.1 * self.draw(), -9, 9))
        return self.observe(), -abs(self.x), False, False, {}


NUMBERS = itertools.count()


def register(world, limit=8, **kwargs):
    """A world's id, which processes of their own know too if this file makes it on import."""
    name = f"{world.__name__}-{next(NUMBERS)}"
    worlds.register(name, world, limit, **kwargs)
    return f"test_edges:{name}-v0"


PLAIN = register(World)


# === Ends and limits ==============================================================================
NO_END = register(worlds.Corridor, None)


def test_a_task_without_end_is_a_message(module, refused_run, monkeypatch):
    monkeypatch.setattr(module, "EVAL_STEPS", 50)
    assert "--max-episode-steps" in refused_run(NO_END)


def test_max_episode_steps(tiny_run, module, monkeypatch):
    """It ends the episodes of training and of evaluation; the world goes on, to the algorithm."""
    seen, evaluate = [], module.evaluate

    def noted(*args):
        seen.extend(evaluate(*args))
        return seen[-1:]

    monkeypatch.setattr(module, "evaluate", noted)
    for env_id in (NO_END, PLAIN):  # which has a limit of 8
        results = tiny_run(env_id, max_episode_steps=4)
        assert {row["episodic_length"] for row in metrics(results["run_dir"])} == {"4.0"}
        assert len(seen) > 1 and {len(trajectory) for trajectory in seen} == {4}
        assert not any(step[4] for trajectory in seen for step in trajectory)
        seen.clear()


def test_no_evaluation(tiny_run, capsys):
    """Then the last line is of the training episodes, and a task without end can be learnt from."""
    results = tiny_run(eval_episodes=0)
    final = capsys.readouterr().out.splitlines()[-1]
    assert final.startswith("final episodes=12 episodic_return=5.0 episodic_length=5.0 global_step")
    assert " eval_" not in final and not any("eval" in name for name in results)
    assert tiny_run(NO_END, eval_episodes=0)["global_step"] == 60


@pytest.mark.parametrize("settings", [{"learning_starts": 60}, {"updates_per_step": 0}], ids=str)
@scripts(SAC)
def test_nothing_is_learnt(settings, tiny_run, capsys):
    """Which a note says; a usual run says nothing of the kind."""
    tiny_run(**settings)
    assert "note: with these settings there is no update" in capsys.readouterr().out
    tiny_run()
    assert "note" not in capsys.readouterr().out


# === What evaluation asks for =====================================================================
class Simulator(World):
    """Only one may be open at a time."""

    running = 0

    def __init__(self):
        super().__init__()
        if Simulator.running:
            raise ConnectionError("the port is taken")
        Simulator.running += 1

    def close(self):
        Simulator.running -= 1


SIMULATOR = register(Simulator)


@pytest.mark.slow_but("sac_continuous")
@each_off_policy
def test_only_one_simulator(tiny_run, module, refused_run):
    """Training's own serves for the last evaluation; for those between there is a message."""
    results = tiny_run(SIMULATOR)
    assert results["eval_episodes"] == 1 and Simulator.running == 0
    again = module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=80)
    assert again["global_step"] == 80 and Simulator.running == 0
    message = refused_run(SIMULATOR, eval_frequency=20)
    assert "the port is taken" in message and "--eval-frequency 0" in message
    assert Simulator.running == 0


@scripts(PPO)
def test_only_one_simulator_in_ppo(tiny_run, refused_run):
    message = refused_run(SIMULATOR)
    assert "the port is taken" in message and "--eval-episodes 0" in message
    assert tiny_run(SIMULATOR, eval_episodes=0)["global_step"] == 60
    assert Simulator.running == 0


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each
def test_best_model(tiny_run, module, monkeypatch):
    """The networks of the best evaluation, also after a resume that brought no better one."""
    copies, evaluation = {}, module.Run.evaluation

    def noted(run):
        state = {name: value.clone() for name, value in run.agent.state_dict().items()}
        row = evaluation(run)
        copies[run.step] = row["eval_return_mean"], state
        return row

    monkeypatch.setattr(module.Run, "evaluation", noted)
    results = tiny_run(PLAIN, eval_frequency=10, eval_episodes=2)
    assert len(copies) == 6
    path = results["run_dir"] / "best_model.pt"
    best = max(mean for mean, _ in copies.values())
    same(
        dict(torch.load(path, weights_only=True)), next(s for m, s in copies.values() if m == best)
    )
    module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=90)
    assert len(copies) == 9
    best = max(mean for mean, _ in copies.values())
    same(
        dict(torch.load(path, weights_only=True)), next(s for m, s in copies.values() if m == best)
    )


# === What an environment returns ==================================================================
class Wrapped(World):
    """Rewards as simulators give them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = getattr(np, kind)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, self.kind([reward]) if self.kind is np.array else self.kind(reward), *rest


@warned
@pytest.mark.parametrize("kind", ["array", "asarray", "float64"])
def test_rewards_of_other_types(kind, tiny_run):
    """An array of shape (1,) or (), or NumPy's number: all is as with a plain one."""
    env_id = register(Wrapped, kind=kind)
    same_results(tiny_run(env_id), tiny_run(PLAIN))


class Careless(World):
    """It changes the action that it was given, and always returns the same array."""

    array = np.zeros(2, np.float32)

    def observe(self):
        self.array[:] = super().observe()
        return self.array

    def step(self, action):
        result = super().step(action)
        action[:] = 99
        return result


@warned
def test_an_environment_that_writes_into_its_arrays(tiny_run):
    same_results(tiny_run(register(Careless)), tiny_run(PLAIN))


class Talkative(World):
    """Its info has arrays of varying length, and another thing at every step."""

    def step(self, action):
        *result, _ = super().step(action)
        odd = {
            "contacts": np.arange(int(1e6 * abs(self.x)) % 7),
            "place": None if self.x < 0 else 1,
        }
        return *result, odd | {f"only-{self.time}": np.zeros((self.time, 2))}


@scripts(PPO)
def test_info_of_any_kind(tiny_run):
    settings = {"num_envs": 2, "total_timesteps": 60}
    same_results(tiny_run(register(Talkative), **settings), tiny_run(PLAIN, **settings))


class OldInterface(World):
    """As gym had it: reset() takes no seed, and step() returns four values."""

    def reset(self):
        self.time, self.x = 0, 0.0
        return self.observe()

    def step(self, action):
        return self.observe(), 0.0, False, {}


class OldStep(World):
    def step(self, action):
        return *super().step(action)[:2], False, {}


class NoInfo(worlds.Corridor):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class OtherShape(World):
    """It returns one number where its space has two."""

    def observe(self):
        return np.float32([self.x])


class NoReward(World):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 1j, *rest


@each
@warned
@pytest.mark.parametrize("world", [OldInterface, OldStep, NoInfo, NoReward, OtherShape])
def test_another_interface_is_a_message(world, refused_run):
    assert refused_run(register(world))


# === Spaces =======================================================================================
class Spaces(gym.Env):
    """It observes and acts in these spaces, and holds whoever acts to its own."""

    def __init__(self, seen, acted):
        self.observation_space, self.action_space = seen, acted

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return self.observation_space.sample(), 0.5, False, False, {}


Box = gym.spaces.Box
SEEN = {
    "matrix": (Box(-1, 1, (4, 2)), 8),
    "column": (Box(-1, 1, (3, 1)), 3),
    "scalar": (Box(-1, 1, ()), 1),
    "double": (Box(-1, 1, (3,), np.float64), 3),
    "whole": (Box(-5, 5, (3,), np.int64), 3),
    "bytes": (Box(0, 255, (3,), np.uint8), 3),
    "switches": (gym.spaces.MultiBinary(5), 5),
    "one of four": (gym.spaces.Discrete(4), 4),
    "one of two and three": (gym.spaces.MultiDiscrete([2, 3]), 5),
    "one-sided": (Box(0, np.inf, (2,)), 2),
}
ACTED = {
    "matrix": Box(-1, 1, (2, 3)),
    "scalar": Box(-2, 2, ()),
    "double": Box(-1, 1, (2,), np.float64),
    "half": Box(-1, 1, (2,), np.float16),
    "whole": Box(-3, 5, (2,), np.int64),
    "bytes": Box(0, 255, (2,), np.uint8),
    "uneven": Box(np.array([-1, 0], np.float32), np.array([0, 7], np.float32)),
}
VECTOR = Box(-1, 1, (3,))


@pytest.mark.parametrize("name", SEEN)
def test_observations_of_any_shape(name, tiny_run, module):
    seen, size = SEEN[name]
    env_id = register(Spaces, seen=seen, acted=ACTED["uneven"])
    obs, _ = module.make_env(env_id).reset(seed=1)
    assert obs.shape == (size,) and obs.dtype == np.float32
    assert tiny_run(env_id, total_timesteps=30)["global_step"] == 30


@pytest.mark.parametrize("name", ACTED)
def test_actions_of_any_shape(name, tiny_run, module):
    """Actions in [-1, 1]^A reach all of the box, in its shape and type."""
    acted = ACTED[name]
    env_id = register(Spaces, seen=VECTOR, acted=acted)
    env, given = module.make_env(env_id), []
    size = math.prod(acted.shape)
    assert env.action_space == Box(-1, 1, (size,), np.float32)
    env.reset(seed=1)
    env.unwrapped.step = lambda action: (
        given.append(action) or (VECTOR.sample(), 0.0, False, False, {})
    )
    for value in (-1, 1, -3, 3):
        env.step(np.full(size, value, np.float32))
    for action, bound in zip(given, [acted.low, acted.high] * 2, strict=True):
        np.testing.assert_array_equal(action, bound)
        assert acted.contains(action)
    assert tiny_run(env_id, total_timesteps=30)["global_step"] == 30


@pytest.mark.parametrize(
    "seen, acted, culprit",
    [
        (VECTOR, Box(0, np.inf, (2,)), "finite"),
        (VECTOR, Box(-np.inf, 1, (2,)), "finite"),
        (VECTOR, Box(-3.4e38, 3.4e38, (2,)), "finite, sensible"),
        (VECTOR, gym.spaces.Discrete(3), "continuous"),
        (VECTOR, gym.spaces.MultiBinary(3), "continuous"),
        (VECTOR, Box(-1, 1, (0,)), "continuous"),
        (Box(0, 255, (8, 8, 3), np.uint8), VECTOR, "images"),
        (gym.spaces.Tuple([VECTOR, VECTOR]), VECTOR, "FlattenObservation"),
    ],
)
def test_spaces_that_are_refused(seen, acted, culprit, refused_run):
    """By name, with what is wanted instead."""
    env_id = register(Spaces, seen=seen, acted=acted)
    message = refused_run(env_id)
    assert culprit in message and env_id in message
    assert str(seen if seen is not VECTOR else acted)[:20] in message


PARTS = gym.spaces.Dict({"place": VECTOR, "speed": Box(-1, 1, (2, 2))})
GOALS = dict.fromkeys(["observation", "achieved_goal", "desired_goal"], VECTOR)
DICT = register(Spaces, seen=PARTS, acted=VECTOR)
GOAL = register(Spaces, seen=gym.spaces.Dict(GOALS), acted=VECTOR)


@scripts(*SCRIPTS, HER)
def test_a_dictionary_is_sent_on_but_not_in_a_circle(script, refused_run):
    """Without goals every script sends it to FlattenObservation; with goals, to the HER script."""
    message = refused_run(DICT)
    assert "FlattenObservation" in message and "_continuous.py" not in message
    if script != HER:
        assert "sac_her_continuous.py" in refused_run(GOAL)


def test_the_advice_about_a_dictionary_helps(tiny_run, module):
    """Followed to the letter, it trains."""
    env_id, made = f"Flat-{next(NUMBERS)}-v0", {"seen": PARTS, "acted": VECTOR}
    flatten = (FlattenObservation.wrapper_spec(),)
    gym.register(env_id, Spaces, max_episode_steps=8, kwargs=made, additional_wrappers=flatten)
    assert module.make_env(env_id).observation_space.shape == (7,)
    assert tiny_run(env_id)["global_step"] == 60


# === Constructors =================================================================================
class Options(World):
    """A constructor with an argument that has no default."""

    made: list[tuple] = []

    def __init__(self, gravity, wind=None):
        super().__init__()
        Options.made.append((gravity, wind))


OPTIONS = register(Options)


def test_env_kwargs(tiny_run, refused_run, monkeypatch):
    """They reach training and evaluation, whatever JSON holds; without, the argument is named."""
    monkeypatch.setattr(Options, "made", [])
    assert "gravity" in refused_run(OPTIONS) and not Options.made
    given = '{"gravity": 5.5, "wind": {"at": [1, 2], "gusts": null}}'
    tiny_run(OPTIONS, env_kwargs=given, eval_frequency=30)
    assert Options.made == [(5.5, {"at": [1, 2], "gusts": None})] * 2


@pytest.mark.parametrize("given", ["gravity=5", "5", "null", '{"gravity": }'])
def test_env_kwargs_that_are_no_object(given, refused_run):
    message = refused_run(OPTIONS, env_kwargs=given)
    assert "--env-kwargs" in message and given in message


@pytest.mark.parametrize("name", ["moons", "id", "env_id"])
def test_env_kwargs_that_are_unknown(name, refused_run):
    message = refused_run(OPTIONS, env_kwargs=json.dumps({"gravity": 1, name: "x"}))
    assert f"'{name}'" in message


def test_a_module_in_the_current_folder(script, tmp_path, monkeypatch, capsys):
    """Is found from the command line, wherever the script is."""
    (tmp_path / "lonely_world.py").write_text(
        "import test_edges as t\nt.worlds.register('Lonely', t.World, 8)"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    main(script, *QUICK[script], "--env-id=lonely_world:Lonely-v0", "--total-timesteps=40")
    assert "final eval_return_mean" in capsys.readouterr().out
    assert run_dir(tmp_path / "runs").name.startswith("lonely_world-Lonely-v0__")


# === Random numbers ===============================================================================
class Generator(World):
    """It draws from a generator of its own, of another kind than gymnasium's."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            if self.kind == "RandomState":
                self.dice = np.random.RandomState(seed)
            elif self.kind == "random.Random":
                self.dice = random.Random(seed)
            else:
                self.dice = np.random.Generator(getattr(np.random, self.kind)(seed))
            self._np_random = self.dice
        self.time, self.x = 0, float(self.draw())
        return self.observe(), {}

    def draw(self):
        return self.dice.uniform(-1, 1)


class Shared(World):
    """It draws from the generators that all code shares, and has none of its own."""

    place = 0.0

    def reset(self, *, seed=None, options=None):
        self.time, self.x = 0, self.place + self.draw()
        return self.observe(), {}

    def draw(self):
        return random.uniform(-1, 1) + float(np.random.uniform(-1, 1))


class Built(Shared):
    """It draws also where it is made."""

    def __init__(self):
        super().__init__()
        self.place = self.draw()


class Unseeded(Shared):
    """It draws from where no seed reaches."""

    dice = np.random.default_rng()

    def draw(self):
        return self.dice.uniform(-1, 1)


KINDS = ["RandomState", "MT19937", "SFC64", "PCG64DXSM", "random.Random"]
GENERATORS = [register(Generator, kind=kind) for kind in KINDS]
SHARED, BUILT, UNSEEDED = register(Shared), register(Built), register(Unseeded)


def in_two_parts(tiny_run, module, env_id, monkeypatch, stop=37, **settings):
    """A run whose simulator breaks in the middle of an episode, and its other part."""
    with monkeypatch.context() as patch:
        numbers, step = itertools.count(1), World.step

        def breaks(*args):
            if next(numbers) == stop + 8:  # after the steps of a first evaluation
                raise ConnectionError
            return step(*args)

        patch.setattr(World, "step", breaks)
        with pytest.raises(ConnectionError):
            tiny_run(env_id, runs_dir="parts", **settings)
    (path,) = Path("parts").glob("*/checkpoint.pt")
    return module.resume(str(path))


@pytest.mark.slow_but("Generator-6")
@scripts(SAC)
@pytest.mark.parametrize("env_id", [*GENERATORS, SHARED, BUILT])
def test_any_generator_is_put_back(env_id, tiny_run, module, monkeypatch, tmp_path, capsys):
    """Bit for bit, without a note."""
    monkeypatch.chdir(tmp_path)
    whole = tiny_run(env_id)
    same_results(in_two_parts(tiny_run, module, env_id, monkeypatch), whole)
    assert "note" not in capsys.readouterr().out


@scripts(SAC)
def test_what_cannot_be_put_back_is_noted(tiny_run, module, monkeypatch, tmp_path, capsys):
    """Once, and the run goes on with a new episode."""
    monkeypatch.chdir(tmp_path)
    results = in_two_parts(tiny_run, module, UNSEEDED, monkeypatch)
    assert capsys.readouterr().out.count("not bit for bit") == 1
    assert results["global_step"] == 60 and metrics(results["run_dir"])[-1]["episodes"] == "7"


@pytest.mark.slow_but("Generator-6")
@pytest.mark.parametrize("env_id", [BUILT, *GENERATORS[:1]])
def test_every_generator_obeys_the_seed(env_id, tiny_run):
    """Same seed, same run, in evaluation too; another seed, another run."""
    first, second, other = (tiny_run(env_id, seed=seed, eval_frequency=20) for seed in (1, 1, 2))
    same_results(first, second)
    assert metrics(first["run_dir"]) != metrics(other["run_dir"])


def test_evaluation_leaves_the_shared_generators_alone(tiny_run, module, monkeypatch):
    """Training is the same with and without; and each evaluation has the same starts."""
    seen, evaluate = [], module.evaluate

    def noted(*args):
        seen.append(evaluate(*args))
        return seen[-1]

    monkeypatch.setattr(module, "evaluate", noted)
    rare, often = tiny_run(SHARED), tiny_run(SHARED, eval_frequency=20)
    same(*(read_checkpoint(results["run_dir"])["parts"] for results in (rare, often)))
    starts = {tuple(trajectories[0][0][0]) for trajectories in seen}
    assert len(seen) >= 6 and len(starts) == 1


# === Nothing is lost ==============================================================================
@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@scripts(SAC, PER)
@pytest.mark.parametrize(
    "where, error",
    [("step", ConnectionError), ("reset", ConnectionError), ("step", SystemExit)],
)
def test_a_fault_of_the_simulator(where, error, tiny_run, module, tmp_path, monkeypatch, capsys):
    """It propagates; the last whole step is kept, and the run goes on as if it never had been."""
    whole, numbers = tiny_run(PLAIN), itertools.count(1)
    with monkeypatch.context() as patch:
        real, number = getattr(World, where), 38 + 8 if where == "step" else 1 + 5

        def breaks(*args, **kwargs):
            if next(numbers) == number:
                raise error("the simulator is gone")
            return real(*args, **kwargs)

        patch.setattr(World, where, breaks)
        with pytest.raises(error, match="the simulator is gone"):
            tiny_run(PLAIN, runs_dir=str(tmp_path / "broken"))
    path = run_dir(tmp_path / "broken") / "checkpoint.pt"
    step = 37 if where == "step" else 31  # the episode's last step is not whole without a reset
    assert f"stopped at step {step}: --resume {path}" in capsys.readouterr().out
    same_results(module.resume(str(path)), whole)


def test_a_locked_table(tiny_run, module, monkeypatch, capsys):
    """As a spreadsheet on Windows locks it: a note, and no row is lost."""
    whole, numbers = tiny_run(), itertools.count(1)

    def locked(path, *args, **kwargs):
        if str(path).endswith("metrics.csv") and next(numbers) in (3, 4):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **kwargs)

    monkeypatch.setattr(module, "open", locked, raising=False)
    results = tiny_run()
    assert capsys.readouterr().out.count("note: ") == 2 and next(numbers) > 7
    assert metrics(results["run_dir"]) == metrics(whole["run_dir"])


def test_a_table_that_was_edited(tiny_run, module):
    """Resumed, the run writes it as it was."""
    whole, half = tiny_run(log_frequency=10), tiny_run(total_timesteps=30, log_frequency=10)
    table = half["run_dir"] / "metrics.csv"
    for damage in ("", "a;b\n1;2\n", table.read_text()[:-40]):
        table.write_text(damage)
        module.resume(str(half["run_dir"] / "checkpoint.pt"))
        assert [r["global_step"] for r in metrics(half["run_dir"])] == ["10", "20", "30"]
    (half["run_dir"] / "args.json").unlink()
    module.resume(str(half["run_dir"] / "checkpoint.pt"), total_timesteps=60)
    rows = [metrics(results["run_dir"]) for results in (half, whole)]
    assert [row["global_step"] for row in rows[0]] == [row["global_step"] for row in rows[1]]
    assert json.loads((half["run_dir"] / "args.json").read_text())["total_timesteps"] == 60


def test_a_place_with_spaces_seen_from_another_folder(tiny_run, module, tmp_path, monkeypatch):
    """--runs-dir and --resume are relative to where one is."""
    monkeypatch.chdir(tmp_path)
    results = tiny_run(total_timesteps=30, runs_dir="my runs/of ä")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = Path("..", results["run_dir"], "checkpoint.pt")
    again = module.resume(str(path), total_timesteps=60)
    assert again["run_dir"] == (tmp_path / results["run_dir"]) and not [*Path().iterdir()]
    assert metrics(again["run_dir"])[-1]["global_step"] == "60"


@pytest.mark.slow
def test_ways_to_resume(tiny_run, module, tmp_path, capsys):
    """By resume(), with a path of either kind, or as a setting: it goes on, nothing begins anew."""
    whole = tiny_run(PLAIN, total_timesteps=60)
    for number in range(3):
        place = tmp_path / f"half{number}"
        path = tiny_run(PLAIN, total_timesteps=30, runs_dir=place)["run_dir"] / "checkpoint.pt"
        capsys.readouterr()
        if number < 2:
            results = module.resume([path, str(path)][number], total_timesteps=60)
        else:
            results = tiny_run(PLAIN, resume=str(path))
        assert results["run_dir"] == path.parent.resolve()
        assert "note: total_timesteps is now 60, not 30" in capsys.readouterr().out
        if module.__name__ == PPO:  # it begins new episodes, and its step size falls to the end
            steps = [row["global_step"] for row in metrics(path.parent)]
            assert steps == ["10", "20", "30", "40", "50", "60"]
        else:
            same_results(results, whole)


@pytest.mark.parametrize("script, name", [(SAC, "alpha"), (PPO, "kl_coef")], indirect=["script"])
def test_what_the_checkpoint_fixes_is_not_changed_in_name_only(name, tiny_run, module):
    """It is refused, or it is what the run then uses."""
    kind = {"autotune": False} if name == "alpha" else {"surrogate": "kl-penalty"}
    path = tiny_run(PLAIN, total_timesteps=30, **kind)["run_dir"] / "checkpoint.pt"
    try:
        results = module.resume(str(path), total_timesteps=40, **{name: 7.0})
    except module.RunError as error:
        assert name in str(error)
    else:
        assert float(metrics(results["run_dir"])[-1][name]) == pytest.approx(7)


class Blocked(World):
    """It stops answering, in a way that no exception ends."""

    def step(self, action):
        while self.time == 5:
            with contextlib.suppress(BaseException):
                time.sleep(1000)
        return super().step(action)


BLOCKED = register(Blocked)


@posix
@pytest.mark.parametrize(
    "script, second", [(SAC, signal.SIGTERM), (PPO, signal.SIGINT)], indirect=["script"]
)
@pytest.mark.slow
def test_a_blocked_simulator_can_be_ended(script, second, tmp_path):
    """By the second signal."""
    log = tmp_path / "log"
    flags = [*QUICK[script], f"--env-id={BLOCKED}", "--eval-episodes=0", "--runs-dir", tmp_path]
    process = begin(script, log, *flags)
    wait(process, log, lambda: log.read_text())
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive(), log.read_text()
    os.kill(process.pid, second)
    process.join(5)
    ended = process.exitcode
    process.kill()
    assert ended == -second, log.read_text()


# === In a notebook ================================================================================
def shorter(script):
    """The script's text, with a run of a second as its default."""
    text = Path(source(script)).read_text()
    text, found = re.subn(r"(total_timesteps: Count) = [\d_]+", r"\1 = 40", text)
    assert found == 1
    return re.sub(r"(num_steps: .*) = 2048", r"\1 = 40", text).replace("= 32\n", "= 4\n")


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Run a text in a new notebook: its command line is the kernel's, and it has no __file__."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])

    def run(text):
        monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
        cell = sys.modules["__main__"]
        exec(compile(text, "<cell>", "exec"), cell.__dict__)
        return cell

    return run


def test_pasted_into_a_cell(script, notebook, tmp_path, capsys):
    """With its last lines it trains by the defaults; Ctrl-C is still the notebook's."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        notebook(shorter(script))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "final eval_return_mean" in capsys.readouterr().out
    assert "__notebook__1__" in run_dir(tmp_path / "runs").name


def test_run_from_a_prompt(script, tmp_path, monkeypatch):
    """IPython's %run <script>: afterwards Ctrl-C does not end the session."""
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr(sys, "argv", [script, *QUICK[script], "--runs-dir", str(tmp_path)])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_path(source(script), run_name="__main__")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert f"__{script}__1__" in run_dir(tmp_path).name


def test_pasted_without_its_last_lines(script, notebook, tmp_path):
    text = Path(source(script)).read_text()
    cell = notebook(text[: text.index('if __name__ == "__main__":\n')])
    results = cell.train(cell.Args(**TINY[script] | {"env_id": PLAIN}))
    again = cell.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=80)
    assert again["global_step"] == 80
    with pytest.raises(cell.RunError, match="--gamma"):
        cell.train(cell.Args(gamma=2))


def test_a_search_survives_its_trials(tiny_run, module, monkeypatch):
    """Whatever goes wrong in a trial is an Exception, and the next trial is as if it were first."""
    first, failed = tiny_run(PLAIN), []
    update = module.update

    def diverge(*args):
        result = update(*args)
        metrics = result[0] if isinstance(result, tuple) else result
        metrics["value"] = torch.tensor(math.nan)
        return result

    trials = [{"gamma": 2}, {"env_id": "NoSuch-v0"}, {"env_id": UNSEEDED, "device": "tpu"}]
    trials += [{"env_id": "worlds:Poisoned-reward-v0"}, {"diverge": True}]
    trials += [{"env_id": "worlds:Poisoned-exception-v0"}, {"env_id": GOAL}]
    for trial in trials:
        with monkeypatch.context() as patch:
            if trial.pop("diverge", False):
                patch.setattr(module, "update", diverge)
            try:
                tiny_run(**trial)
            except Exception as error:
                failed.append(type(error))
    assert failed == [module.RunError] * 5 + [ZeroDivisionError, module.RunError]
    assert issubclass(module.RunError, ValueError)
    same_results(tiny_run(PLAIN), first)


def process_state():
    """All that train() might have changed for the process."""
    numbers = ["SIGINT", "SIGTERM", "SIGHUP", "SIGABRT"]
    state = {
        name: signal.getsignal(getattr(signal, name)) for name in numbers if name in dir(signal)
    }
    state |= {"threads": torch.get_num_threads(), "dtype": torch.get_default_dtype()}
    state |= {"gradients": torch.is_grad_enabled(), "errors": np.geterr(), "path": [*sys.path]}
    return state | {"folder": os.getcwd(), "variables": dict(os.environ)}


@pytest.mark.parametrize("env_id", [PLAIN, "worlds:Poisoned-exception-v0", "NoSuch-v0"])
def test_the_process_is_as_before(env_id, tiny_run, module, monkeypatch):
    """After the end, after an exception and after a refusal."""
    during, start = [], module.Run.start

    def begin(*args):
        during.append(process_state())
        return start(*args)

    monkeypatch.setattr(module.Run, "start", begin)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        before = process_state()
        leaves = (ZeroDivisionError, module.RunError)
        with contextlib.nullcontext() if env_id == PLAIN else pytest.raises(leaves):
            tiny_run(env_id)
        assert process_state() == before
    finally:
        torch.set_num_threads(threads)
    if env_id != "NoSuch-v0":
        assert during[0]["threads"] == 1 and during[0]["SIGINT"] != before["SIGINT"]


# === Settings and metrics =========================================================================
def test_numpy_numbers(tiny_run, module):
    """As a search passes them: the run, args.json and the checkpoint have plain ones."""
    settings = {"total_timesteps": np.int64(60), "seed": np.uint8(1), "gamma": np.float64(0.99)}
    settings |= {"hidden_dim": np.int32(8), "max_grad_norm": np.float32(0.5)}
    results = tiny_run(PLAIN, **settings)
    same_results(results, tiny_run(PLAIN, max_grad_norm=0.5))
    about = json.loads((results["run_dir"] / "args.json").read_text())
    saved = read_checkpoint(results["run_dir"])["args"]
    for name, value in settings.items():
        assert about[name] == saved[name] == value and type(saved[name]) in (int, float)
    assert module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=np.int64(80))


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, math.nan, math.inf, 10**13, [1], 1j])
def test_a_number_of_a_wrong_kind(value, refused_run):
    """In a notebook no command line looks at it."""
    message = refused_run(PLAIN, total_timesteps=value)
    assert "--total-timesteps" in message and repr(value) in message


@each
def test_every_limit_holds(script, module, refused_run):
    """Of every number: what lies just beyond is refused by name."""
    for field in dataclasses.fields(module.Args):
        kind = module.Args.__annotations__[field.name]
        if hasattr(kind, "__metadata__"):
            ((low, high),) = kind.__metadata__
            for value in (low - 1, high + 1, math.nan):
                flag = "--" + field.name.replace("_", "-")
                assert f"{flag} must be" in refused_run(PLAIN, **{field.name: value})


@scripts(PPO)
def test_a_choice_that_does_not_exist(refused_run):
    assert "--surrogate" in refused_run(PLAIN, surrogate="klip")


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each
def test_a_metric_is_one_more_entry(tiny_run, module, monkeypatch):
    """Of what update() returns: it becomes a column, from where it first appears."""
    update = module.update

    def more(*args):
        result = update(*args)
        metrics = result[0] if isinstance(result, tuple) else result
        metrics |= {"my_number": torch.tensor(7.0), "my_batch": torch.tensor([1.0, 2.0])}
        return (metrics, *result[1:]) if isinstance(result, tuple) else metrics

    usual = metrics(tiny_run(PLAIN)["run_dir"])
    monkeypatch.setattr(module, "update", more)
    rows = metrics(tiny_run(PLAIN)["run_dir"])
    for row, expected in zip(rows, usual, strict=True):
        learnt = any(expected[name] for name in expected if name.endswith("_loss"))
        assert row.pop("my_number") == ("7.0" if learnt else "")
        assert row.pop("my_batch") == ("1.5" if learnt else "")
        assert row == expected
    assert learnt


@pytest.mark.slow_but("sac_continuous")
@pytest.mark.parametrize("number", [7, 7.0, True, np.float64(7), np.arange(3), torch.arange(3)])
def test_metrics_of_other_types(number, tiny_run, module, monkeypatch):
    """A student's line may return any number: the row has it, and the checkpoint can be read."""
    update = module.update
    monkeypatch.setattr(module, "update", lambda *args: update(*args) | {"mine": number})
    results = tiny_run(PLAIN, total_timesteps=30)
    assert float(metrics(results["run_dir"])[-1]["mine"]) == np.mean(np.asarray(number))
    assert module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=60)


@pytest.mark.parametrize("first_line", ["", "from __future__ import annotations\n"])
def test_a_flag_is_one_more_line(first_line, script, tmp_path, monkeypatch, capsys):
    """With its limits in its type: they hold on the command line and in a notebook."""
    text = Path(source(script)).read_text()
    line = '    tau_anneal_steps: Annotated[int, (1, 5)] = 2\n    """mine"""\n'
    text = text.replace('    runs_dir: str = "runs"\n', line + '    runs_dir: str = "runs"\n')
    text = text.replace("import copy\n", first_line + "import copy\n", 1)
    path = tmp_path / f"mine_{script}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)

    place = {"runs_dir": str(tmp_path / "runs"), "env_id": PLAIN}
    args = module.Args(**TINY[script] | place, tau_anneal_steps=5)
    assert "tau_anneal_steps" in read_checkpoint(module.train(args)["run_dir"])["args"]
    for wrong in (0, 6, 1.5):
        with pytest.raises(module.RunError, match=f"^--tau-anneal-steps .*1 to 5, not {wrong}"):
            module.train(dataclasses.replace(args, tau_anneal_steps=wrong))
    with pytest.raises(module.RunError, match="^--gamma"):
        module.train(dataclasses.replace(args, gamma=1.5))
    with pytest.raises(SystemExit, match="^error: --tau-anneal-steps"):
        module.main(["--tau-anneal-steps=6"])
    with pytest.raises(SystemExit):
        module.main(["--tau-anneal-steps=many"])
    assert "tau-anneal-steps" in capsys.readouterr().err


@pytest.mark.parametrize("script, flag", [(SAC, "autotune"), (PPO, "anneal-lr")])
@pytest.mark.parametrize("value", ["False", "true"])
def test_switches_as_sweep_agents_write_them(script, flag, value, tmp_path):
    flags = [*QUICK[script], "--runs-dir", tmp_path, "--env-id", PLAIN, "--total-timesteps=20"]
    main(script, *flags, f"--{flag}={value}")
    saved = torch.load(run_dir(tmp_path) / "checkpoint.pt", weights_only=True)["args"]
    assert saved[flag.replace("-", "_")] == (value.lower() == "true")
