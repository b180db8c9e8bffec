"""How much sooner tools/sweep.py is done with eight short runs than a loop over them.

    python benchmarks/sweep_speed.py                  SAC, 10,000 steps of Pendulum-v1, 2 rounds

In each round both sides do the same eight runs, in turns: a loop in a shell would start one after
another; the sweep has as many at once as there are cores, and its own start-up counts. The ratio is
formed within a round. Nothing else should run on the machine.
"""

import dataclasses
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import tyro
from common import ROOT, Report, table, write_csv

SEEDS = [str(seed) for seed in range(1, 9)]


@dataclasses.dataclass
class Args:
    steps: int = 10_000
    """of each run"""
    rounds: int = 2
    """how often both sides do the eight runs"""
    cores: int = 2
    """that the sweep uses"""
    out: Path = ROOT / "benchmarks" / "results" / "speed" / "sweep.csv"
    """every single time; the page beside it has the same name and .md"""


def one_after_another(steps: int, folder: str) -> None:
    for seed in SEEDS:
        flags = ["--total-timesteps", str(steps), "--seed", seed, "--runs-dir", folder]
        execute([str(ROOT / "sac_continuous.py"), *flags])


def in_a_sweep(steps: int, folder: str, cores: int) -> None:
    flags = ["--script", "sac_continuous.py", "--seed", *SEEDS, "--cores", str(cores)]
    flags += ["--set", "total-timesteps", str(steps), "--runs-dir", folder]
    execute([str(ROOT / "tools" / "sweep.py"), *flags])


def execute(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"failed: {shlex.join(words)}\n{done.stderr}")


def measure(side: str, args: Args) -> float:
    """Seconds from pressing Enter until all eight runs are complete."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if side == "sweep":
            in_a_sweep(args.steps, folder, args.cores)
        else:
            one_after_another(args.steps, folder)
        seconds = time.perf_counter() - start
        complete = len([*Path(folder).rglob("model.pt")])
    if complete != len(SEEDS):
        raise SystemExit(f"{complete} of {len(SEEDS)} runs are there")
    return seconds


def main(args: Args) -> None:
    report = Report("Eight short runs: a loop, and a sweep", f"one for each run, {args.cores} runs")
    rows = []
    for number in range(1, args.rounds + 1):
        sides = ["loop", "sweep"] if number % 2 else ["sweep", "loop"]
        seconds = {side: measure(side, args) for side in sides}
        rows.append({"round": number, **seconds, "ratio": seconds["loop"] / seconds["sweep"]})
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
        write_csv(args.out, rows)
    cells = [
        [str(row["round"]), *(f"{row[name]:.1f}" for name in ("loop", "sweep"))]
        + [f"{row['ratio']:.2f}"]
        for row in rows
    ]
    middle = median(row["ratio"] for row in rows)
    about = f"Eight runs of SAC, {args.steps:,} steps of Pendulum-v1. Median ratio {middle:.2f}."
    head = ["round", "loop, seconds", "sweep, seconds", "ratio"]
    report.section("Seconds until all are complete", about, table(head, cells))
    report.write(args.out.with_suffix(".md"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
