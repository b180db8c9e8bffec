"""Whole runs: what they refuse, what stops them, what they write, store and hold on to."""

import ast
import collections
import csv
import dataclasses
import gc
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import tracemalloc
import typing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
import worlds
from helpers import OFF_POLICY, QUICK, SCRIPTS, TESTS, main, metrics, run, run_dir, same, source
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# A run of a tenth of a second.
TINY = {"env_id": "worlds:Endless-v0", "total_timesteps": 60, "hidden_dim": 8, "num_threads": 1}
TINY |= {"log_frequency": 10, "eval_frequency": 0, "eval_episodes": 1}
TINY = dict.fromkeys(OFF_POLICY, TINY | {"batch_size": 8, "learning_starts": 20}) | {
    "ppo_continuous": TINY | {"num_steps": 10, "num_minibatches": 2, "update_epochs": 1}
}
# Long enough for a second episode, whose start is a draw of the environment.
PENDULUM = {"env_id": "Pendulum-v1", "total_timesteps": 240}
PENDULUM = dict.fromkeys(OFF_POLICY, PENDULUM | {"learning_starts": 180}) | {
    "ppo_continuous": PENDULUM | {"num_steps": 60}
}

off_policy = pytest.mark.parametrize("script", OFF_POLICY, indirect=True)
one = pytest.mark.parametrize("script", ["sac_continuous"], indirect=True)
# One of each kind, where only the bookkeeping is at stake.
each_kind = pytest.mark.parametrize("script", ["sac_continuous", "ppo_continuous"], indirect=True)

worlds.register("Infinite-observation", worlds.Poisoned, 10, what="observation", value=np.inf)
worlds.register("Infinite-reward", worlds.Poisoned, 10, what="reward", value=-np.inf)
worlds.register("space/Endless", worlds.Corridor, 5)
# Here low + (high - low) is not high, for the difference is rounded.
worlds.register("Awkward", worlds.Bounds, 10, low=(-0.3, -10), high=(0.1, 0.7))


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


@pytest.fixture
def module(script):
    return importlib.import_module(script)


@pytest.fixture
def go(script, module, tmp_path):
    """Train here and now, tiny unless told otherwise, in a fresh --runs-dir."""
    numbers = itertools.count()

    def go(**settings):
        runs_dir = str(tmp_path / f"runs{next(numbers)}")
        return module.train(module.Args(**TINY[script] | {"runs_dir": runs_dir} | settings))

    return go


@pytest.fixture
def refusal(script, tmp_path, capsys):
    """Run the script as a program, in this process, with flags that it must refuse.

    Returns the message, after seeing that it is all there is and that no folder was made.
    """

    def refusal(*flags):
        with pytest.raises(SystemExit) as stop:
            main(script, *QUICK[script], "--runs-dir", tmp_path / "runs", *flags)
        assert not (tmp_path / "runs").exists()
        printed = capsys.readouterr()
        assert printed.out == ""
        if stop.value.code == 2:  # tyro's, in a box
            return re.sub(r"[\s│╭╮╰╯─]+", " ", printed.err)
        assert printed.err == "", "Python prints the message itself, and exits with status 1"
        assert stop.value.code.startswith("error: ")
        return one_line(stop.value.code)

    return refusal


@pytest.fixture
def replays(module, monkeypatch):
    """Every replay buffer that the runs of this test make."""
    if not hasattr(module, "ReplayBuffer"):
        return []
    made, original = [], module.ReplayBuffer.__init__

    def remember(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(module.ReplayBuffer, "__init__", remember)
    return made


def after_each_step(module, monkeypatch, action):
    """Call action(run) whenever the run's own work after a step is done."""
    original = module.Run.after_step

    def after_step(run):
        original(run)
        action(run)

    monkeypatch.setattr(module.Run, "after_step", after_step)


def one_line(message):
    """A message that a user can read."""
    assert isinstance(message, str) and "\n" not in message and len(message) < 500
    return message


@pytest.fixture
def failure(go, module):
    """The message of a run that ends in a RunError, as a caller in Python has it."""

    def failure(**settings):
        with pytest.raises(module.RunError) as error:
            go(**settings)
        return one_line(str(error.value))

    return failure


def checkpoint(results):
    return torch.load(results["run_dir"] / "checkpoint.pt", weights_only=True)


def same_training(a, b):
    """Two runs came to the same weights, optimizers, replay and random states."""
    states = [checkpoint(results) for results in (a, b)]
    same(*(state["parts"] for state in states))
    for name in ("generators", "step", "episodes", "episode_seed", "episode_return", "first_obs"):
        same(*(state["progress"].get(name) for state in states), name)


# === Refusals =====================================================================================
@each_kind
@pytest.mark.parametrize(
    "env_id, culprit",
    [
        ("worlds:Odd-discrete-v0", "acts in Discrete(2): actions must be continuous"),
        ("worlds:Odd-unbounded-v0", "acts in Box(-inf, inf, (2,), float32): actions need finite"),
        ("worlds:Odd-image-v0", "observes images, Box(0, 255, (8, 8, 3), uint8)"),
        ("Blackjack-v1", "observes Tuple("),
        ("worlds:Odd-dictionary-v0", "use sac_her_continuous.py"),
        ("NoSuch-v0", "`NoSuch` doesn't exist"),
        ("worlds:NoSuch-v0", "`NoSuch` doesn't exist"),
        ("Pendulum-v99", "`v1`"),
        ("Pendulum-v0", "`Pendulum-v1`"),
        ("Pendulum v1", "Malformed"),
        ("no_such_package:Env-v0", "No module named 'no_such_package'"),
        ("worlds:Endless:v0", ""),
        (":Pendulum-v1", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gymnasium's, before it refuses an age
def test_unfit_environment(env_id, culprit, refusal):
    message = refusal("--env-id", env_id)
    assert env_id in message and culprit in message


@each_kind
def test_mujoco_missing(refusal, monkeypatch):
    """The message says what to install."""
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    message = refusal("--env-id", "Hopper-v5")
    assert "Hopper-v5" in message and 'pip install "gymnasium[mujoco]"' in message


def wrong_numbers():
    """Beyond each limit of every flag, in the first script that has it; and what is no number."""
    seen = set()
    for name in SCRIPTS:
        module = importlib.import_module(name)
        for flag, kind in typing.get_type_hints(module.Args, include_extras=True).items():
            if typing.get_origin(kind) is typing.Annotated and flag not in seen:
                number, (low, high) = typing.get_args(kind)
                wrong = {int: [low - 1, high + 1, "1.5", "many"]}
                wrong[float] = [low - 0.1, high * 1.001, "nan", "inf", "much"]
                for value in wrong[number]:
                    yield name, "--" + flag.replace("_", "-"), value
                seen.add(flag)


@pytest.mark.parametrize("script, flag, value", list(wrong_numbers()), indirect=["script"])
def test_wrong_number(flag, value, refusal):
    message = refusal(flag, value)
    assert flag in message and str(value) in message


ZERO_IS_WRONG = {"total_timesteps", "num_threads", "hidden_dim", "batch_size", "buffer_size"}
ZERO_IS_WRONG |= {"policy_frequency", "num_envs", "num_steps", "update_epochs", "num_minibatches"}
SHARES = {"gamma", "tau", "gae_lambda", "per_alpha", "per_beta"}


def test_limits(module):
    """Every number has some, and they are sensible."""
    for flag, kind in typing.get_type_hints(module.Args, include_extras=True).items():
        number = typing.get_args(kind)[0] if typing.get_args(kind) else kind
        if number in (int, float):
            assert typing.get_origin(kind) is typing.Annotated, f"--{flag} has no limits"
            low, high = typing.get_args(kind)[1]
            assert low == (flag in ZERO_IS_WRONG) and (high == 1) == (flag in SHARES), flag


@one
@pytest.mark.parametrize(
    "flags",
    [
        "--batch-size 20 --buffer-size 10",
        "--device tpu",
        "--device meta",
        "--device cuda:99",
        *(
            f"--device {name}"
            for name in ("cuda", "mps")
            if not getattr(torch, name).is_available()
        ),
        "--total-timestep 10",
        "--track yes",
        "--capture-video",
        "--tensorboard",
    ],
)
def test_wrong_flag(flags, refusal):
    """The message repeats what was wrong."""
    words = set(flags.split()) - {"--track"}  # right, but it takes no such value
    message = refusal(*flags.split())
    assert all(word in message for word in words)


@one
def test_alpha_zero_cannot_be_tuned(refusal):
    assert "--no-autotune" in refusal("--alpha", 0)


@each_kind
@pytest.mark.parametrize("below", ["", "further/below"])
def test_runs_dir_that_cannot_be_made(below, refusal, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in refusal("--runs-dir", tmp_path / "file" / below)


@each_kind
def test_missing_extra(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refusal("--track")
    assert "--track" in message and "pip install wandb" in message


@each_kind
def test_track_without_an_account(failure, monkeypatch):
    import wandb

    def init(**kwargs):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", init)
    message = failure(track=True)
    assert "--track" in message and "wandb login" in message


@each_kind
def test_a_refusal_as_the_user_sees_it(script, tmp_path):
    done = run(script, "--env-id", "CartPole-v1", "--runs-dir", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: CartPole-v1 acts in Discrete(2)")
    assert not list(tmp_path.iterdir())


def test_zero_is_off(go, module):
    """Where a flag's help says so, or where nothing is a fair amount."""
    off = "eval_frequency checkpoint_frequency log_frequency max_grad_norm learning_starts alpha"
    off = dict.fromkeys(off.split(), 0) | {"autotune": False}
    off = {name: value for name, value in off.items() if hasattr(module.Args, name)}
    (row,) = metrics(go(**off)["run_dir"])
    assert row["global_step"] == "60" and row["eval_episodes"] == "1"
    assert float(row.get("alpha", 0)) == 0 and row.get("temperature_loss", "") == ""
    if hasattr(module.Args, "updates_per_step"):
        assert len(metrics(go(**off | {"updates_per_step": 0})["run_dir"])) == 1


# === What stops a run =============================================================================
@each_kind
@pytest.mark.parametrize(
    "env_id, culprit",
    [
        ("worlds:Poisoned-observation-v0", "an observation"),
        ("worlds:Poisoned-reward-v0", "a reward"),
        ("Infinite-observation-v0", "an observation"),
        ("Infinite-reward-v0", "a reward"),
    ],
)
def test_poison(env_id, culprit, script, failure, tmp_path):
    """The 30th step is named, and none of it is in the checkpoint, which is of the last whole one.

    An environment that serves evaluation too has made ten steps by then.
    """
    message = failure(env_id=env_id, checkpoint_frequency=10)
    assert f"{env_id}: {culprit} is not finite" in message
    saved = checkpoint({"run_dir": run_dir(tmp_path / "runs0")})
    assert saved["progress"]["step"] == (19 if script in OFF_POLICY else 20)
    for name, part in saved["parts"].items():
        if not name.endswith("optimizer"):
            assert all(value.isfinite().all() for value in part.values() if torch.is_tensor(value))


@pytest.mark.parametrize(
    "script, resets, step, kept",
    [
        ("sac_continuous", 2, 0, None),  # the first reset is an evaluation's
        ("sac_continuous", 4, 10, 9),
        ("ppo_continuous", 3, 5, 0),
        ("ppo_continuous", 5, 15, 10),
    ],
    indirect=["script"],
)
def test_poison_at_a_reset(resets, step, kept, failure, monkeypatch, tmp_path):
    original, calls = worlds.Corridor.reset, itertools.count(1)

    def reset(self, **kwargs):
        obs, info = original(self, **kwargs)
        return (obs * np.nan if next(calls) == resets else obs), info

    monkeypatch.setattr(worlds.Corridor, "reset", reset)
    message = failure()
    assert "worlds:Endless-v0: an observation is not finite" in message
    if kept is not None:
        assert checkpoint({"run_dir": run_dir(tmp_path / "runs0")})["progress"]["step"] == kept


@each_kind
def test_poison_in_an_evaluation(script, failure):
    """10 steps of evaluation before training are safe, and these; later ones are not."""
    steps = {"total_timesteps": 10 if script in OFF_POLICY else 20}
    message = failure(env_id="worlds:Poisoned-reward-v0", eval_episodes=4, **steps)
    assert "worlds:Poisoned-reward-v0: a reward is not finite" in message


@pytest.mark.parametrize(
    "script, name, step",
    [("sac_continuous", "critic_loss", 21), ("ppo_continuous", "value_loss", 10)],
    indirect=["script"],
)
def test_poisoned_loss(name, step, failure, module, monkeypatch):
    """It is named when it is logged, here after the first updates."""
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: original(*args) * np.nan)
    message = failure(log_frequency=1)
    assert re.search(f"step {step}: .*_loss is not finite", message)


@each_kind
def test_a_fault_of_the_environment_keeps_its_traceback(go, script, tmp_path):
    with pytest.raises(ZeroDivisionError, match="a fault of the environment's own") as fault:
        go(env_id="worlds:Poisoned-exception-v0", checkpoint_frequency=10)
    assert fault.traceback[-1].path.name == "worlds.py"
    folder = run_dir(tmp_path / "runs0")
    off_policy = script in OFF_POLICY  # its environment has made ten steps of evaluation
    assert checkpoint({"run_dir": folder})["progress"]["step"] == (19 if off_policy else 20)
    assert [row["global_step"] for row in metrics(folder)] == (
        ["10"] if off_policy else ["10", "20"]
    )


# === Random numbers ===============================================================================
def test_same_seed_same_run(go, script):
    first, second = go(**PENDULUM[script]), go(**PENDULUM[script])
    same_training(first, second)
    assert metrics(first["run_dir"]) == metrics(second["run_dir"])


@off_policy
def test_another_seed_another_run(go, replays):
    """It changes the environment's draws and PyTorch's: here the initial weights, and an action."""
    weights = [
        go(env_id="Pendulum-v1", seed=seed, total_timesteps=1)["actor"].state_dict()
        for seed in (1, 2)
    ]
    for name, weight in weights[0].items():
        assert not torch.equal(weight, weights[1][name])
    one, two = (replay.gather(torch.tensor([0])) for replay in replays)
    assert not torch.equal(one.obs, two.obs) and not torch.equal(one.action, two.action)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_frequency": 35, "eval_episodes": 2},
        {"log_frequency": 0},
        {"log_frequency": 1},
        {"checkpoint_frequency": 9},
        {"eval_episodes": 0},
    ],
    ids=str,
)
def test_watching_does_not_disturb(settings, go, script):
    """Evaluation, metrics and checkpoints draw no random number of the training run."""
    same_training(go(**PENDULUM[script]), go(**PENDULUM[script] | settings))


def test_evaluations_start_alike_whatever_the_seed(go, script, module, monkeypatch):
    original, starts = module.evaluate, []

    def evaluate(*args):
        trajectories = original(*args)
        starts.append(np.stack([trajectory[0][0] for trajectory in trajectories]))
        return trajectories

    monkeypatch.setattr(module, "evaluate", evaluate)
    for seed in (1, 2):
        go(**PENDULUM[script], seed=seed, eval_frequency=120, eval_episodes=3)
    assert [len(start) for start in starts] == [1, 3, 3] * 2, "one before training"
    assert len(np.unique(starts[1], axis=0)) == 3, "episodes differ from each other"
    for others in starts:
        np.testing.assert_array_equal(starts[1][: len(others)], others)


# === Standing alone ===============================================================================
FINAL = re.compile(
    r"final eval_return_mean=(?P<mean>\S+) eval_return_std=(?P<std>\S+) eval_episodes=(?P<n>\d+)"
    r".* global_step=(?P<step>\d+) seconds=(?P<seconds>\S+) run_dir=(?P<run_dir>.+)"
)


def test_a_copy_runs_alone(script, module, tmp_path):
    """Under any name, in an empty folder; and a process of its own comes to the same weights."""
    name = "my homework.py"
    shutil.copy(source(script), tmp_path / name)
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": without, "capture_output": True, "text": True}
    flags = [*QUICK[script], "--seed", "3"]
    done = subprocess.run([sys.executable, name, *flags], timeout=120, **options)
    assert done.returncode == 0, done.stderr

    final = FINAL.fullmatch(done.stdout.splitlines()[-1])
    assert final, done.stdout
    folder = tmp_path / final["run_dir"]
    last = metrics(folder)[-1]
    assert folder == run_dir(tmp_path / "runs") and "my-homework" in folder.name
    assert (final["step"], final["n"]) == ("240", "1") and float(final["seconds"]) > 0
    assert final["mean"] == last["eval_return_mean"] and final["std"] == last["eval_return_std"]

    args = tyro.cli(module.Args, args=[*flags, "--runs-dir", str(tmp_path / "here")])
    same_training(module.train(args), {"run_dir": folder})


def text(script):
    return Path(source(script)).read_text(encoding="utf-8")


def declared(script):
    """The script's PEP 723 block."""
    block = re.search(r"(?ms)^# /// script\n(.*?)^# ///$", text(script))[1]
    return tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))


def test_declared_requirements(script):
    """Every pin of requirements.txt is within the block's ranges, torch's the very same."""
    block = declared(script)
    assert SpecifierSet(block["requires-python"]).contains(platform.python_version())
    ranges = {r.name: r.specifier for r in map(Requirement, block["dependencies"])}
    lines = (TESTS.parent / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {pin.name: str(pin.specifier) for pin in pins}
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        assert pin.startswith("==") and ranges[name].contains(pin[2:]), name
    assert str(ranges["torch"]) == pins["torch"]


def test_imports_are_declared(script):
    known = {Requirement(line).name for line in declared(script)["dependencies"]}
    known |= sys.stdlib_module_names
    for node in ast.parse(text(script)).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= known


def test_help_shows_every_flag(script, module):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"[\s│]+", "", done.stdout)
    tree = ast.parse(text(script))
    (body,) = (node.body for node in tree.body if getattr(node, "name", "") == "Args")
    assert len(body) == 2 * len(dataclasses.fields(module.Args)), "every flag has its text"
    for field, about in zip(body[::2], body[1::2], strict=True):
        assert "--" + field.target.id.replace("_", "-") in shown
        assert re.sub(r"\s+", "", about.value.value) in shown


# === What a run leaves ============================================================================
FIRST = ["global_step", "seconds", "sps", "episodes", "episodic_return", "episodic_length"]
LAST = ["eval_return_mean", "eval_return_std", "eval_episodes"]


def table(results):
    """The header of metrics.csv, and its rows as they are."""
    with open(results["run_dir"] / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@off_policy
def test_header_grows_to_the_right(go, module):
    """A column of the script's own is added when there is something to fill in, and never goes."""
    bias = ["q_bias"] if hasattr(module, "q_bias") else []  # of evaluation
    for settings in ({"updates_per_step": 0}, {"learning_starts": 100}, {}):
        header, rows = table(go(**settings))
        assert header[:9] == [*FIRST, *LAST] and len(set(header)) == len(header)
        assert {len(row) for row in rows} == {len(header)}
        if settings:
            assert header[9:] == bias
        else:
            assert {"critic_loss", "actor_loss", *bias} < set(header[9:])


@off_policy
def test_rows(go):
    """One whenever a row or an evaluation is due and one at the end, none twice."""
    results = go(log_frequency=9, eval_frequency=12, total_timesteps=40)
    rows, own = metrics(results["run_dir"]), table(results)[0][9:]
    assert [int(row["global_step"]) for row in rows] == [9, 12, 18, 24, 27, 36, 40]
    for row in rows:
        step = int(row["global_step"])
        evaluated = step % 12 == 0 or step == 40
        assert row["eval_return_mean"] == ("5.0" if evaluated else "")
        for name in own:
            assert (row[name] != "") == (evaluated if name == "q_bias" else step > 20), name
        assert all(math.isfinite(float(row[name])) for name in own if row[name])


@pytest.mark.parametrize("every", [3, 10])
@pytest.mark.parametrize("world", ["Endless", "Ending", "Both"])
def test_every_episode_is_counted(world, every, go):
    """Whether it was cut, terminated or both: each has 5 steps of reward 1."""
    before = 0
    for row in metrics(go(env_id=f"worlds:{world}-v0", log_frequency=every)["run_dir"]):
        episodes = int(row["episodes"])
        assert episodes == int(row["global_step"]) // 5
        expected = ("5.0", "5.0") if episodes > before else ("", "")
        assert (row["episodic_return"], row["episodic_length"]) == expected
        before = episodes
    assert before == 12


@one
def test_metrics_are_on_disk_at_once(go, module, monkeypatch):
    """What a killed run would leave: every row that was due."""
    seen = []
    after_each_step(module, monkeypatch, lambda run: seen.append(len(metrics(run.dir))))
    go()
    assert seen == [step // 10 for step in range(1, 61)]


@each_kind
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other;columns\n")])
def test_a_table_that_is_lost_comes_back_whole(damage, go, module, monkeypatch):
    """Deleted, it is written anew with its header; else, where the run is resumed."""
    whole = go()
    deleted = damage is Path.unlink

    def damage_once(run):
        if run.step == 40:
            damage(run.dir / "metrics.csv")

    with monkeypatch.context() as patch:
        after_each_step(module, patch, damage_once)
        results = go(total_timesteps=60 if deleted else 40)
    if not deleted:
        module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=60)
    assert table(results)[0] == table(whole)[0]
    steps = [[row["global_step"] for row in metrics(r["run_dir"])] for r in (results, whole)]
    assert steps[0] == steps[1] == ["10", "20", "30", "40", "50", "60"]
    if deleted:
        assert metrics(results["run_dir"]) == metrics(whole["run_dir"])


@each_kind
def test_a_table_that_is_locked_where_the_run_ends(go, module, monkeypatch, capsys):
    """As by a spreadsheet. Its rows are kept: resumed, the run writes them."""
    whole, numbers = metrics(go()["run_dir"]), itertools.count(1)

    def deny(path, *args, **kwargs):
        if Path(path).name == "metrics.csv" and next(numbers) > 5:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", deny, raising=False)
        folder = go()["run_dir"]
    assert capsys.readouterr().out.count("metrics.csv cannot be written now") == 2
    assert metrics(folder) == whole[:4]
    module.resume(str(folder / "checkpoint.pt"))
    assert [row["global_step"] for row in metrics(folder)] == ["10", "20", "30", "40", "50", "60"]


@each_kind
def test_args_json(go, script, module, tmp_path):
    results = go(seed=7, gamma=0.5)
    about = json.loads((results["run_dir"] / "args.json").read_text())
    settings = TINY[script] | {"seed": 7, "gamma": 0.5, "runs_dir": str(tmp_path / "runs0")}
    assert dataclasses.asdict(module.Args(**settings)).items() <= about.items()
    for package in (torch, gym, np):
        assert about[package.__name__] == package.__version__
    assert about["python"] == sys.version and about["platform"] == platform.platform()
    assert about["cores"] == os.cpu_count()


@each_kind
@pytest.mark.parametrize("env_id", ["worlds:Endless-v0", "space/Endless-v0"])
def test_folder_names_are_safe_everywhere(env_id, go, script, tmp_path):
    name = run_dir(tmp_path / "runs0").name if go(env_id=env_id, seed=12) else ""
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert "Endless-v0" in name and script in name and "__12__" in name


@each_kind
def test_no_run_writes_into_anothers_folder(go, failure, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    first = go(runs_dir=str(tmp_path))
    before = {path: path.read_bytes() for path in first["run_dir"].iterdir()}
    assert str(first["run_dir"]) in failure(runs_dir=str(tmp_path))
    assert before == {path: path.read_bytes() for path in first["run_dir"].iterdir()}


@each_kind
def test_two_runs_in_one_second(go, monkeypatch, tmp_path):
    """A thousandth of it apart, as a loop in a shell starts them."""
    times = itertools.count(1_000_000_000_250)
    monkeypatch.setattr(time, "time", lambda: next(times) / 1000)
    folders = [go(runs_dir=str(tmp_path))["run_dir"] for _ in "ab"]
    assert folders[0] != folders[1] and sorted(tmp_path.iterdir()) == sorted(folders)


def test_what_train_returns(go, script, module, tmp_path):
    """What a notebook needs: the evaluation, where the files are, and the actor."""
    results = go(**PENDULUM[script], eval_episodes=2)
    expected = {*LAST, "global_step", "seconds", "run_dir", "agent", "actor"}
    expected |= {"q_bias"} & results.keys()
    assert results.keys() == expected and results["actor"] is results["agent"].actor
    assert results["run_dir"] == run_dir(tmp_path / "runs0")
    assert results["global_step"] == 240 and results["eval_episodes"] == 2
    args = module.Args(**TINY[script] | PENDULUM[script] | {"eval_episodes": 2})
    trajectories = module.evaluate(results["actor"], module.make_env("Pendulum-v1"), args)
    returns = [sum(step[2] for step in trajectory) for trajectory in trajectories]
    assert results["eval_return_mean"] == np.mean(returns)
    assert results["eval_return_std"] == np.std(returns)


@one
def test_track_offline(go, module, monkeypatch, tmp_path):
    """Without an account, and without a file outside the run's folder."""
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # of an earlier test, which would keep its settings
    plain, tracked = go(), go(track=True)
    same_training(plain, tracked)
    (file,) = tmp_path.rglob("*.wandb")
    assert tracked["run_dir"] in file.parents
    written = file.read_bytes()
    assert all(name.encode() in written for name in table(plain)[0][9:])


# === What is stored, and what the environment is given ============================================
@off_policy
@pytest.mark.parametrize("capacity", [1000, 23])
@pytest.mark.parametrize("world", ["Endless", "Ending", "Both"])
def test_stored_transitions(world, capacity, go, replays):
    """None crosses an episode, and only a true end is stored as one."""
    go(env_id=f"worlds:{world}-v0", buffer_size=capacity)
    (replay,) = replays
    assert len(replay) == min(60, capacity)
    stored = replay.gather(torch.arange(len(replay)))
    assert torch.equal(stored.next_obs, stored.obs + 1)
    assert set(stored.obs.flatten().tolist()) == {0, 1, 2, 3, 4}
    ends = stored.next_obs[:, 0] == 5
    assert torch.equal(stored.terminated, ends.float() * (world != "Endless"))
    assert (stored.reward == 1).all()


@off_policy
@pytest.mark.parametrize("world", ["PendulumBounds", "UnitInterval", "Lopsided"])
def test_actions_span_their_range(world, go, module, replays, monkeypatch):
    """Warm-up and policy alike, dimension by dimension; what is stored is what was done."""
    monkeypatch.setattr(worlds.Bounds, "seen", [])
    total, warm_up = 900, 300
    env_id = f"worlds:{world}-v0"
    go(env_id=env_id, total_timesteps=total, learning_starts=warm_up, updates_per_step=0.05)
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


@pytest.mark.parametrize("world, dtype", [("Double", np.float64), ("Whole", np.int64)])
def test_observations_of_other_types(world, dtype, go, replays):
    """They work, and every tensor that enters a network or a layer of one is float32."""
    assert gym.make(f"worlds:{world}-v0").observation_space.dtype == dtype
    entered = collections.Counter()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: entered.update((type(module).__name__, x.dtype) for x in inputs)
    )
    with hook:
        go(env_id=f"worlds:{world}-v0")
    names, dtypes = zip(*entered, strict=True)
    assert set(dtypes) == {torch.float32} and {"Actor", "Linear"} <= set(names)
    if replays:
        assert set(replays[0].gather(torch.arange(60)).obs.flatten().tolist()) == set(range(7))


# === What is held =================================================================================
def held(run=None):
    """How much of everything that could pile up there is now."""
    gc.collect()
    counts = {"bytes": tracemalloc.get_traced_memory()[0], "threads": threading.active_count()}
    counts["tensors"] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    if os.path.isdir("/dev/fd"):  # not on Windows
        counts["files"] = len(os.listdir("/dev/fd"))
    state = vars(run) if run else {}
    lists = {name: len(x) for name, x in state.items() if isinstance(x, (list, dict))}
    lists.pop("rows", 0)  # of metrics.csv: they are kept, in case that it cannot be written
    return counts | lists


@each_kind
def test_thousands_of_short_episodes_leave_nothing(go, module, monkeypatch):
    """Memory, threads, open files and the lists of the run are as after the first thousand."""
    samples = []

    def watch(run):
        if run.step in (1000, 3000):
            samples.append(held(run))

    after_each_step(module, monkeypatch, watch)
    settings = {"log_frequency": 1000, "eval_frequency": 1000, "checkpoint_frequency": 500}
    tracemalloc.start()
    try:
        rare = {"updates_per_step": 0.02} if hasattr(module.Args, "updates_per_step") else {}
        go(env_id="worlds:OneStep-v0", total_timesteps=3100, **rare, **settings)
    finally:
        tracemalloc.stop()
    before, after = samples
    assert after.pop("bytes") - before.pop("bytes") < 16 * 2000, "16 bytes per episode"
    assert after == before


@each_kind
def test_runs_close_what_they_opened(go):
    def both():
        go(eval_frequency=20)
        with pytest.raises(ZeroDivisionError):
            go(eval_frequency=20, env_id="worlds:Poisoned-exception-v0")
        return held()

    both()
    assert both() == both()


# === Updates ======================================================================================
@off_policy
def test_updates_happen(go):
    """Every tensor of every network moves, and without an update none does."""
    start, still, learnt = (
        torch.load(go(**settings)["run_dir"] / "model.pt", weights_only=True)
        for settings in ({"total_timesteps": 1}, {"updates_per_step": 0}, {})
    )
    same(start, still)
    for name, weight in learnt.items():
        assert not torch.equal(weight, start[name]), name


@off_policy
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_each_target_follows_its_own_network(tau, go, module):
    """At tau 1 they are equal after an update, at tau 0 the targets are where they began."""
    each = {"policy_frequency": 1} if hasattr(module.Args, "policy_frequency") else {}
    start = checkpoint(go(total_timesteps=1))["parts"]["agent"]
    weights = checkpoint(go(tau=tau, **each))["parts"]["agent"]
    targets = [name for name in weights if "_target." in name]
    assert targets
    for name in targets:
        own = name.replace("_target.", ".")
        assert torch.equal(weights[name], weights[own] if tau else start[own])
        assert not torch.equal(weights[own], start[own])


@off_policy
@pytest.mark.parametrize("rate, expected", [(0.5, 22), (0.25, 11), (2, 90), (3, 135), (0.3, 13)])
def test_updates_per_step(rate, expected, go, module, monkeypatch):
    """floor(45 rate) in 45 learning steps, spread evenly, each on a batch of its own."""
    updates, batches, counted = [], [], []
    original_gather, original_update = module.ReplayBuffer.gather, module.update

    def gather(*args):
        batches.append(original_gather(*args))
        return batches[-1]

    def update(*args):
        updates.append(original_update(*args))
        return updates[-1]

    monkeypatch.setattr(module.ReplayBuffer, "gather", gather)
    monkeypatch.setattr(module, "update", update)
    after_each_step(module, monkeypatch, lambda run: counted.append(len(updates)))
    go(learning_starts=15, updates_per_step=rate)
    assert counted == [math.floor(max(step - 15, 0) * rate) for step in range(1, 61)]
    assert counted[-1] == len(batches) == expected
    for first, second in itertools.pairwise(batches):
        assert not torch.equal(first.action, second.action)


ZEN = {"avx512_bf16": True, "amx_bf16": False}


def exact(a, b):
    return torch.matmul(a.double(), b.double()).to(a.dtype)


def coarse(a, b):
    """As in bfloat16, where the numbers are float32."""
    few = a.dtype == torch.float32
    return exact(a.bfloat16().float(), b.bfloat16().float()) if few else exact(a, b)


@off_policy
@pytest.mark.parametrize(
    "has, threads, product, asked",
    [
        (ZEN, 1, exact, "bf16"),
        (ZEN, 1, coarse, "none"),
        (ZEN, 2, exact, "none"),
        (ZEN | {"amx_bf16": True}, 1, exact, "none"),
        ({}, 1, exact, "none"),
    ],
)
def test_who_multiplies(has, threads, product, asked, module, monkeypatch):
    """oneDNN for a single thread, and only where that is float32; afterwards all is as before."""
    matmul, before = torch.backends.mkldnn.matmul, torch.get_num_threads()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    with module.processor_settings(threads):
        assert matmul.fp32_precision == asked and torch.get_num_threads() == threads
    assert matmul.fp32_precision == "none" and torch.get_num_threads() == before


@one
def test_without_the_choice(module, monkeypatch):
    """PyTorch before 2.9 has none: nothing is asked, and nothing fails."""
    monkeypatch.delattr(type(torch.backends.mkldnn), "matmul", raising=False)
    monkeypatch.delattr(torch.backends.mkldnn, "matmul", raising=False)
    assert not hasattr(torch.backends.mkldnn, "matmul")
    with module.processor_settings(1):
        assert torch.get_num_threads() == 1


@one
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_exact_to_float32(threads, module):
    """On this machine. In bfloat16 the error would be a thousand times as large."""
    with module.processor_settings(threads):
        a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1))
        assert (a @ b - a.double() @ b.double()).abs().max() < 2e-4


@each_kind
def test_num_threads(go, module, monkeypatch):
    """As many as was asked for, and afterwards as before."""
    before, seen = torch.get_num_threads(), []
    after_each_step(module, monkeypatch, lambda run: seen.append(torch.get_num_threads()))
    for threads in (1, 3):
        go(num_threads=threads, total_timesteps=10)
        assert seen.pop() == threads
        assert torch.get_num_threads() == before
