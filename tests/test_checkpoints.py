"""A run that was stopped, however rudely, goes on as if it never had been.

And a file that is not an intact checkpoint is refused in one line, with nothing of it executed.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib
import itertools
import multiprocessing
import os
import pickle
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
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from helpers import OFF_POLICY, QUICK, child, main, metrics, run, run_dir, same, train

# The bookkeeping of the off-policy scripts is one text: what it does is shown on one of them, and
# that its parts and draws are all that there are, on each. PPO's is in test_ppo.py.
ONE = ["sac_continuous"]


def pytest_generate_tests(metafunc: Any) -> None:
    each = metafunc.function.__name__ in ("test_killed_at_random_moments", "test_contents")
    metafunc.parametrize("script", OFF_POLICY if each else ONE)


posix = pytest.mark.skipif(os.name != "posix", reason="Windows cannot catch a signal from outside")

# Forked from a server that has loaded PyTorch, a process begins at once. On macOS the system's
# libraries do not survive a fork, and Windows has none: a process costs seconds there.
FORKS = sys.platform == "linux"
PROCESSES = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    PROCESSES.set_forkserver_preload(["torch._dynamo", "gymnasium", "tyro", "tqdm", "pytest"])


def begin(script: str, log: Path, *flags: Any, before: Callable = bool) -> Any:
    log.touch()
    process = PROCESSES.Process(target=child, args=(script, log, flags, before), daemon=True)
    process.start()
    return process


def wait(process: Any, log: Path, condition: Callable[[], Any]) -> None:
    """Wait, however slow the machine is, until the condition holds or the process has ended."""
    end = time.monotonic() + 120
    while process.is_alive() and not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.005)


def wait_for_rows(process: Any, log: Path, folder: Path, number: int) -> None:
    """Wait until the run has begun, or begun again, and logged so many rows."""

    def count() -> int:
        return sum(file.read_bytes().count(b"\n") for file in folder.glob("*/metrics.csv"))

    wait(process, log, lambda: "replay takes" in log.read_text())
    number += count()
    wait(process, log, lambda: count() >= number)


def at_call(patch: Any, owner: Any, name: str, number: int, happen: Callable) -> Any:
    """Let something happen at the number-th call of owner.name, before it; return the counter."""
    real, calls = getattr(owner, name), itertools.count(1)

    def hooked(*args: Any) -> Any:
        if next(calls) == number:
            happen(*args)
        return real(*args)

    patch.setattr(owner, name, hooked)
    return calls


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same_run(a: Path, b: Path) -> None:
    """Networks, optimizers, replay, random states, counters and metrics, but for the clock's."""
    contents = checkpoint(a), checkpoint(b)
    for content in contents:
        for place in ("resume", "runs_dir"):
            del content["args"][place]
        for clock in ("seconds", "csv_size"):
            del content["progress"][clock]
    same(*contents)
    same(*(torch.load(folder / "model.pt", weights_only=True) for folder in (a, b)))
    same(metrics(a), metrics(b))
    assert not [*a.glob("*.tmp"), *b.glob("*.tmp")]


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


def refusal(script: str, *flags: Any) -> str:
    """The one line with which the script leaves instead of a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(script, *flags)
    message = stop.value.code  # Python prints a string on standard error, and exits with 1
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


# === Stopped =====================================================================================
@pytest.mark.parametrize(
    "env_id, steps, kills",
    [("Pendulum-v1", 700, 20), ("Hopper-v5", 400, 3), ("HalfCheetah-v5", 400, 3)],
)
def test_killed_at_random_moments(
    script: str, env_id: str, steps: int, kills: int, tmp_path: Path, expected: Callable
) -> None:
    """One run, killed again and again, ends like the one that never was."""
    kills = kills if script in ONE else 2
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


def half(content: Any, file: Any) -> None:
    (getattr(file, "write", None) or file.write_bytes)(b"PK\3\4 half of a checkpoint")


def die(owner: str, name: str, number: int) -> None:
    """Kill this process at the number-th call, in which torch.save gets half of its work done."""

    def happen(*args: Any) -> None:
        if name == "save":
            half(*args)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    at_call(pytest.MonkeyPatch(), importlib.import_module(owner), name, number, happen)


WRITES = [("torch", "save"), ("os", "fsync"), ("os", "replace")]  # once per file, in this order


@pytest.mark.parametrize("number", [3, 4], ids=["model", "checkpoint"])
@pytest.mark.parametrize("owner, name", WRITES)
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
    assert checkpoint(run_dir(folder))["progress"]["step"] == 100
    assert [*run_dir(folder).glob("*.tmp")]
    main(script, "--resume", run_dir(folder) / "checkpoint.pt")
    same_run(run_dir(folder), expected(script, *flags))


@posix
def test_signals(script: str, tmp_path: Path, expected: Callable) -> None:
    """SIGTERM and SIGINT: a checkpoint within five seconds, and a line that says how to go on."""
    flags, folder = ["--total-timesteps=900", "--log-frequency=1"], tmp_path / "stopped"
    resume = [*QUICK[script], *flags, "--runs-dir", folder]
    for life, number in enumerate([signal.SIGTERM, signal.SIGINT] * 2):
        log = tmp_path / f"log-{life}"
        process = begin(script, log, *resume)
        wait_for_rows(process, log, folder, 70)
        os.kill(process.pid, number)
        process.join(5)
        *_, line = log.read_text().splitlines()
        step = checkpoint(run_dir(folder))["progress"]["step"]
        assert process.exitcode == 1 and "Traceback" not in log.read_text()
        assert line == f"stopped at step {step}: --resume {run_dir(folder) / 'checkpoint.pt'}"
        resume = line[line.index("--resume") :].split(maxsplit=1)
    main(script, *resume)
    same_run(run_dir(folder), expected(script, *flags))


@posix
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


@pytest.mark.parametrize(
    "call, step, flags",
    [
        (30, 30, []),  # while warming up
        (133, 133, []),
        (140, 140, []),  # a step that is logged
        (200, 200, []),  # an episode's last
        (213, 213, []),  # in the second episode
        (240, 240, []),  # the run's last
        (300, 240, []),  # in the last evaluation
        (150, 100, ["--eval-frequency=100"]),  # in another
        (150, 100, ["--eval-frequency=100", "--checkpoint-frequency=50"]),
        (230, 230, ["--buffer-size=180"]),  # replay has begun to forget, not the episode's part
        (133, 133, ["--updates-per-step=0.5", "--max-grad-norm=1"]),
    ],
)
def test_signal_at_a_step(
    script: str, call: int, step: int, flags: list, tmp_path: Path, expected: Callable, monkeypatch
) -> None:
    """Wherever the signal falls the run is the same, each row is written once, in evaluation too.

    `call` counts the environment's steps, those of evaluations among them.
    """
    whole = expected(script, *flags)

    def happen(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # the second one must change nothing
            signal.raise_signal(number)

    calls = at_call(monkeypatch, PendulumEnv, "step", call, happen)
    with pytest.raises(SystemExit) as stop:
        main(script, *QUICK[script], *flags, "--runs-dir", tmp_path / "stopped")
    assert next(calls) == call + 1, "steps after the signal"
    path = run_dir(tmp_path / "stopped") / "checkpoint.pt"
    assert stop.value.code == f"stopped at step {step}: --resume {path}"
    main(script, "--resume", path)
    same_run(path.parent, whole)
    logged = [row["global_step"] for row in metrics(whole)]
    assert len(set(logged)) == len(logged)


def fault(*_: Any) -> None:
    raise ZeroDivisionError("a fault of the environment's own")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "happen, leaves",
    [(bool, None), (signal.raise_signal, SystemExit), (fault, ZeroDivisionError)],
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
            at_call(monkeypatch, PendulumEnv, "step", 20, lambda *_: happen(number))
        with pytest.raises(leaves) if leaves else contextlib.nullcontext():
            train(script, *QUICK[script], "--total-timesteps=30", "--runs-dir", tmp_path)
        assert signal.getsignal(number) is own and not seen
    finally:
        signal.signal(number, before)


def test_in_a_thread(script: str, tmp_path: Path, expected: Callable) -> None:
    """Where no signal can be caught, train() is the same."""
    flags = [*QUICK[script], "--runs-dir", tmp_path]
    thread = threading.Thread(target=train, args=(script, *flags))
    thread.start()
    thread.join()
    same_run(run_dir(tmp_path), expected(script))


# === Resumed =====================================================================================
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
    assert "--total-timesteps has grown" in out and "replay" in out.splitlines()[0]
    assert "note:" not in out


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


def test_other_settings(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make it another run is refused by name, each setting, and a smaller total."""
    path = finished(script, tmp_path, "--total-timesteps=60") / "checkpoint.pt"
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "EXTRAS", {})  # what is not installed is another matter
    args = module.saved_args(str(path))
    others = {"device": "cpu:0", "total_timesteps": 59}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        kinds = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.001}
        other = others.get(field.name, kinds.get(field.type, lambda v: v + "x")(value))
        if field.name != "resume":
            with pytest.raises(SystemExit, match=f"^error: .*{field.name}"):
                module.train(dataclasses.replace(args, **{field.name: other}))
    assert "gamma" in refusal(script, "--resume", path, "--gamma=0.5")
    assert "total" in refusal(script, "--resume", path, "--total-timesteps=59")
    assert files == {file: file.read_bytes() for file in path.parent.iterdir()}


@pytest.mark.parametrize("flags", [["--env-id=worlds:Stateful-v0"], ["--buffer-size=32"]])
def test_not_put_back(script: str, flags: list, tmp_path: Path, capsys: Any) -> None:
    """No seed restores this world; replay has lost the episode's beginning: a note, no crash."""
    short = finished(script, tmp_path, *flags, "--total-timesteps=110")
    assert "note:" not in capsys.readouterr().out
    main(script, "--resume", short / "checkpoint.pt", "--total-timesteps=240")
    assert capsys.readouterr().out.count("note: ") == 1
    assert metrics(short)[-1]["global_step"] == "240"


def test_contents(script: str, tmp_path: Path, expected: Callable) -> None:
    """checkpoint.pt alone goes on elsewhere; model.pt is the networks; the actor acts as it did."""
    flags = ["--per-beta=1"] if script == "td3_per_continuous" else []  # no schedule
    short = [*QUICK[script], *flags, "--total-timesteps=120", "--runs-dir", tmp_path / "short"]
    results = train(script, *short)
    folder, alone = results["run_dir"], tmp_path / "alone"
    parts = checkpoint(folder)["parts"]
    networks = {k for k in parts if k != "replay" and not k.endswith("optimizer")}
    model = torch.load(folder / "model.pt", weights_only=True)
    same(dict(model), {f"{k}.{name}": parts[k][name] for k in networks for name in parts[k]})
    assert {"actor", "replay", "actor_optimizer"} < parts.keys()

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
    same(checkpoint(alone)["parts"], checkpoint(expected(script, *flags))["parts"])


def test_poisoned_parameter(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that is not finite is named, and not saved: the last good checkpoint is kept."""
    module, kept, names = importlib.import_module(script), {}, []

    def poison(run: Any) -> None:
        kept.update({path: path.read_bytes() for path in run.dir.glob("*.pt")})
        name, parameter = next(run.parts["actor"].named_parameters())
        names.append(name)
        torch.nn.init.constant_(parameter, torch.nan)

    at_call(monkeypatch, module.Run, "save", 2, poison)
    with pytest.raises(SystemExit, match="^error: step 200 of Pendulum-v1: actor.*finite") as stop:
        train(script, *QUICK[script], "--checkpoint-frequency=100", "--runs-dir", tmp_path)
    assert f"actor.{names[0]} is not finite" in stop.value.code and "\n" not in stop.value.code
    assert len(kept) == 2
    assert kept == {path: path.read_bytes() for path in run_dir(tmp_path).glob("*.pt")}
    assert checkpoint(run_dir(tmp_path))["progress"]["step"] == 100


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
def room_again(script: str, folder: Path, whole: Path) -> Any:
    """Whatever happened, the checkpoint is as it was, and the run goes on as it would have."""
    kept = (folder / "checkpoint.pt").read_bytes()
    yield ["--resume", folder / "checkpoint.pt", "--total-timesteps=240"]
    assert (folder / "checkpoint.pt").read_bytes() == kept
    assert not [*folder.glob("*.tmp")]
    main(script, "--resume", folder / "checkpoint.pt", "--total-timesteps=240")
    same_run(folder, whole)


HALF = ["--log-frequency=4", "--total-timesteps=120"]
limits = pytest.mark.skipif(os.name != "posix", reason="Windows has no limit on a file's size")


@limits
@pytest.mark.parametrize(
    "name, short_of", [("checkpoint.pt", 9_000), ("checkpoint.pt", 1), ("model.pt", 1)]
)
def test_full_disk(
    script: str, name: str, short_of: int, tmp_path: Path, expected: Callable, capsys: Any
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


@limits
def test_full_disk_for_metrics(
    script: str, tmp_path: Path, expected: Callable, capsys: Any
) -> None:
    """As above, where a row of metrics.csv is what fails."""
    folder = finished(script, tmp_path, *HALF)
    with room_again(script, folder, expected(script, "--log-frequency=4")) as flags:
        with files_of_at_most((folder / "metrics.csv").stat().st_size + 9):
            message = refusal(script, *flags)
    assert "metrics.csv" in message and os.strerror(errno.EFBIG) in message


@pytest.mark.parametrize("number", [1, 2], ids=["model", "checkpoint"])
@pytest.mark.parametrize("owner, name", WRITES)
def test_failing_disk(
    script: str, owner: str, name: str, number: int, tmp_path: Path, expected: Callable
) -> None:
    """Whichever system call fails: one message that names the file and the cause."""

    def happen(*args: Any) -> None:
        if name == "save":
            half(*args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = finished(script, tmp_path, *HALF)
    with room_again(script, folder, expected(script, "--log-frequency=4")) as flags:
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, importlib.import_module(owner), name, number, happen)
            message = refusal(script, *flags)
    assert ["model.pt", "checkpoint.pt"][number - 1] in message
    assert os.strerror(errno.ENOSPC) in message


# === Damaged, foreign, malicious =================================================================
@pytest.fixture
def good(script: str, tmp_path: Path) -> Path:
    """An intact checkpoint."""
    return finished(script, tmp_path / "good", "--total-timesteps=60") / "checkpoint.pt"


def refused(script: str, path: Path) -> None:
    """Refused in one line that names the file, which stays as it is."""
    before = path.read_bytes() if path.is_file() else None
    beside = sorted(path.parent.iterdir())
    message = refusal(script, "--resume", path)
    assert str(path) in message and "can still be loaded" not in message
    assert before == (path.read_bytes() if path.is_file() else None)
    assert beside == sorted(path.parent.iterdir())


def test_truncated(script: str, good: Path) -> None:
    data = good.read_bytes()
    for length in (0, 1, 3, 100, len(data) // 2, len(data) - 100, len(data) - 22, len(data) - 1):
        good.write_bytes(data[:length])
        refused(script, good)
    good.write_bytes(data)
    main(script, "--resume", good)


def test_one_line_and_no_traceback(script: str, good: Path) -> None:
    """The same as a user sees it."""
    good.write_bytes(good.read_bytes()[:-1])
    process = run(script, "--resume", good)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1


def test_flipped_bits(script: str, good: Path) -> None:
    """One bit of fifty, and each of a tensor's entry in the archive's directory.

    No checksum covers the directory. What is not refused is read as what it was.
    """
    module, dice = importlib.import_module(script), random.Random(1)
    data, content = good.read_bytes(), torch.load(good, weights_only=True)
    with zipfile.ZipFile(good) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
    end = data.rindex(name.encode())
    refused_bits = set()
    for bit in [*dice.sample(range(8 * len(data)), 50), *range(8 * (end - 46), 8 * end)]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        good.write_bytes(flipped)
        try:
            same(module.read_checkpoint(str(good)), content)
        except SystemExit as stop:
            assert stop.code.startswith("error: ") and "\n" not in stop.code
            refused_bits.add(bit)
    # This one makes the tensor a folder to PyTorch: not read, it holds what was in memory before,
    # which may well be what it was.
    assert 8 * (end - 8) + 4 in refused_bits
    assert len(refused_bits) > 200


def another_archive(path: Path, good: dict) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint/data.txt", "not ours")


def another_setting(path: Path, good: dict) -> None:
    torch.save(good | {"args": good["args"] | {"another": 1}}, path)


def a_setting_less(path: Path, good: dict) -> None:
    torch.save(good | {"args": {k: v for k, v in good["args"].items() if k != "seed"}}, path)


def a_siblings(path: Path, good: dict) -> None:
    """A sibling with the same settings has other parts."""
    parts = {k: v for k, v in good["parts"].items() if k != "actor"}
    torch.save(good | {"parts": parts}, path)


FOREIGN: dict[str, Callable] = {
    "missing": lambda path, good: path.unlink(),
    "folder": lambda path, good: (path.unlink(), path.mkdir()),
    "empty": lambda path, good: path.write_bytes(b""),
    "text": lambda path, good: path.write_text("global_step,seconds\n100,0.1\n"),
    "archive": another_archive,
    "tensor": lambda path, good: torch.save(torch.ones(3), path),
    "list": lambda path, good: torch.save([good], path),
    "networks": lambda path, good: torch.save(good["parts"]["actor"], path),
    "settings": lambda path, good: torch.save({"args": list(good["args"])}, path),
    "old": lambda path, good: torch.save(good, path, _use_new_zipfile_serialization=False),
    "another setting": another_setting,
    "a setting less": a_setting_less,
    "a sibling's": a_siblings,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign(script: str, good: Path, kind: str) -> None:
    FOREIGN[kind](good, torch.load(good, weights_only=True))
    refused(script, good)


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
