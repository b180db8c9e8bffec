"""What speed.py and learning.py share: how a contestant is called, run, watched and reported.

Only the standard library is imported: the largest memory of a child process counts from its
parent's, so that the parent has to be small.
"""

import contextlib
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "stable-baselines3", "sbx-rl", "jax")

Library = Literal["ours", "sb3", "sbx"]
MODULES = {"ours": "torch", "sb3": "stable_baselines3", "sbx": "sbx"}
TITLES = {"ours": "Marginalia", "sb3": "Stable-Baselines3", "sbx": "SBX"}


class Algorithm(NamedTuple):
    """One algorithm, here and at the peers."""

    script: str
    peer: str  # the peers' class
    ours: dict[str, str]  # our flag -> the field of Shared that it is set to
    peers: dict[str, str]  # argument of the peers' class -> such a field
    peers_more: dict[str, Any]  # further arguments of the peers' class, for equal terms


REPLAY = {name: name for name in ("learning_starts", "batch_size", "buffer_size")}
OURS = {"num_threads": "threads", "hidden_dim": "hidden_dim"}
EACH_STEP = {"train_freq": 1, "gradient_steps": 1}
# SB3 has one learning rate for all networks: each of ours is set to it.
ALGORITHMS = {
    "sac": Algorithm(
        "sac_continuous.py",
        "SAC",
        OURS | REPLAY | dict.fromkeys(("policy_lr", "q_lr", "alpha_lr"), "learning_rate"),
        REPLAY | {"learning_rate": "learning_rate"},
        EACH_STEP,
    )
}


@dataclass(frozen=True)
class Shared:
    """What is set to the same value for every contestant; one update follows each step."""

    threads: int
    learning_starts: int
    learning_rate: float = 3e-4
    hidden_dim: int = 256
    batch_size: int = 256
    buffer_size: int = 1_000_000


# --- Commands -------------------------------------------------------------------------------------
def our_command(algorithm: str, **flags: Any) -> list[str]:
    """Our script as a user would call it."""
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    script = ROOT / ALGORITHMS[algorithm].script
    return [sys.executable, str(script), *(word for pair in words for word in pair)]


def peer_command(library: str, algorithm: str, **settings: Any) -> list[str]:
    """peer.py with the settings of its main()."""
    script = str(ROOT / "benchmarks" / "peer.py")
    return [sys.executable, script, library, ALGORITHMS[algorithm].peer, json.dumps(settings)]


def equal_command(
    library: str, algorithm: str, shared: Shared, env_id: str, steps: int, seed: int, **watch: Any
) -> list[str]:
    """A contestant on equal terms; `watch` is how it is watched, in its own arguments."""
    row = ALGORITHMS[algorithm]
    if library == "ours":
        place = {"env_id": env_id, "total_timesteps": steps, "seed": seed}
        terms = {flag: getattr(shared, field) for flag, field in row.ours.items()}
        return our_command(algorithm, **place, **terms, **watch)
    place = {"env_id": env_id, "steps": steps, "seed": seed, "threads": shared.threads}
    terms = {name: getattr(shared, field) for name, field in row.peers.items()} | row.peers_more
    terms["policy_kwargs"] = {"net_arch": [shared.hidden_dim] * 2}
    return peer_command(library, algorithm, **place, **watch, model=terms)


def shown(command: list[str]) -> str:
    """A command as it is printed: without the paths of this machine."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(word.removeprefix(str(ROOT) + os.sep) for word in words)


def installed(libraries: tuple[str, ...]) -> list[str]:
    """Those of the libraries that are there; the others are named."""
    there = [name for name in libraries if importlib.util.find_spec(MODULES[name])]
    for name in set(libraries) - set(there):
        print(f"{TITLES[name]} is not installed and left out")
    return there


# --- Running --------------------------------------------------------------------------------------
class Ran(NamedTuple):
    """What the parent saw of a process."""

    lines: list[tuple[float, str]]  # (seconds since the process was started, line of output)
    seconds: float  # until it ended
    memory: float | None  # its largest resident memory in MiB; None where that is not known
    metrics: list[dict[str, str]]  # the rows of our script's metrics.csv


def run(command: list[str], enough: Callable[[str], bool] = lambda line: False) -> Ran:
    """Run a command in an empty folder, reading along; end it at the first line that is enough."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lines, ended = [], False
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, errors="replace", **pipe)
        try:
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line.rstrip()))
                if enough(line):
                    break
            else:
                ended = True
        finally:
            if not ended:
                process.kill()
            memory = wait(process)
            process.stdout.close()
        seconds = time.perf_counter() - start
        if ended and process.returncode:
            tail = "\n".join(line for _, line in lines[-20:])
            raise SystemExit(f"failed: {shown(command)}\n{tail}")
        metrics = []
        for path in Path(folder).glob("runs/*/metrics.csv"):
            with open(path, newline="") as file:
                metrics += csv.DictReader(file)
    return Ran(lines, seconds, memory, metrics)


def wait(process: subprocess.Popen) -> float | None:
    """Wait for a process to end; return its largest resident memory in MiB."""
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextlib.contextmanager
def one_core(wanted: bool) -> Iterator[None]:
    """Keep this process and its children on one core, where the system can; JAX goes by that."""
    if not (wanted and hasattr(os, "sched_setaffinity")):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Evaluation(NamedTuple):
    seconds: float  # since the process was started
    step: int
    mean: float


def evaluation(seconds: float, line: str) -> Evaluation | None:
    """The evaluation that a line reports, which every contestant does in the same words."""
    found = re.search(r"step (\d+): mean return (\S+) in evaluation", line)
    return Evaluation(seconds, int(found[1]), float(found[2])) if found else None


def evaluations(ran: Ran) -> list[Evaluation]:
    return [found for seconds, line in ran.lines if (found := evaluation(seconds, line))]


def clock(ran: Ran) -> dict[int, float]:
    """Step -> seconds on the contestant's own clock: our metrics.csv, the marks of a peer."""
    marks = (re.fullmatch(r"step (\d+) at ([\d.]+) s", line) for _, line in ran.lines)
    times = {int(mark[1]): float(mark[2]) for mark in marks if mark}
    return times | {int(row["global_step"]): float(row["seconds"]) for row in ran.metrics}


# --- Reporting ------------------------------------------------------------------------------------
def processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


class Report:
    """A Markdown page that begins with where and how its numbers were made."""

    def __init__(self, title: str, threads: str):
        load = "unknown"
        if hasattr(os, "getloadavg"):
            load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
        program = str(Path(sys.argv[0]).resolve())
        about = {
            "Command": f"`{shown([sys.executable, program, *sys.argv[1:]])}`",
            "Date": time.strftime("%Y-%m-%d"),
            "Processor": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
            "Threads": threads,
            "Load average at the start": load,
            "Versions": versions(),
        }
        self.lines = [f"# {title}", "", *(f"- {k}: {v}" for k, v in about.items()), ""]

    def section(self, heading: str, *paragraphs: str) -> None:
        self.lines += [f"## {heading}", ""]
        for paragraph in paragraphs:
            self.lines += [paragraph, ""]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(self.lines).rstrip() + "\n", encoding="utf-8")
        print(f"wrote {path}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def write_csv(path: Path, rows: list[dict[str, Any]], append: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not (append and path.exists())
    with open(path, "w" if new else "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
