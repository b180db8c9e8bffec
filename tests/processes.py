"""Runs in processes of their own, what befalls them, and how two of them are compared."""

import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import child, main, metrics, read_checkpoint, same

PPO = "ppo_continuous"
posix = pytest.mark.skipif(os.name != "posix", reason="Windows cannot catch a signal from outside")

# Forked from a server that has loaded PyTorch, a process begins at once. On macOS the system's
# libraries do not survive a fork, and Windows has none: a process costs seconds there.
FORKS = sys.platform == "linux"
PROCESSES: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
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


def at_call(
    patch: Any, owner: Any, name: str, number: int, happen: Callable, always: bool = False
) -> Any:
    """Let something happen at the number-th call of owner.name, before it; return the counter.

    With `always`, at every later call too. Of files that are renamed, only *.pt count.
    """
    real, calls = getattr(owner, name), itertools.count(1)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if name != "replace" or str(args[-1]).endswith(".pt"):
            call = next(calls)
            if call == number or (always and call > number):
                happen(*args)
        return real(*args, **kwargs)

    patch.setattr(owner, name, hooked)
    return calls


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: path.read_bytes() for path in files if path.parent.name != "__pycache__"}


def same_run(a: Path, b: Path) -> None:
    """Networks, optimizers, replay, random states, counters and metrics, but for the clock's."""
    assert not [*a.glob("*.tmp"), *b.glob("*.tmp")]
    if PPO in a.name:
        return same_rows(a, b)
    kept = read_checkpoint(a), read_checkpoint(b)
    for content in kept:
        for place in ("resume", "runs_dir"):
            del content["args"][place]
        for row in [content["progress"], *content["rows"]]:
            row.pop("seconds")
            row.pop("sps", None)
    same(*kept)
    for name in ("model.pt", "best_model.pt"):
        same(*(torch.load(folder / name, weights_only=True) for folder in (a, b)))
    same(metrics(a), metrics(b))


def same_rows(a: Path, b: Path) -> None:
    """No row is lost and none is written twice; each has the cells that it should have."""
    filled = [
        [(row["global_step"], {name for name, cell in row.items() if cell}) for row in metrics(x)]
        for x in (a, b)
    ]
    for (step, cells), (other_step, others) in zip(*filled, strict=True):
        assert step == other_step
        assert {x for x in cells ^ others if not x.startswith("episodic")} == set()
    assert read_checkpoint(a)["progress"]["step"] == read_checkpoint(b)["progress"]["step"]


def refusal(script: str, *flags: Any) -> str:
    """The one line with which the script leaves instead of a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(script, *flags)
    message = stop.value.code  # Python prints a string on standard error, and exits with 1
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


def half(content: Any, file: Any) -> None:
    (getattr(file, "write", None) or file.write_bytes)(b"PK\3\4 half of a checkpoint")


def die(owner: str, name: str, number: int) -> None:
    """Kill this process at the number-th call, in which torch.save gets half of its work done."""

    def happen(*args: Any) -> None:
        if name == "save":
            half(*args)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    at_call(pytest.MonkeyPatch(), importlib.import_module(owner), name, number, happen)


def refused(script: str, path: Path) -> None:
    """Refused in one line that names the file, which stays as it is, and all beside it."""
    before = contents(path.parent)
    message = refusal(script, "--resume", path)
    assert str(path) in message and "can still be loaded" not in message
    assert before == contents(path.parent)
