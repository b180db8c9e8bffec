"""How well our scripts learn: alone on Pendulum, and beside Stable-Baselines3 and SBX.

    python benchmarks/learning.py pendulum
    python benchmarks/learning.py compare      on equal terms
    python benchmarks/learning.py defaults     everybody as they come

`compare` and `defaults` run each (contestant, seed) in a process of its own and skip those that
their CSV files hold already. Two invocations can share the work, each with an --out of its own; a
third one with both files in --also runs nothing and writes the table of all.
"""

import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

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


class Contestant(NamedTuple):
    """Somebody who runs with defaults; `changes` are our flags or a peer's arguments."""

    name: str
    library: common.Library
    changes: dict[str, Any]


# The peers' deterministic policies explore only if they are told to; 0.1 is our default.
EXPLORE = {"action_noise": 0.1}
PPO_FLAGS = {"both": {}, "observations": {"norm_reward": False}, "rewards": {"norm_obs": False}}
PPO_FLAGS["neither"] = {"norm_obs": False, "norm_reward": False}


def contestants(algorithm: str) -> list[Contestant]:
    """Ours, and each peer that has the algorithm. For PPO with what each may normalise."""
    if algorithm == "ppo":
        ours = [Contestant(f"ours, {name}", "ours", flags) for name, flags in PPO_FLAGS.items()]
        normalised = {"normalise": True, "gamma": 0.99}
        theirs = [("sb3", {}), ("sb3, VecNormalize", normalised)]
        return ours + [Contestant(name, "sb3", changes) for name, changes in theirs]
    explore = {} if algorithm == "sac" else EXPLORE
    if not common.ALGORITHMS[algorithm].peer:
        return [Contestant("ours", "ours", {})]
    theirs = [Contestant("sb3", "sb3", explore), Contestant("sbx", "sbx", explore)]
    return [Contestant("ours", "ours", {}), *theirs]


def default_command(
    contestant: Contestant, algorithm: str, env_id: str, steps: int, seed: int, eval_every: int
) -> list[str]:
    """One thread; those with a replay warm up for 10,000 steps; ours is compiled."""
    changes = dict(contestant.changes)
    if common.ALGORITHMS[algorithm].rollout == 1:
        changes["learning_starts"] = 10_000
    if contestant.library == "ours":
        place: dict[str, Any] = {"env_id": env_id, "total_timesteps": steps, "seed": seed}
        watch = {"num_threads": 1, "eval_frequency": eval_every, "log_frequency": 0}
        return common.our_command(algorithm, **place, **watch, compile=True, **changes)
    place = {"env_id": env_id, "steps": steps, "seed": seed, "threads": 1}
    watch = {"eval_frequency": eval_every}
    return common.peer_command(contestant.library, algorithm, **place, **watch, model=changes)


def interval(values: list[float]) -> float:
    """Half of Student's 95 % interval of a mean, from at least two values."""
    from scipy import stats  # JAX brings it

    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def result_row(name: str, by_seed: dict[int, float]) -> list[str]:
    """A line of the table of results: who, how many seeds, mean, interval, each seed."""
    values = [by_seed[seed] for seed in sorted(by_seed)]
    half = f"{interval(values):.0f}" if len(values) > 1 else ""
    each = ", ".join(f"{value:.0f}" for value in values)
    return [name, str(len(values)), f"{statistics.mean(values):.0f}", half, each]


RESULT_HEADER = ["contestant", "n", "mean", "95 % interval, +-", "each seed"]


def defaults(
    algorithm: str = "sac",
    env_id: str = "HalfCheetah-v5",
    steps: int | None = None,
    seeds: int = 5,
    only: tuple[str, ...] = (),
    out: Path | None = None,
    also: tuple[Path, ...] = (),
) -> None:
    """Run ours and the peers with their own defaults, but with the same steps and warm-up.

    Args:
        algorithm: a row of common.ALGORITHMS
        env_id: environment
        steps: environment steps of each run; not given: 100,000, for PPO 204,800
        seeds: how many, from 1; 0: only write the table of what there is
        only: names of contestants, as in the table; not given: all
        out: CSV file to append to; the Markdown table goes beside it; not given:
            <algorithm>_<environment>.csv in benchmarks/results/defaults
        also: CSV files of other invocations
    """
    out = out or common.RESULTS / "defaults" / f"{algorithm}_{env_id}.csv"
    steps = steps or (204_800 if algorithm == "ppo" else 100_000)
    eval_every = steps // 2 if algorithm == "ppo" else steps // 4
    everybody = contestants(algorithm)
    report = common.Report(f"{algorithm} on {env_id}, everybody's own defaults", "1")
    commands = []
    for contestant in everybody:
        example = default_command(contestant, algorithm, env_id, steps, 1, eval_every)
        commands.append(f"- {contestant.name}: `{common.shown(example)}`")
        for seed in range(1, seeds + 1):
            found = finals([out, *also], steps).get(contestant.name, {})
            if seed in found or (only and contestant.name not in only):
                continue
            command = default_command(contestant, algorithm, env_id, steps, seed, eval_every)
            print(common.shown(command), flush=True)
            same = {"contestant": contestant.name, "seed": seed}
            ran = common.evaluations(common.run(command))
            rows = [same | {"step": row.step, "eval_return_mean": row.mean} for row in ran]
            common.write_csv(out, rows, append=True)
    found = finals([out, *also], steps)
    about = (
        f"Mean return of ten deterministic episodes, from the same starts for all, after {steps:,} "
        "steps; the mean over n seeds with Student's interval, and what each seed got. The seeds "
        "are those in the [CSV file]"
        f"({out.name}), which has the evaluations on the way too."
    )
    lines = [result_row(who.name, found[who.name]) for who in everybody if who.name in found]
    listed = "\n".join(commands)
    report.section("Return at the end", about, common.table(RESULT_HEADER, lines))
    report.section(
        "Commands", "With seed 1, after `pip install -r benchmarks/requirements.txt`:", listed
    )
    report.write(out.with_suffix(".md"))


def finals(paths: list[Path], steps: int) -> dict[str, dict[int, float]]:
    """Contestant -> seed -> mean return at the last step."""
    found: dict[str, dict[int, float]] = {}
    for path in paths:
        for row in common.read_csv(path):
            if int(row["step"]) == steps:
                by_seed = found.setdefault(row["contestant"], {})
                by_seed[int(row["seed"])] = float(row["eval_return_mean"])
    return found


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"pendulum": pendulum, "compare": compare, "defaults": defaults}
    )
