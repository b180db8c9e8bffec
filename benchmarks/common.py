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
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "stable-baselines3", "sbx-rl", "jax")

Library = Literal["ours", "compiled", "sb3", "sbx"]
MODULES = {"ours": "torch", "compiled": "torch", "sb3": "stable_baselines3", "sbx": "sbx"}
TITLES = {"ours": "Marginalia", "compiled": "Marginalia with --compile"}
TITLES |= {"sb3": "Stable-Baselines3", "sbx": "SBX"}
OURS = ("ours", "compiled")


class Term(NamedTuple):
    """One value that is the same here and at the peers; an empty name: not to be set there."""

    ours: str  # our flags, if more than one with spaces between
    theirs: str  # the argument of the peers' class
    value: Any


class Algorithm(NamedTuple):
    """One algorithm, here and at the peers."""

    script: str
    peer: str  # the peers' class; "" where they have none
    terms: tuple[Term, ...]
    sbx: dict[str, Any] = {}  # further arguments of SBX's class, for the same values
    rollout: int = 1  # steps between updates; numbers of steps are multiples of it
    compare: tuple[int, int] = (30_000, 5_000)  # steps of a run, and between two evaluations
    race: tuple[int, int] = (500, 1_500)  # steps of learning before the clock, and on it
    solve: tuple[int, int] = (10_000, 250)  # steps until given up, and between two evaluations
    solved: float = -200.0  # mean return on Pendulum-v1

    def whole(self, steps: int) -> int:
        """So many steps or a few more, in whole rollouts."""
        return -(-steps // self.rollout) * self.rollout


# One update follows each step.
REPLAY = (
    Term("hidden_dim", "net_arch", 256),
    Term("batch_size", "batch_size", 256),
    Term("buffer_size", "buffer_size", 1_000_000),
    Term("gamma", "gamma", 0.99),
    Term("tau", "tau", 0.005),
    Term("updates_per_step", "gradient_steps", 1),
    Term("", "train_freq", 1),
)
# SB3 has one learning rate for all networks: each of ours is set to it.
RATE = Term("policy_lr q_lr", "learning_rate", 3e-4)
NOISE = Term("exploration_noise exploration_noise_final", "action_noise", 0.1)
TRICKS = (
    Term("policy_frequency", "policy_delay", 2),
    Term("policy_noise", "target_policy_noise", 0.2),
    Term("noise_clip", "target_noise_clip", 0.5),
)
ROLLOUT, MINIBATCHES = 2048, 32
ALGORITHMS = {
    "ddpg": Algorithm(
        "ddpg_continuous.py", "DDPG", (*REPLAY, RATE, NOISE), {"qf_learning_rate": RATE.value}
    ),
    "td3": Algorithm("td3_continuous.py", "TD3", (*REPLAY, RATE, NOISE, *TRICKS)),
    "td3_per": Algorithm("td3_per_continuous.py", "", (*REPLAY, RATE, NOISE, *TRICKS)),
    "sac_v1": Algorithm("sac_v1_value_net.py", "", (*REPLAY, RATE, Term("alpha", "", 0.2))),
    "sac": Algorithm(
        "sac_continuous.py", "SAC", (*REPLAY, RATE._replace(ours="policy_lr q_lr alpha_lr"))
    ),
    "ppo": Algorithm(
        "ppo_continuous.py",
        "PPO",
        (
            Term("hidden_dim", "net_arch", 64),
            Term("num_envs", "", 1),
            Term("num_steps", "n_steps", ROLLOUT),
            Term("update_epochs", "n_epochs", 10),
            Term("num_minibatches", "", MINIBATCHES),
            Term("", "batch_size", ROLLOUT // MINIBATCHES),
            Term("learning_rate", "learning_rate", 3e-4),
            Term("gamma", "gamma", 0.99),
            Term("gae_lambda", "gae_lambda", 0.95),
            Term("clip_coef", "clip_range", 0.2),
            Term("max_grad_norm", "max_grad_norm", 0.5),
            Term("ent_coef", "ent_coef", 0.0),
            Term("vf_coef", "", 1.0),  # of 1/2 MSE
            Term("", "vf_coef", 0.5),  # of the MSE: the same
            Term("norm_adv", "normalize_advantage", True),  # per rollout here, there per minibatch
            Term("norm_obs norm_reward", "normalise", True),
            Term("anneal_lr", "", False),
        ),
        rollout=ROLLOUT,
        compare=(98 * ROLLOUT, 14 * ROLLOUT),
        race=(2 * ROLLOUT, 8 * ROLLOUT),
        solve=(48 * ROLLOUT, 2 * ROLLOUT),
        solved=-250.0,
    ),
}


# --- Commands -------------------------------------------------------------------------------------
def our_command(algorithm: str, **flags: Any) -> list[str]:
    """Our script as a user would call it."""
    words = []
    for flag, value in flags.items():
        name = flag.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return [sys.executable, str(ROOT / ALGORITHMS[algorithm].script), *words]


def peer_command(library: str, algorithm: str, **settings: Any) -> list[str]:
    """peer.py with the settings of its main()."""
    script = str(ROOT / "benchmarks" / "peer.py")
    return [sys.executable, script, library, ALGORITHMS[algorithm].peer, json.dumps(settings)]


def equal_command(
    library: str,
    algorithm: str,
    env_id: str,
    steps: int,
    seed: int,
    threads: int,
    learning_starts: int,
    **watch: Any,
) -> list[str]:
    """A contestant on equal terms; `watch` is how it is watched, in its own arguments."""
    row = ALGORITHMS[algorithm]
    terms = row.terms
    if row.rollout == 1:
        terms += (Term("learning_starts", "learning_starts", learning_starts),)
    if library in OURS:
        if library == "compiled":
            watch["compile"] = True
        place = {"env_id": env_id, "total_timesteps": steps, "seed": seed, "num_threads": threads}
        flags = {flag: term.value for term in terms for flag in term.ours.split()}
        return our_command(algorithm, **place, **flags, **watch)
    place = {"env_id": env_id, "steps": steps, "seed": seed, "threads": threads}
    model = {term.theirs: term.value for term in terms if term.theirs}
    model["policy_kwargs"] = {"net_arch": [model.pop("net_arch")] * 2}
    model |= row.sbx if library == "sbx" else {}
    return peer_command(library, algorithm, **place, **watch, model=model)


def shown(command: list[str]) -> str:
    """A command as it is printed: without the paths of this machine."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(word.removeprefix(str(ROOT) + os.sep) for word in words)


def contestants(algorithm: str, libraries: tuple[str, ...]) -> list[str]:
    """Those of the libraries that have the algorithm and are installed; the others are named."""
    there = []
    for name in libraries:
        if name not in OURS and not ALGORITHMS[algorithm].peer:
            print(f"{TITLES[name]} has no {algorithm} and is left out")
        elif not importlib.util.find_spec(MODULES[name]):
            print(f"{TITLES[name]} is not installed and left out")
        else:
            there.append(name)
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
        pipe: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }
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

    def __init__(self, title: str, threads: str, level: int = 1):
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
        self.lines = [f"{'#' * level} {title}", ""]
        self.lines += [*(f"- {k}: {v}" for k, v in about.items()), ""]

    def section(self, heading: str, *paragraphs: str, level: int = 2) -> None:
        self.lines += [f"{'#' * level} {heading}", ""]
        for paragraph in paragraphs:
            self.lines += [paragraph, ""]

    def write(self, path: Path, before: str = "") -> None:
        """`before` is what the page has above this report."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(before + "\n".join(self.lines).rstrip() + "\n", encoding="utf-8")
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
