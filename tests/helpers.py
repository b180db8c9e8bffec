"""What the test files share: starting a script as a user does, and reading what it left."""

import csv
import importlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import tyro

TESTS = Path(__file__).parent
# The tests that take a script's name run for each of these. The bookkeeping of the off-policy ones
# is the same to the letter, which tests/house/test_family.py holds; PPO's is its own.
OFF_POLICY = ["sac_continuous", "sac_v1_value_net", "td3_continuous", "ddpg_continuous"]
OFF_POLICY += ["td3_per_continuous"]
SCRIPTS = [*OFF_POLICY, "ppo_continuous"]
# A run of a second. A flag given after these wins.
ALL_QUICK = ["--num-threads=1", "--hidden-dim=16", "--total-timesteps=240", "--log-frequency=20"]
ALL_QUICK += ["--eval-frequency=0", "--eval-episodes=1"]
ROLLOUTS = ["--num-steps=20", "--num-minibatches=4", "--update-epochs=2"]
QUICK = dict.fromkeys(OFF_POLICY, [*ALL_QUICK, "--batch-size=16", "--learning-starts=50"]) | {
    "ppo_continuous": [*ALL_QUICK, *ROLLOUTS]
}


def source(script: str) -> str:
    return str(TESTS.parent / f"{script}.py")


def run(script: str, *flags: Any, **kwargs: Any) -> subprocess.CompletedProcess:
    """The script in a process of its own, which also finds worlds.py; its output as text."""
    options: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(TESTS)}, "timeout": 300}
    options |= {"capture_output": True, "text": True}
    return subprocess.run([sys.executable, source(script), *map(str, flags)], **options | kwargs)


def main(script: str, *flags: Any) -> None:
    """The script's command line in this process, which has loaded the libraries already."""
    before = signal.getsignal(signal.SIGINT)  # a script on its own leaves it to the system
    try:
        with mock.patch.object(sys, "argv", [script, *map(str, flags)]):
            runpy.run_path(source(script), run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, before)


def train(script: str, *flags: Any) -> dict[str, Any]:
    """What train() returns to a notebook that imports the script."""
    module = importlib.import_module(script)
    return module.train(tyro.cli(module.Args, args=[*map(str, flags)]))


def child(script: str, log: Path, flags: list, before: Callable = bool) -> None:
    """The body of a multiprocessing.Process that is `main`, with its output in the file `log`."""
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115  to the process's end
    before()
    main(script, *flags)


def run_dir(folder: Path) -> Path:
    """The folder of the only run below this --runs-dir."""
    (only,) = Path(folder).iterdir()
    return only


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the columns that tell the time."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "sps")} for row in rows]


def same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two contents of a checkpoint are equal bit for bit, and name what is not."""
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), f"{where}: {set(a) ^ set(b)}"
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b), f"{where}: {a} is not {b}"
        for i, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{where}: {a} is not {b}"
    else:
        assert type(a) is type(b) and a == b, f"{where}: {a!r} is not {b!r}"


# === Tiny runs ====================================================================================
# A run of a tenth of a second.
TINY: dict[str, Any] = {
    "env_id": "worlds:Endless-v0",
    "total_timesteps": 60,
    "hidden_dim": 8,
    "num_threads": 1,
}
TINY |= {"log_frequency": 10, "eval_frequency": 0, "eval_episodes": 1}
TINY = dict.fromkeys(
    [*OFF_POLICY, "sac_her_continuous"], TINY | {"batch_size": 8, "learning_starts": 20}
) | {"ppo_continuous": TINY | {"num_steps": 10, "num_minibatches": 2, "update_epochs": 1}}
# Long enough for a second episode, whose start is a draw of the environment.
PENDULUM: dict[str, Any] = {"env_id": "Pendulum-v1", "total_timesteps": 240}
PENDULUM = dict.fromkeys(OFF_POLICY, PENDULUM | {"learning_starts": 180}) | {
    "ppo_continuous": PENDULUM | {"num_steps": 60}
}


def scripts(*names: Any) -> pytest.MarkDecorator:
    """The test runs for these scripts, through the fixture `script`."""
    return pytest.mark.parametrize("script", names, indirect=True)


off_policy = scripts(*OFF_POLICY)
# One of them is for every day, and more for the night.
slow, night = pytest.mark.slow, pytest.mark.night
SEEDS = [pytest.param(1, marks=slow), pytest.param(2, marks=night), pytest.param(3, marks=night)]
three_seeds = pytest.mark.parametrize("seed", SEEDS)
one = scripts("sac_continuous")
each_kind = scripts("sac_continuous", "ppo_continuous")  # where only the bookkeeping is at stake

# The columns of metrics.csv that every script has.
FIRST = ["global_step", "seconds", "sps", "episodes", "episodic_return", "episodic_length"]
LAST = ["eval_return_mean", "eval_return_std", "eval_episodes"]


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header of metrics.csv, and its rows as they are."""
    with open(results["run_dir"] / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def read_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def same_training(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Two runs came to the same weights, optimizers, replay and random states."""
    states = [read_checkpoint(results["run_dir"]) for results in (a, b)]
    first, second = states
    same(first["parts"], second["parts"])
    for name in ("generators", "step", "episodes", "episode_seed", "episode_return", "first_obs"):
        same(first["progress"].get(name), second["progress"].get(name), name)


def after_each_step(module: ModuleType, patch: Any, action: Callable) -> None:
    """Call action(run) whenever the run's own work after a step is done."""
    original = module.Run.after_step

    def after_step(run: Any) -> None:
        original(run)
        action(run)

    patch.setattr(module.Run, "after_step", after_step)


def one_line(message: str) -> str:
    """A message that a user can read."""
    assert isinstance(message, str) and "\n" not in message and len(message) < 800
    return message
