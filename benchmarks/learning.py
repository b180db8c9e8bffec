"""How well our scripts learn: alone on Pendulum, and beside Stable-Baselines3 and SBX.

    python benchmarks/learning.py pendulum
    python benchmarks/learning.py compare

`compare` runs each (library, seed) in a process of its own and skips those that its CSV files
hold already. Two invocations can share the work, each with an --out of its own; a third one with
both files in --also runs nothing and writes the table of all.
"""

import re
import statistics
from pathlib import Path
from typing import Any

import common
import tyro


def pendulum(
    algorithm: str = "sac", seeds: int = 10, out: Path | None = None, quick: bool = False
) -> None:
    """Run our script with no flag but --seed, for each seed.

    Args:
        algorithm: a row of common.ALGORITHMS
        seeds: how many, from 1
        out: CSV file; the Markdown table goes beside it; not given: <algorithm>.csv in
            benchmarks/results/pendulum
        quick: 50 steps only, to see that everything works; they go to quick.csv
    """
    name = "quick" if quick else algorithm
    out = out or common.RESULTS / "pendulum" / f"{name}.csv"
    report = common.Report(f"{algorithm} on Pendulum-v1, no flag but --seed", "the default")
    flags = {"total_timesteps": 50} if quick else {}
    rows = []
    for seed in range(1, seeds + 1):
        ran = common.run(common.our_command(algorithm, seed=seed, **flags))
        rows.append({"seed": seed} | final(ran.lines[-1][1]) | {"wall_seconds": ran.seconds})
        print(rows[-1], flush=True)
    common.write_csv(out, rows)
    cells = [
        [
            str(row["seed"]),
            f"{row['eval_return_mean']:.1f}",
            f"{row['eval_return_std']:.1f}",
            f"{row['wall_seconds']:.1f}",
        ]
        for row in rows
    ]
    names = ("eval_return_mean", "eval_return_std", "wall_seconds")
    cells.append(["median", *(f"{statistics.median(r[n] for r in rows):.1f}" for n in names)])
    header = ["seed", "return", "std over episodes", "seconds, start-up included"]
    goal = common.ALGORITHMS[algorithm].solved
    solved = sum(row["eval_return_mean"] >= goal for row in rows)
    about = f"Solved, with {goal:g} or more: {solved} of {seeds}."
    report.section("Final evaluation", common.table(header, cells), about)
    report.write(out.with_suffix(".md"))


def final(line: str) -> dict[str, float]:
    """The evaluation in our script's last line of output."""
    return {k: float(v) for k, v in re.findall(r"(eval_return_\w+)=(\S+)", line)}


Curve = dict[tuple[str, int, int], float]  # (library, seed, step) -> mean return


def curves(paths: list[Path], algorithm: str, env_id: str) -> Curve:
    return {
        (row["library"], int(row["seed"]), int(row["step"])): float(row["eval_return_mean"])
        for path in paths
        for row in common.read_csv(path)
        if (row["algorithm"], row["env_id"]) == (algorithm, env_id)
    }


def curve_table(curve: Curve, libraries: tuple[str, ...]) -> str:
    """A line for each step; mean and range over the seeds for each library."""
    lines = []
    for step in sorted({step for _, _, step in curve}):
        cells = [f"{step:,}"]
        for library in libraries:
            found = [v for (name, _, at), v in curve.items() if (name, at) == (library, step)]
            span = f" ({min(found):.0f} to {max(found):.0f})" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.0f}{span}" if found else "")
        lines.append(cells)
    return common.table(["step", *(common.TITLES[library] for library in libraries)], lines)


def compare(
    algorithm: str = "sac",
    env_id: str = "HalfCheetah-v5",
    steps: int | None = None,
    seeds: int = 2,
    eval_every: int | None = None,
    eval_episodes: int = 5,
    learning_starts: int = 10_000,
    threads: int = 1,
    core: bool = False,
    only: tuple[common.Library, ...] = ("ours", "sb3", "sbx"),
    out: Path | None = None,
    also: tuple[Path, ...] = (),
) -> None:
    """Run ours and the peers on equal terms: networks, learning rate, batch, buffer, warm-up.

    Args:
        algorithm: a row of common.ALGORITHMS
        env_id: environment
        steps: environment steps of each run; not given: those of common.ALGORITHMS
        seeds: how many, from 1
        eval_every: steps between two evaluations; not given: likewise
        eval_episodes: episodes of each, from starts that are the same for all
        learning_starts: steps of warm-up, for those that have one
        threads: PyTorch's CPU threads
        core: run on one core, the last that is allowed (see taskset), JAX included
        only: who runs here
        out: CSV file to append to; the Markdown table goes beside it; not given:
            <algorithm>_<environment>.csv in benchmarks/results/compare
        also: CSV files of other invocations
    """
    out = out or common.RESULTS / "compare" / f"{algorithm}_{env_id}.csv"
    row = common.ALGORITHMS[algorithm]
    steps, eval_every = steps or row.compare[0], eval_every or row.compare[1]
    here = common.contestants(algorithm, only)
    title = f"{algorithm} on {env_id}" + (", beside its peers" if row.peer else "; no peer has it")
    report = common.Report(title, str(threads))
    terms: dict[str, Any] = {"env_id": env_id, "steps": steps, "threads": threads}
    terms |= {"learning_starts": learning_starts}
    watch: dict[str, Any] = {"eval_frequency": eval_every, "eval_episodes": eval_episodes}
    commands = {
        (library, seed): common.equal_command(library, algorithm, seed=seed, **terms, **watch)
        for seed in range(1, seeds + 1)
        for library in here
    }
    for (library, seed), command in commands.items():
        if (library, seed, steps) in curves([out, *also], algorithm, env_id):
            print(f"{library}, seed {seed}: done before")
            continue
        print(common.shown(command), flush=True)
        with common.one_core(core):
            ran = common.run(command)
        common.write_csv(
            out,
            [
                {
                    "algorithm": algorithm,
                    "env_id": env_id,
                    "library": library,
                    "seed": seed,
                    "step": found.step,
                    "eval_return_mean": found.mean,
                }
                for found in common.evaluations(ran)
            ],
            append=True,
        )
    about = (
        f"Mean return of {eval_episodes} deterministic episodes from the same starts for all; "
        "mean and range over the seeds. What the commands do not set is each library's default."
    )
    found = curves([out, *also], algorithm, env_id)
    listed = "\n".join(f"- `{common.shown(line)}`" for line in commands.values())
    shown = tuple(name for name in common.MODULES if name == "ours" or row.peer)
    report.section("Learning curves", about, curve_table(found, shown), listed)
    report.write(out.with_suffix(".md"))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"pendulum": pendulum, "compare": compare})
