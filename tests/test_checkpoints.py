"""A run that was stopped, however rudely, goes on as if it never had been.

And a file that is not an intact checkpoint is refused in one line, with nothing of it executed.
"""

import contextlib
import copy
import errno
import functools
import importlib
import multiprocessing
import os
import pickle
import pkgutil
import random
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from helpers import (
    OFF_POLICY,
    QUICK,
    main,
    metrics,
    night,
    read_checkpoint,
    run,
    run_dir,
    same,
    slow,
    train,
)
from processes import (
    FORKS,
    PPO,
    at_call,
    begin,
    contents,
    die,
    half,
    posix,
    refusal,
    refused,
    same_run,
    wait,
)

# The bookkeeping of the off-policy scripts is one text: what it does is shown on one of them, and
# that its parts and draws are all that there are, on each. PPO's is its own: it goes on from an
# iteration's end with new episodes, so that only what does not depend on these can be compared.
ONE = ["sac_continuous"]
BOTH = [*ONE, PPO]

one = pytest.mark.parametrize("script", ONE)
both = pytest.mark.parametrize("script", BOTH)
each = pytest.mark.parametrize("script", OFF_POLICY)

SIGNALS = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]


CHANGING = "--env-id=worlds:Changing-v0"


def wait_for_rows(process: Any, log: Path, folder: Path, number: int) -> None:
    """Wait until the run has begun, or begun again, and logged so many rows."""

    def count() -> int:
        return sum(file.read_bytes().count(b"\n") for file in folder.glob("*/metrics.csv"))

    wait(process, log, lambda: "replay takes" in log.read_text())
    number += count()
    wait(process, log, lambda: count() >= number)


def finished(script: str, folder: Path, *flags: Any) -> Path:
    """The folder of a run to the end."""
    main(script, *QUICK[script], *flags, "--runs-dir", folder)
    return run_dir(folder)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same of a run that nothing interrupts, made once for each script and flags."""
    return functools.cache(
        lambda script, *flags: finished(script, tmp_path_factory.mktemp("expected"), *flags)
    )


def stopped_at(step: int, folder: Path, out: str) -> Path:
    """The checkpoint of this step, to which the last line of the output points."""
    path = run_dir(folder) / "checkpoint.pt"
    assert out.splitlines()[-1] == f"stopped at step {step}: --resume {path}"
    assert read_checkpoint(path.parent)["progress"]["step"] == step
    return path


# === Stopped =====================================================================================
@pytest.mark.parametrize(
    "script, env_id, steps, kills",
    [
        pytest.param(*ONE, "Pendulum-v1", 500, 12, marks=slow),
        pytest.param(*ONE, "Hopper-v5", 400, 3, marks=slow),
        pytest.param(*ONE, "HalfCheetah-v5", 400, 3, marks=night),
        *(
            pytest.param(script, env_id, 400, 2, marks=night)
            for script in OFF_POLICY[1:]
            for env_id in ("Pendulum-v1", "Hopper-v5")
        ),
    ],
)
def test_killed_at_random_moments(
    script: str, env_id: str, steps: int, kills: int, tmp_path: Path, expected: Callable
) -> None:
    """One run, killed again and again, ends like the one that never was."""
    if env_id != "Pendulum-v1":
        pytest.importorskip("mujoco")
    flags = [f"--env-id={env_id}", f"--total-timesteps={steps}", "--log-frequency=1"]
    flags += ["--checkpoint-frequency=10", "--eval-frequency=150"]
    dice = random.Random(kills)
    for life in range(kills if FORKS else 3):
        log = tmp_path / f"log-{life}"
        # Killed before its first checkpoint, a run begins again, elsewhere.
        folder = next((path.parents[1] for path in tmp_path.glob("*/*/checkpoint.pt")), None)
        resume = folder and ["--resume", run_dir(folder) / "checkpoint.pt"]
        folder = folder or tmp_path / f"life-{life}"
        process = begin(script, log, *(resume or [*QUICK[script], *flags, "--runs-dir", folder]))
        wait_for_rows(process, log, folder, dice.randrange(2 * steps // kills // 3))
        time.sleep(dice.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode not in (0, 1), log.read_text()
    main(script, "--resume", run_dir(folder) / "checkpoint.pt")
    same_run(run_dir(folder), expected(script, *flags))


WRITES = [("torch", "save"), ("os", "fsync"), ("os", "replace")]  # once per file, in this order


@both
@pytest.mark.parametrize("number", [3, 4], ids=["model", "checkpoint"])
@pytest.mark.parametrize("owner, name", WRITES)
@pytest.mark.slow
def test_killed_while_writing(
    script: str, owner: str, name: str, number: int, tmp_path: Path, expected: Callable
) -> None:
    """In the second checkpoint's middle the first is still whole, and the run goes on from it."""
    before = functools.partial(die, owner, name, number)
    flags, log = ["--checkpoint-frequency=100"], tmp_path / "log"
    folder = tmp_path / "killed"
    process = begin(script, log, *QUICK[script], *flags, "--runs-dir", folder, before=before)
    process.join()
    assert process.exitcode not in (0, 1), log.read_text()
    assert read_checkpoint(run_dir(folder))["progress"]["step"] == 100
    assert [*run_dir(folder).glob("*.tmp")]
    main(script, "--resume", run_dir(folder) / "checkpoint.pt")
    same_run(run_dir(folder), expected(script, *flags))


@pytest.mark.parametrize("script, call, step", [(*ONE, 4, 60), (PPO, 2, 20)])
@pytest.mark.slow
def test_killed_while_rewriting_metrics(
    script: str, call: int, step: int, tmp_path: Path, expected: Callable
) -> None:
    """The first update brings new columns: the file is emptied, and at that moment the run dies."""
    flags, log = ["--checkpoint-frequency=20"], tmp_path / "log"
    folder = tmp_path / "killed"
    before = functools.partial(die, "csv", "DictWriter", call)
    process = begin(script, log, *QUICK[script], *flags, "--runs-dir", folder, before=before)
    process.join()
    assert process.exitcode not in (0, 1), log.read_text()
    assert read_checkpoint(run_dir(folder))["progress"]["step"] == step
    assert (run_dir(folder) / "metrics.csv").read_bytes() == b""
    main(script, "--resume", run_dir(folder) / "checkpoint.pt")
    same_run(run_dir(folder), expected(script, *flags))


@pytest.mark.slow
@posix
@one
def test_signals(script: str, tmp_path: Path, expected: Callable) -> None:
    """SIGTERM, SIGINT, SIGHUP: a checkpoint within five seconds, and a line how to go on."""
    flags, folder = ["--total-timesteps=900", "--log-frequency=1"], tmp_path / "stopped"
    resume = [*QUICK[script], *flags, "--runs-dir", folder]
    for life, number in enumerate(SIGNALS):
        log = tmp_path / f"log-{life}"
        process = begin(script, log, *resume)
        wait_for_rows(process, log, folder, 70)
        os.kill(process.pid, number)
        process.join(5)
        *_, line = log.read_text().splitlines()
        step = read_checkpoint(run_dir(folder))["progress"]["step"]
        assert process.exitcode == 1 and "Traceback" not in log.read_text()
        assert line == f"stopped at step {step}: --resume {run_dir(folder) / 'checkpoint.pt'}"
        resume = line[line.index("--resume") :].split(maxsplit=1)
    main(script, *resume)
    same_run(run_dir(folder), expected(script, *flags))


@pytest.mark.slow
@posix
@one
def test_signal_in_an_endless_evaluation(script: str, tmp_path: Path) -> None:
    """It does not wait for the evaluation to end."""
    flags = ["--checkpoint-frequency=100", "--eval-frequency=100", "--eval-episodes=10_000"]
    log, folder = tmp_path / "log", tmp_path / "stopped"
    process = begin(script, log, *QUICK[script], *flags, "--runs-dir", folder)
    wait(process, log, lambda: [*folder.glob("*/checkpoint.pt")])  # what comes before it
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(5)
    ended = process.exitcode
    process.kill()
    assert ended == 1 and log.read_text().splitlines()[-1].startswith("stopped at step 100: ")
    assert "100" not in [row["global_step"] for row in metrics(run_dir(folder))]


# Before it trains, a run plays one episode of 200 steps.
FIRST = 200
STEP, RESET, UPDATE = (PendulumEnv, "step"), (PendulumEnv, "reset"), (torch, "randint")


@one
@pytest.mark.parametrize(
    "where, call, step, flags",
    [
        (STEP, FIRST + 1, 0, []),  # the very first
        (STEP, FIRST + 31, 30, []),  # while warming up
        (STEP, FIRST + 134, 133, []),
        (STEP, FIRST + 141, 140, []),  # after a step that is logged
        (STEP, FIRST + 200, 199, []),  # an episode's last
        (RESET, 3, 199, []),  # between two episodes
        (STEP, FIRST + 201, 200, []),  # an episode's first
        (STEP, FIRST + 214, 213, []),  # in the second episode
        (STEP, FIRST + 240, 239, []),  # the run's last
        (STEP, FIRST + 300, 240, []),  # in the last evaluation
        (STEP, FIRST + 150, 100, ["--eval-frequency=100"]),  # in another
        (STEP, FIRST + 150, 100, ["--eval-frequency=100", "--checkpoint-frequency=50"]),
        (STEP, FIRST + 231, 230, ["--buffer-size=180"]),  # replay has begun to forget
        (STEP, FIRST + 134, 133, ["--updates-per-step=0.5", "--max-grad-norm=1"]),
        (UPDATE, 1 + 60, 110, []),  # it waits for the update's end
        ((os, "fsync"), 2, 100, ["--checkpoint-frequency=100"]),  # for the file's
    ],
)
@pytest.mark.slow
def test_signal_at_a_step(
    script: str,
    where: tuple[Any, str],
    call: int,
    step: int,
    flags: list,
    tmp_path: Path,
    expected: Callable,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """Wherever the signal falls the run is the same, each row is written once, in evaluation too.

    `call` counts the calls of this function, in evaluations too.
    """
    whole = expected(script, *flags)
    number = SIGNALS[call % 3]
    with monkeypatch.context() as patch:
        calls = at_call(patch, *where, call, lambda *_: signal.raise_signal(number))
        with pytest.raises(SystemExit) as stop:
            main(script, *QUICK[script], *flags, "--runs-dir", tmp_path / "stopped")
        if where == STEP:
            assert next(calls) == call + 1, "steps after the signal"
    assert stop.value.code == 1
    path = stopped_at(step, tmp_path / "stopped", capsys.readouterr().out)
    main(script, "--resume", path)
    assert "note:" not in capsys.readouterr().out
    same_run(path.parent, whole)
    logged = [row["global_step"] for row in metrics(whole)]
    assert len(set(logged)) == len(logged)


@both
@pytest.mark.parametrize("resumed", [False, True])
def test_signal_while_opening(
    script: str, resumed: bool, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Nothing has been written yet, so nothing is."""
    flags = [*QUICK[script], "--runs-dir", tmp_path / "runs"]
    if resumed:
        folder = finished(script, tmp_path / "runs", "--total-timesteps=60")
        flags = ["--resume", folder / "checkpoint.pt", "--total-timesteps=80"]
    before = contents(tmp_path)
    capsys.readouterr()
    at_call(monkeypatch, *STEP, 10, lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        main(script, *flags)
    assert stop.value.code == 1 and capsys.readouterr().out == ""
    assert contents(tmp_path) == before and (tmp_path / "runs").exists() == resumed


def interrupt_import() -> None:
    """Ctrl-C in the middle of the imports."""

    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "tqdm":
                os.kill(os.getpid(), signal.SIGINT)

    for name in [name for name in sys.modules if name.split(".")[0] == "tqdm"]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder())


@pytest.mark.slow
@posix
@both
def test_signal_while_the_libraries_load(script: str, tmp_path: Path) -> None:
    """No traceback."""
    log = tmp_path / "log"
    process = begin(script, log, *QUICK[script], "--runs-dir", tmp_path, before=interrupt_import)
    process.join()
    assert process.exitcode == -signal.SIGINT and log.read_text() == ""


def hang(owner: str, name: str, number: int) -> None:
    """At this call wait for ever, also where Ctrl-C is an exception."""

    def happen(*_: Any) -> None:
        print("it hangs")
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(1000)

    at_call(pytest.MonkeyPatch(), pkgutil.resolve_name(owner), name, number, happen)


IN_STEP = f"{PendulumEnv.__module__}:PendulumEnv", "step", FIRST + 134


@posix
@pytest.mark.parametrize(
    "script, second, where",
    [
        (*ONE, signal.SIGINT, IN_STEP),
        (*ONE, signal.SIGTERM, ("os", "fsync", 4)),  # in the second checkpoint
    ],
    ids=["step", "write"],
)
def test_second_signal(script: str, second: int, where: tuple, tmp_path: Path) -> None:
    """Where the first does not help, it ends the process at once. The last checkpoint is whole."""
    log, before = tmp_path / "log", functools.partial(hang, *where)
    flags = [*QUICK[script], "--checkpoint-frequency=100", "--runs-dir", tmp_path / "runs"]
    process = begin(script, log, *flags, before=before)
    wait(process, log, lambda: "it hangs" in log.read_text())
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.is_alive()
    os.kill(process.pid, second)
    process.join(5)
    ended = process.exitcode
    process.kill()
    assert ended == -second and "Traceback" not in log.read_text()
    assert read_checkpoint(run_dir(tmp_path / "runs"))["progress"]["step"] == 100


@posix
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
@both
def test_ignored(script: str, name: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A signal that was ignored when the script began stays ignored: nohup, and a shell's `&`."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        at_call(monkeypatch, *STEP, FIRST + 20, lambda *_: signal.raise_signal(number))
        finished(script, tmp_path, "--total-timesteps=60")
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert "global_step=60 " in capsys.readouterr().out


def fault(*_: Any) -> None:
    raise ZeroDivisionError("a fault of the environment's own")


# Replay has begun to forget, and holds the last step, which is not whole.
SHORT = ["--env-id=worlds:Regulator-v0", "--buffer-size=150"]  # episodes of 10 steps
AT_RESET = (worlds.Regulator, "reset"), 2 + 21, 209, SHORT


@pytest.mark.parametrize(
    "script, where, call, step, flags",
    [
        *((script, *AT_RESET) for script in OFF_POLICY),
        (*ONE, STEP, FIRST + 134, 133, []),
        (*ONE, STEP, FIRST + 300, 240, []),  # in the last evaluation
        (*ONE, RESET, 3, 100, ["--eval-frequency=100"]),  # in another
        (PPO, STEP, FIRST + 134, 120, []),
        (PPO, STEP, FIRST + 300, 240, []),
        (PPO, RESET, 3, 100, ["--eval-frequency=100"]),
        (PPO, (torch, "randperm"), 2 * 5 + 2, 100, []),  # in an update, whose beginning is kept
    ],
)
@pytest.mark.slow
def test_fault(
    script: str,
    where: tuple[Any, str],
    call: int,
    step: int,
    flags: list,
    tmp_path: Path,
    expected: Callable,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """It keeps its traceback, and leaves a checkpoint of the last whole step."""
    whole = expected(script, *flags)
    with monkeypatch.context() as patch:
        at_call(patch, *where, call, fault)
        with pytest.raises(ZeroDivisionError) as error:
            main(script, *QUICK[script], *flags, "--runs-dir", tmp_path)
    assert Path(error.traceback[-1].path).name == "test_checkpoints.py"
    path = stopped_at(step, tmp_path, capsys.readouterr().out)
    main(script, "--resume", path)
    assert ("note:" in capsys.readouterr().out) == (script == PPO)
    same_run(path.parent, whole)


@pytest.mark.slow
@each
def test_fault_in_an_update(
    script: str, tmp_path: Path, expected: Callable, monkeypatch: Any, capsys: Any
) -> None:
    """Half an update is no whole step: the last checkpoint stays, and it is enough."""
    flags = ["--checkpoint-frequency=50"]
    module = importlib.import_module(script)
    with monkeypatch.context() as patch:
        real = module.gradient_step
        half = lambda *args: fault(real(*args))  # noqa: E731
        arm = lambda *_: patch.setattr(module, "gradient_step", half)  # noqa: E731
        at_call(patch, module.Run, "record", 120, arm)
        with pytest.raises(ZeroDivisionError):
            train(script, *QUICK[script], *flags, "--runs-dir", tmp_path)
    assert "stopped at" not in capsys.readouterr().out
    folder = run_dir(tmp_path)
    assert read_checkpoint(folder)["progress"]["step"] == 100
    main(script, "--resume", folder / "checkpoint.pt")
    same_run(folder, expected(script, *flags))


@both
@pytest.mark.parametrize("number", sorted(set(SIGNALS)))
@pytest.mark.parametrize(
    "happen, leaves",
    [(bool, None), (signal.raise_signal, KeyboardInterrupt), (fault, ZeroDivisionError)],
    ids=["finished", "signal", "fault"],
)
def test_handlers_are_restored(
    script: str, number: int, happen: Callable, leaves: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """A notebook's own reaction to Ctrl-C is back, however train() ends."""
    seen = []

    def own(*_: Any) -> None:
        seen.append(1)

    before = signal.signal(number, own)
    try:
        if leaves:
            at_call(monkeypatch, *STEP, FIRST + 20, lambda *_: happen(number))
        with pytest.raises(leaves) if leaves else contextlib.nullcontext():
            train(script, *QUICK[script], "--total-timesteps=30", "--runs-dir", tmp_path)
        assert signal.getsignal(number) is own and not seen
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@both
def test_in_a_thread(script: str, tmp_path: Path, expected: Callable) -> None:
    """Where no signal can be caught, train() is the same."""
    flags = [*QUICK[script], "--runs-dir", tmp_path]
    thread = threading.Thread(target=train, args=(script, *flags))
    thread.start()
    thread.join()
    same_run(run_dir(tmp_path), expected(script))


# === Processes of --async-envs ====================================================================
# Python 3.12 warns where a process with threads forks.
forks = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def ppo() -> Any:
    return importlib.import_module(PPO)


@pytest.fixture
def broken(ppo: Any, tmp_path: Path) -> Callable:
    """Train with two processes; it must fail within seconds, and leave none of them."""

    def broken(error: type, *flags: Any) -> tuple[str, Path]:
        with pytest.raises(error) as failure:
            begun = time.monotonic()
            train(PPO, *QUICK[PPO], "--async-envs", "--num-envs=2", *flags, "--runs-dir", tmp_path)
        assert time.monotonic() - begun < 20
        for process in multiprocessing.active_children():
            process.join(5)
        assert multiprocessing.active_children() == []
        return str(failure.value), run_dir(tmp_path)

    return broken


def kill_a_process(*_: Any) -> None:
    process = multiprocessing.active_children()[-1]
    process.kill()
    process.join()


@forks
@pytest.mark.parametrize("where, call", [("record", 43), ("after_step", 2)])
def test_killed_process(
    where: str, call: int, ppo: Any, broken: Callable, monkeypatch: Any, capsys: Any
) -> None:
    """While nothing is asked of it: between two steps of a rollout, or in an update."""
    at_call(monkeypatch, ppo.Run, where, call, kill_a_process)
    message, folder = broken(ppo.RunError)
    assert "a process of --async-envs has ended or is stuck" in message and "\n" not in message
    stopped_at(80, folder.parent, capsys.readouterr().out)
    main(PPO, "--resume", folder / "checkpoint.pt")
    assert metrics(folder)[-1]["global_step"] == "240"


@forks
@pytest.mark.parametrize(
    "happen, leaves",
    [(fault, ZeroDivisionError)]
    + [(lambda *_, s=s: signal.raise_signal(s), KeyboardInterrupt) for s in sorted(set(SIGNALS))],
    ids=["fault", *(s.name for s in sorted(set(SIGNALS)))],
)
def test_leaving_processes(
    happen: Callable, leaves: type, ppo: Any, broken: Callable, monkeypatch: Any, capsys: Any
) -> None:
    """Whatever happens in the main process while the others work, all end; none complains."""
    at_call(monkeypatch, ppo.Workers, "step_wait", 43, happen)
    _, folder = broken(leaves)
    printed = capsys.readouterr()
    stopped_at(80, folder.parent, printed.out)
    assert "Traceback" not in printed.err


# === Resumed =====================================================================================
def notes(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("note: ")]


LONGER = "note: total_timesteps is now 240, not 110; the result may differ from here on"


@pytest.mark.slow_but("flags0")
@one
@pytest.mark.parametrize("flags", [[], ["--buffer-size=150"], ["--eval-frequency=110"]])
def test_made_longer(
    script: str, flags: list, tmp_path: Path, expected: Callable, capsys: Any
) -> None:
    """A finished run with more steps is the run of that length; it says what depends on it."""
    folder = finished(script, tmp_path, *flags, "--total-timesteps=110")
    capsys.readouterr()
    main(script, "--resume", folder / "checkpoint.pt", "--total-timesteps=240")
    out = capsys.readouterr().out
    same_run(folder, expected(script, *flags))
    assert notes(out) == [LONGER]


@pytest.mark.slow
@one
def test_finished(script: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Resumed from within its folder, a finished run says its results again, and is the same."""
    folder = finished(script, tmp_path / "run")
    copy = shutil.copytree(folder, tmp_path / "copy")
    final = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.chdir(folder)
    for _ in range(2):
        main(script, "--resume", "checkpoint.pt")
        again = capsys.readouterr().out.splitlines()[-1]
        for words in zip(final.split(), again.split(), strict=True):
            assert words[0] == words[1] or words[0].startswith("seconds=")
        same_run(folder, copy)


# What a checkpoint fixes: environment, sizes, seed and switches of the algorithm.
FIXED = {"env_id", "env_kwargs", "max_episode_steps", "seed", "hidden_dim", "buffer_size"}
FIXED |= {"autotune", "double_q", "surrogate", "norm_obs"}
FIXED |= {"alpha", "kl_coef"}  # they are learnt, and the checkpoint has their values


@pytest.mark.slow_but("sac_continuous")
@pytest.mark.parametrize("script", [*OFF_POLICY, PPO])
def test_other_settings(script: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Refused by name, each one that the checkpoint fixes; of the others, each is printed."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    path = finished(script, tmp_path, "--total-timesteps=60") / "checkpoint.pt"
    module, before, changes = importlib.import_module(script), contents(path.parent), {}
    others: dict[str, Any] = {"env_id": "worlds:Endless-v0", "env_kwargs": '{"g": 5.0}'}
    others |= {"num_steps": 40, "surrogate": "unclipped"}
    kinds = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.001}
    settings = read_checkpoint(path.parent)["args"]
    for name, value in settings.items():
        other = others.get(name, kinds.get(type(value), lambda v: v + "x")(value))
        if name in FIXED:
            with pytest.raises(module.RunError, match=rf"^--resume: {name} was .* cannot become"):
                module.resume(str(path), **{name: other})
        elif name not in ("resume", "device", "compile"):  # test_compile.py changes this one
            changes[name] = other
    with pytest.raises(module.RunError, match="device"):
        module.resume(str(path), device="cuda:99")
    assert contents(path.parent) == before

    capsys.readouterr()
    results = module.resume(str(path), **changes)
    noted = notes(capsys.readouterr().out)
    assert noted[: len(changes)] == [
        f"note: {name} is now {other}, not {settings[name]}; the result may differ from here on"
        for name, other in changes.items()
    ]
    assert len(noted) == len(changes) + (script == PPO)
    assert results["run_dir"] == path.parent and results["global_step"] > 60
    assert changes.items() <= read_checkpoint(path.parent)["args"].items()


@both
def test_other_settings_on_the_command_line(script: str, tmp_path: Path, capsys: Any) -> None:
    path = finished(script, tmp_path, "--total-timesteps=60") / "checkpoint.pt"
    before = contents(tmp_path)
    assert "seed was 1 and cannot become 2" in refusal(script, "--resume", path, "--seed=2")
    refusal(script, "--resume", path, "--total-timesteps=39")
    assert before == contents(tmp_path)
    capsys.readouterr()
    main(script, "--resume", path, "--gamma=0.5", "--num-threads=2", "--runs-dir=elsewhere")
    out = capsys.readouterr().out
    assert len(notes(out)) == 3 + (script == PPO)
    assert "note: gamma is now 0.5, not 0.99" in out and "note: num_threads is now 2, not 1" in out
    assert run_dir(tmp_path) == path.parent


@pytest.mark.slow_but("flags0")
@one
@pytest.mark.parametrize(
    "flags, length, what",
    [
        (["--env-id=worlds:Stateful-v0"], 110, ""),
        (["--env-id=worlds:Stateful-v0"], 120, ""),  # an episode's end
        (["--buffer-size=32"], 110, ""),  # replay has lost the episode's beginning
        ([CHANGING], 110, "start"),
        ([CHANGING], 120, "start"),
        ([CHANGING], 110, "observation"),
        ([CHANGING], 110, "reward"),
        ([CHANGING], 110, "terminated"),
        ([CHANGING], 110, "truncated"),
    ],
)
def test_not_put_back(
    script: str, flags: list, length: int, what: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """No seed restores this world: a note, no crash."""
    short = finished(script, tmp_path, *flags, f"--total-timesteps={length}")
    assert notes(capsys.readouterr().out) == []
    monkeypatch.setattr(worlds.Changing, "now", what)
    main(script, "--resume", short / "checkpoint.pt", "--total-timesteps=240")
    _, line = notes(capsys.readouterr().out)
    assert "cannot be put back exactly: not bit for bit from here" in line
    assert metrics(short)[-1]["global_step"] == "240"


def test_ppo_is_not_put_back(tmp_path: Path, capsys: Any) -> None:
    """It always begins new episodes, and always says so."""
    folder = finished(PPO, tmp_path, "--total-timesteps=60")
    for flags, number in ([], 1), (["--total-timesteps=80"], 2):
        capsys.readouterr()
        main(PPO, "--resume", folder / "checkpoint.pt", *flags)
        assert len(notes(out := capsys.readouterr().out)) == number
        assert "note: every environment begins a new episode: not bit for bit from here" in out


@pytest.mark.slow_but("sac_continuous")
@each
def test_contents(script: str, tmp_path: Path, expected: Callable) -> None:
    """checkpoint.pt alone goes on elsewhere; model.pt is the agent; the actor acts as it did."""
    flags = ["--per-beta=1"] if script == "td3_per_continuous" else []  # no schedule
    short = [*QUICK[script], *flags, "--total-timesteps=120", "--runs-dir", tmp_path / "short"]
    results = train(script, *short)
    folder, alone = results["run_dir"], tmp_path / "alone"
    parts = read_checkpoint(folder)["parts"]
    assert parts.keys() == {"agent", "replay"} and "actor_optimizer.t" in parts["agent"]
    model = torch.load(folder / "model.pt", weights_only=True)
    same(dict(model), dict(parts["agent"]))
    same(dict(model), dict(results["agent"].state_dict()))

    actor = importlib.import_module(script).Actor(3, 1, 16)
    actor.load_state_dict(
        {k.removeprefix("actor."): v for k, v in model.items() if k.startswith("actor.")}
    )
    observations = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 3))).float()
    assert torch.equal(actor(observations), results["actor"](observations))

    alone.mkdir()
    (folder / "checkpoint.pt").rename(alone / "checkpoint.pt")
    shutil.rmtree(folder)
    main(script, "--resume", alone / "checkpoint.pt", "--total-timesteps=240")
    same(read_checkpoint(alone)["parts"], read_checkpoint(expected(script, *flags))["parts"])


@pytest.mark.slow
@pytest.mark.parametrize("script, call", [(*ONE, 201), (PPO, 11)])
def test_poisoned_parameter(script: str, call: int, tmp_path: Path, monkeypatch: Any) -> None:
    """A parameter that is not finite is named, and not saved: the last good checkpoint is kept."""
    module, kept, names = importlib.import_module(script), {}, []

    def poison(run: Any) -> None:
        kept.update({path: path.read_bytes() for path in run.dir.glob("*.pt")})
        name, parameter = next(run.agent.actor.named_parameters())
        names.append(name)
        torch.nn.init.constant_(parameter, torch.nan)

    at_call(monkeypatch, module.Run, "mark_whole", call, poison)
    message = "^step 200: actor.*finite"
    with pytest.raises(module.RunError, match=message) as stop:
        train(script, *QUICK[script], "--checkpoint-frequency=100", "--runs-dir", tmp_path)
    assert f"actor.{names[0]} is not finite" in str(stop.value) and "\n" not in str(stop.value)
    assert len(kept) == 2
    assert kept == {path: path.read_bytes() for path in run_dir(tmp_path).glob("*.pt")}
    assert read_checkpoint(run_dir(tmp_path))["progress"]["step"] == 100


# === Full ========================================================================================
@contextlib.contextmanager
def files_of_at_most(size: int) -> Any:
    """A disk with this much room for each file."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def room_again(script: str, folder: Path, whole: Path, step: int = 120) -> Any:
    """Whatever happened, a checkpoint of this step is there, and the run goes on as it would have.

    That of step 120 is the old one, untouched.
    """
    kept = (folder / "checkpoint.pt").read_bytes()
    yield ["--resume", folder / "checkpoint.pt", "--total-timesteps=240"]
    assert ((folder / "checkpoint.pt").read_bytes() == kept) == (step == 120)
    assert read_checkpoint(folder)["progress"]["step"] == step
    assert not [*folder.glob("*.tmp")]
    main(script, "--resume", folder / "checkpoint.pt", "--total-timesteps=240")
    same_run(folder, whole)


HALF = ["--log-frequency=4", "--total-timesteps=120"]
limits = pytest.mark.skipif(os.name != "posix", reason="Windows has no limit on a file's size")


@limits
@both
@pytest.mark.parametrize(
    "name, short_of", [("checkpoint.pt", 9_000), ("checkpoint.pt", 1), ("model.pt", 1)]
)
@pytest.mark.slow
def test_full_disk(
    script: str, name: str, short_of: int, tmp_path: Path, expected: Callable
) -> None:
    """Room for all but the file's last bytes: the write fails in truth, not by a mock."""
    folder = finished(script, tmp_path / "full", *HALF)
    shutil.copytree(folder, tmp_path / "copy")
    main(script, "--resume", folder / "checkpoint.pt", "--total-timesteps=240")
    size = (folder / name).stat().st_size
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    with room_again(script, folder, expected(script, "--log-frequency=4")) as flags:
        with files_of_at_most(size - short_of):
            message = refusal(script, *flags)
    assert str(folder / name) in message and os.strerror(errno.EFBIG) in message


@pytest.mark.slow
@limits
@one
def test_full_disk_for_metrics(script: str, tmp_path: Path, expected: Callable) -> None:
    """As above, where a row of metrics.csv is what fails."""
    folder = finished(script, tmp_path, *HALF)
    with room_again(script, folder, expected(script, "--log-frequency=4")) as flags:
        with files_of_at_most((folder / "metrics.csv").stat().st_size + 9):
            message = refusal(script, *flags)
    assert "metrics.csv" in message and os.strerror(errno.EFBIG) in message


@pytest.mark.slow
@limits
@both
def test_full_disk_for_args(script: str, tmp_path: Path, expected: Callable) -> None:
    """As above, where args.json is what fails: it stays as it was."""
    folder = finished(script, tmp_path, *HALF)
    before = contents(folder)
    with room_again(script, folder, expected(script, "--log-frequency=4")) as flags:
        with files_of_at_most((folder / "args.json").stat().st_size - 9):
            message = refusal(script, *flags)
        assert contents(folder) == before
    assert str(folder) in message and os.strerror(errno.EFBIG) in message


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk for tests")
@both
def test_full_disk_for_metrics_alone(
    script: str, tmp_path: Path, expected: Callable, monkeypatch: Any, capsys: Any
) -> None:
    """There is room for a checkpoint: it is of the step whose row could not be written."""
    folder, step = finished(script, tmp_path, *HALF), 160
    calls = FIRST + (40 if script == PPO else 160)  # the first 120 are played again

    def fill(*_: Any) -> None:
        (folder / "metrics.csv").unlink()
        (folder / "metrics.csv").symlink_to("/dev/full")

    with room_again(script, folder, expected(script, "--log-frequency=4"), step) as flags:
        with monkeypatch.context() as patch:
            at_call(patch, *STEP, calls, fill)
            message = refusal(script, *flags)
        (folder / "metrics.csv").unlink()
    assert "metrics.csv" in message and os.strerror(errno.ENOSPC) in message
    assert f"stopped at step {step}: " in capsys.readouterr().out


@both
@pytest.mark.parametrize(
    "owner, name, always",
    [*((*write, True) for write in WRITES), (*WRITES[0], False)],
    ids=["save", "fsync", "replace", "once"],
)
@pytest.mark.parametrize("number", [1, 2], ids=["model", "checkpoint"])
@pytest.mark.slow
def test_failing_disk(
    script: str,
    owner: str,
    name: str,
    always: bool,
    number: int,
    tmp_path: Path,
    expected: Callable,
) -> None:
    """Whichever system call fails: one message that names the file and the cause.

    The last checkpoint stays; where there is room again, another try succeeds.
    """

    def happen(*args: Any) -> None:
        if name == "save":
            half(*args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = finished(script, tmp_path, *HALF)
    step = 120 if always else 240
    with room_again(script, folder, expected(script, "--log-frequency=4"), step) as flags:
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, importlib.import_module(owner), name, number, happen, always)
            message = refusal(script, *flags)
    assert ["model.pt", "checkpoint.pt"][number - 1] in message
    assert os.strerror(errno.ENOSPC) in message


# === Damaged, foreign, malicious =================================================================
@pytest.fixture
def good(script: str, tmp_path: Path) -> Path:
    """An intact checkpoint."""
    flags = ["--env-id=worlds:Endless-v0", "--total-timesteps=80"]
    return finished(script, tmp_path / "good", *flags) / "checkpoint.pt"


def refused_in_python(script: str, path: Path, content: dict) -> None:
    """The same for a caller of resume(), which is quicker, of a file with this content."""
    module = importlib.import_module(script)
    torch.save(content, path)
    before = contents(path.parent)
    with pytest.raises(module.RunError) as refusal:
        module.resume(str(path))
    message = str(refusal.value)
    assert "--resume" in message or "--gamma" in message
    assert "\n" not in message and len(message) < 500
    assert before == contents(path.parent)


@both
def test_truncated(script: str, good: Path) -> None:
    data = good.read_bytes()
    for length in (0, 1, 3, 100, len(data) // 2, len(data) - 100, len(data) - 22, len(data) - 1):
        good.write_bytes(data[:length])
        refused(script, good)
    good.write_bytes(data)
    main(script, "--resume", good)


@pytest.mark.slow
@one
def test_one_line_and_no_traceback(script: str, good: Path) -> None:
    """The same as a user sees it."""
    good.write_bytes(good.read_bytes()[:-1])
    process = run(script, "--resume", good)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1


@pytest.mark.slow
@both
def test_flipped_bits(script: str, good: Path) -> None:
    """One bit of fifty, thirty bytes, and each bit of a tensor's entry in the archive's directory.

    No checksum covers the directory. What is not refused is read as what it was.
    """
    module, dice = importlib.import_module(script), random.Random(1)
    data, content = good.read_bytes(), torch.load(good, weights_only=True)
    with zipfile.ZipFile(good) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
    end = data.rindex(name.encode())
    bits = [*dice.sample(range(8 * len(data)), 50), *range(8 * (end - 46), 8 * end)]
    flips = [(bit // 8, 1 << bit % 8) for bit in bits]
    flips += [(place, dice.randrange(1, 256)) for place in dice.sample(range(len(data)), 30)]
    refused_flips = set()
    for place, change in flips:
        flipped = bytearray(data)
        flipped[place] ^= change
        good.write_bytes(flipped)
        try:
            same(module.read_checkpoint(str(good)), content)
        except module.RunError as error:
            assert str(good) in str(error) and "\n" not in str(error)
            refused_flips.add((place, change))
    # This one makes the tensor a folder to PyTorch: not read, it holds what was in memory before,
    # which may well be what it was.
    assert (end - 8, 1 << 4) in refused_flips
    assert len(refused_flips) > 200
    assert len(refused_flips & set(flips[-30:])) > 20


def another_archive(path: Path, good: dict) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint/data.txt", "not ours")


def another_setting(path: Path, good: dict) -> None:
    torch.save(good | {"args": good["args"] | {"another": 1}}, path)


def a_setting_less(path: Path, good: dict) -> None:
    torch.save(good | {"args": {k: v for k, v in good["args"].items() if k != "seed"}}, path)


def a_siblings(path: Path, good: dict) -> None:
    """A sibling with the same settings has other parts."""
    parts = {k: v for k, v in good["parts"].items() if k != "agent"}
    torch.save(good | {"parts": parts}, path)


FOREIGN: dict[str, Callable] = {
    "missing": lambda path, good: path.unlink(),
    "folder": lambda path, good: (path.unlink(), path.mkdir()),
    "empty": lambda path, good: path.write_bytes(b""),
    "text": lambda path, good: path.write_text("global_step,seconds\n100,0.1\n"),
    "archive": another_archive,
    "tensor": lambda path, good: torch.save(torch.ones(3), path),
    "list": lambda path, good: torch.save([good], path),
    "networks": lambda path, good: torch.save(good["parts"]["agent"], path),
    "settings": lambda path, good: torch.save({"args": list(good["args"])}, path),
    "old": lambda path, good: torch.save(good, path, _use_new_zipfile_serialization=False),
    "another setting": another_setting,
    "a setting less": a_setting_less,
    "a sibling's": a_siblings,
}


@pytest.mark.slow_but("ppo_continuous")
@both
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign(script: str, good: Path, kind: str) -> None:
    FOREIGN[kind](good, torch.load(good, weights_only=True))
    refused(script, good)


def with_another(content: dict, place: str, value: Any) -> dict:
    """A copy in which this place, as in "progress/step", holds something else; None: nothing."""
    content = copy.deepcopy(content)
    inner, (*path, name) = content, place.split("/")
    for step in path:
        inner = inner[step]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return content


@pytest.mark.slow
@both
def test_incomplete(script: str, good: Path) -> None:
    """Without any one of its entries, or with another kind of thing in it."""
    content = torch.load(good, weights_only=True)
    places = ["rows", *(f"progress/{name}" for name in content["progress"])]
    places += [f"parts/{name}" for name in content["parts"]]
    for place in places:
        for value in (None, "a word", torch.ones(2)):
            if (place, str(value)[:6]) != ("progress/first_obs", "tensor"):
                refused_in_python(script, good, with_another(content, place, value))
    for place, value in {
        "rows": [1],
        "progress/metrics": dict.fromkeys(content["progress"]["metrics"], "a word"),
        "progress/ended": [1],
        "progress/generators": [],
        "progress/step": content["progress"]["step"] + 20,
        "args/gamma": "a word",
        "args/total_timesteps": 59,
    }.items():
        refused_in_python(script, good, with_another(content, place, value))


@both
def test_foreign_moments(script: str, good: Path) -> None:
    """Adam's numbers of another network, or not all of them, are refused like any weights."""
    content = torch.load(good, weights_only=True)
    names = [name for name in content["parts"]["agent"] if "optimizer" in name]
    assert len(names) > 20 and any(name.endswith("optimizer.t") for name in names)
    for name in (names[0], names[1], names[2], names[-1]):
        for foreign in (None, torch.zeros(5), torch.zeros(1, 1, 1)):
            refused_in_python(script, good, with_another(content, f"parts/agent/{name}", foreign))


@pytest.mark.slow_but("sac_continuous")
@each
def test_foreign_replay(script: str, good: Path) -> None:
    """One row does not become the whole table, nor does a table of another width fit."""
    content = torch.load(good, weights_only=True)
    table = content["parts"]["replay"]["table"]
    for foreign in (table[:1], table[0], table[:-1], table[:, :-1], table[:, :1]):
        refused_in_python(
            script, good, with_another(content, "parts/replay/table", foreign.clone())
        )


class Bait:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


MALICIOUS: dict[str, Callable] = {
    "archive": lambda path, content: torch.save(content, path),
    "old": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, content: path.write_bytes(pickle.dumps(content)),
}


@both
@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious(script: str, good: Path, kind: str, tmp_path: Path) -> None:
    """Nothing is executed. The bait does work: a reader that trusts the file takes it."""
    bait = Bait(tmp_path / "executed")
    MALICIOUS[kind](good, torch.load(good, weights_only=True) | {"bait": bait})
    refused(script, good)
    assert not bait.folder.exists()
    if kind == "pickle":
        pickle.loads(good.read_bytes())
    else:
        torch.load(good, weights_only=False)
    assert bait.folder.exists()
