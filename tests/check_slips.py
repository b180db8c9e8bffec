"""Puts each slip of the tables in tests/slips into a copy of the project: is it caught?

    python tests/check_slips.py [--file td3_continuous.py] [--name adam] [--processes 2]

A slip is a line that somebody could have written wrong; slip_tables.py says what an entry has.
A slip is caught if its tests pass without it and one of them fails with it; it survives if all of
them pass. Anything else is an error of the table: a text that is not there exactly once, a file
that does not parse with it, tests that do not exist or that fail anyway.
"""

import atexit
import concurrent.futures
import contextlib
import gc
import importlib
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any

import tyro
from slip_tables import ROOT, TABLES, Slip, SlipError, read_tables, with_slip

COPIED = ("tests", "tools", "benchmarks", "docs", ".github")  # folders; and all files beside them
# Nobody reads the output of a test that fails, so pytest need not prepare its asserts for that.
OPTIONS = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "--assert=plain"]
OPTIONS += ["-m", "slow or not slow"]
LIBRARIES = "torch torch._dynamo gymnasium numpy tqdm tyro wandb stable_baselines3".split()
LIBRARIES += "pytest hypothesis".split()
PASSED, FAILED, BROKEN = 0, 1, 3  # pytest's exit codes
ENDING = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
SECONDS = 300  # more than any one of them takes: a slip may make it endless


def copy_of_the_project() -> Path:
    place = Path(tempfile.mkdtemp(prefix="slips-"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, place)
    unwanted = shutil.ignore_patterns("results", "__pycache__", "_build", "*.png")
    for name in COPIED:
        shutil.copytree(ROOT / name, place / name, ignore=unwanted)
    return place


def load_libraries() -> None:
    """What every test process needs, so that a fork of this one has it at once."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()  # pytest collects garbage at its end, and would look through all of these


def run_tests(place: Path, tests: tuple[str, ...]) -> None:
    """The whole of a process: these tests in that folder. Its exit code is pytest's."""
    import pytest

    os.setsid()  # so that whatever the tests start can be ended with it
    os.chdir(place)
    sys.modules.pop("slip_tables", None)  # a copy has its own
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT / "tests"]
    with open(place / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            code = int(pytest.main([*OPTIONS, f"--basetemp={place / 'tmp'}", *tests]))
        except BaseException:
            traceback.print_exc()
            code = BROKEN
        output.flush()
        os._exit(code)


def exit_code(place: Path, tests: tuple[str, ...]) -> int:
    """Of pytest for these tests in that folder: quickly where there is fork, else anew.

    No bytecode is kept: to Python, two texts of the same length within a second have the same one.
    """
    sys.dont_write_bytecode = True  # of a fork
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of all others
    if not hasattr(os, "fork"):
        with open(place / "output.txt", "w") as output:
            command = [sys.executable, "-m", "pytest", *OPTIONS, *tests]
            command.append(f"--basetemp={place / 'tmp'}")
            try:
                pipes: dict[str, Any] = {"stdout": output, "stderr": output}
                return subprocess.run(command, cwd=place, timeout=SECONDS, **pipes).returncode
            except subprocess.TimeoutExpired:
                return FAILED
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(place, tests))
    process.start()
    process.join(SECONDS)
    endless = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return FAILED if endless else process.exitcode


MINE: list[Path] = []  # of this process: the folder of its copy


def fates(tests: tuple[str, ...], slips: list[Slip]) -> list[tuple[str, float]]:
    """What became of each of these, which share their tests, and after how many seconds."""
    if not MINE:
        MINE.append(copy_of_the_project())
        atexit.register(shutil.rmtree, MINE[0], ignore_errors=True)
        load_libraries()
    place = MINE[0]
    if exit_code(place, tests) != PASSED:
        reason = f"ERROR: without it {tests} do not pass: {last_words(place)}"
        return [(reason, 0.0) for _ in slips]
    return [fate(place, slip) for slip in slips]


def last_words(place: Path) -> str:
    """The end of what the tests in that folder printed."""
    return (place / "output.txt").read_text(errors="replace")[-500:]


def fate(place: Path, slip: Slip) -> tuple[str, float]:
    """ "caught", "SURVIVED" or "ERROR: ...", and after how many seconds."""
    path = place / slip.file
    source = path.read_text(encoding="utf-8")
    began = time.perf_counter()
    try:
        path.write_text(with_slip(slip, source), encoding="utf-8")
        code = exit_code(place, slip.tests)
        strange = f"ERROR: pytest's code is {code}: {last_words(place)}"
        outcome = {PASSED: "SURVIVED", FAILED: "caught"}.get(code, strange)
        if -code in ENDING:  # a signal that the script should have caught ended the tests
            outcome = "caught"
    except SlipError as error:
        outcome = f"ERROR: {error}"
    finally:
        path.write_text(source, encoding="utf-8")
    return outcome, time.perf_counter() - began


def main(
    file: str = "", name: str = "", table: str = "", processes: int = os.cpu_count() or 1
) -> None:
    """Report survivors; exit code 1 if there is one.

    Args:
        file: only the slips in this file
        name: only those whose name contains this
        table: only those of tests/slips/TABLE.toml
        processes: how many run at a time
    """
    slips = read_tables()
    if table:
        wanted = tomllib.loads((TABLES / f"{table}.toml").read_text(encoding="utf-8"))["slip"]
        names = {entry["name"] for entry in wanted}
        slips = [slip for slip in slips if slip.name in names]
    slips = [slip for slip in slips if file in ("", slip.file) and name in slip.name]
    if not slips:
        sys.exit("error: there is no such slip")
    began, bad = time.perf_counter(), []
    groups: dict[tuple[str, ...], list[Slip]] = {}
    for slip in slips:
        groups.setdefault(slip.tests, []).append(slip)
    # One that is told to end ends as after Ctrl-C, which takes those that work for it along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        results = pool.map(fates, groups, groups.values())
        for group, outcomes in zip(groups.values(), results, strict=True):
            for slip, (outcome, seconds) in zip(group, outcomes, strict=True):
                print(f"{seconds:6.1f} s  {outcome}  {slip}", flush=True)
                if outcome != "caught":
                    bad.append(slip)
    seconds = time.perf_counter() - began
    print(f"{len(slips)} slips, {len(bad)} not caught, {seconds:.0f} s")
    for slip in bad:
        print(f"not caught: {slip}: {slip.why}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    tyro.cli(main)
