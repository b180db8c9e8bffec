# MIT licence. Part of Marginalia.
"""Learning curves with a slip and without, for some of the slips that docs/slips.md shows.

    python docs/slips/curves.py            # the runs that curves.csv lacks, then the pictures
    python docs/slips/curves.py --draw     # the pictures alone

All runs together took about half an hour of one core. A row of curves.csv is one evaluation of
one run. Its mark is that of the text that was run, so that a run is repeated only where the text
has changed.
"""

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "demos"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from drawing import BLUE, ORANGE, panels, save
from slip_tables import Slip, on_the_page, read_tables
from slipped import mark, module_with, script_of

HERE = Path(__file__).resolve().parent
TABLE = HERE / "curves.csv"
COLUMNS = ["script", "slip", "seed", "column", "step", "value", "mark"]
SEEDS = [1, 2, 3]


@dataclasses.dataclass(frozen=True)
class Course:
    """How a script is run, and what is drawn of it."""

    settings: dict[str, Any]
    points: int  # evaluations
    columns: tuple[str, ...] = ("eval_return_mean",)  # of metrics.csv; the first one is usual
    label: str = "return of an evaluation"


SHORT = {"hidden_dim": 128, "eval_episodes": 5}
GOALS = {"total_timesteps": 4_000, "eval_episodes": 50}
WITH_BIAS = ("eval_return_mean", "q_bias")
COURSES = {
    "sac_continuous": Course(SHORT | {"total_timesteps": 5_000}, 10),
    "ddpg_continuous": Course(SHORT | {"total_timesteps": 6_000}, 12, WITH_BIAS),
    "td3_continuous": Course(SHORT | {"total_timesteps": 6_000}, 12, WITH_BIAS),
    "ppo_continuous": Course({"total_timesteps": 61_440, "eval_episodes": 5}, 15),
    "sac_her_continuous": Course(
        SHORT | GOALS, 8, ("eval_success_rate",), "share of goals that are met"
    ),
}
# Slips whose effect is not in the return: the column that shows it, and what it is.
OTHER = {"one-slow-twin-twice": ("q_bias", "Q minus what is earned")}


def with_curves() -> list[Slip]:
    """The slips for which the table asks for a curve."""
    return [slip for slip in on_the_page(read_tables()) if "curve" in slip.page.measures]


def run(script: str, slip: Slip | None, seed: int) -> list[dict[str, str]]:
    """The rows of metrics.csv that have an evaluation, of one run."""
    course = COURSES[script]
    often = course.settings["total_timesteps"] // course.points
    with tempfile.TemporaryDirectory() as folder, module_with(script, slip) as module:
        args = module.Args(seed=seed, eval_frequency=often, runs_dir=folder)
        args.checkpoint_frequency = 0
        results = module.train(dataclasses.replace(args, **course.settings))
        with open(Path(results["run_dir"]) / "metrics.csv", newline="") as file:
            return [row for row in csv.DictReader(file) if row["eval_return_mean"]]


def read_rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with open(TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[dict[str, Any]]) -> None:
    """All of them, in an order that does not depend on when they were run."""

    def place(row: dict[str, Any]) -> tuple:
        return row["script"], row["slip"], int(row["seed"]), row["column"], int(row["step"])

    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=place))


def mark_of(script: str, slip: Slip | None) -> str:
    return mark(script, slip, repr(COURSES[script]))


def runs_to_do(rows: list[dict[str, str]]) -> list[tuple[str, Slip | None, int]]:
    """Which runs the table has not, for the texts as they are; one seed of all of them first."""
    done = {(row["script"], row["slip"], row["seed"], row["mark"]) for row in rows}
    slips = with_curves()
    wanted: list[tuple[str, Slip | None]] = []
    for script in COURSES:
        of_script = [slip for slip in slips if script_of(slip) == script]
        if of_script:
            wanted += [(script, slip) for slip in (None, *of_script)]
    return [
        (script, slip, seed)
        for seed in SEEDS
        for script, slip in wanted
        if (script, name_of(slip), str(seed), mark_of(script, slip)) not in done
    ]


def name_of(slip: Slip | None) -> str:
    return slip.name if slip else ""


def measure() -> None:
    """Each run that is missing. The table is written after each, so that nothing is lost."""
    for script, slip, seed in runs_to_do(read_rows()):
        print(f"{script} {name_of(slip)} seed {seed}", file=sys.stderr, flush=True)
        rows = read_rows()
        same = script, name_of(slip), str(seed)
        rows = [row for row in rows if (row["script"], row["slip"], row["seed"]) != same]
        try:
            evaluations = run(script, slip, seed)
        except ValueError as error:  # a run that is refused or stopped is a result, too
            print(f"it ended: {error}", file=sys.stderr)
            evaluations = []
        for evaluation in evaluations:
            for column in COURSES[script].columns:
                row = dict(zip(COLUMNS[:3], same, strict=True)) | {"column": column}
                row |= {"step": evaluation["global_step"], "mark": mark_of(script, slip)}
                rows.append(row | {"value": f"{float(evaluation[column]):.5g}"})
        write_rows(rows)


def curve(rows: list[dict[str, str]], script: str, slip: str, column: str) -> list[list]:
    """For each seed the steps and the values."""
    found = []
    for seed in SEEDS:
        key = script, slip, str(seed), column
        points = [row for row in rows if tuple(row[name] for name in COLUMNS[:4]) == key]
        steps = [int(row["step"]) for row in points]
        if points:
            found.append([steps, [float(row["value"]) for row in points]])
    return found


def draw(slip: Slip, rows: list[dict[str, str]]) -> None:
    """Every run is a thin line, the mean of each step a thick one."""
    script = script_of(slip)
    course = COURSES[script]
    column, label = OTHER.get(slip.name, (course.columns[0], course.label))
    figure, (ax,) = panels(1, height=2.6)
    for name, colour, text in (("", BLUE, "right"), (slip.name, ORANGE, "with the slip")):
        runs = curve(rows, script, name, column)
        for steps, values in runs:
            ax.plot(steps, values, color=colour, linewidth=0.8, alpha=0.5)
        if runs:
            shortest = min(len(values) for _, values in runs)
            means = [sum(values[i] for _, values in runs) / len(runs) for i in range(shortest)]
            ax.plot(runs[0][0][:shortest], means, color=colour, linewidth=2, label=text)
    ax.set_xlabel("environment steps")
    ax.set_ylabel(label)
    ax.legend(frameon=False, fontsize=8)
    save(figure, str(HERE / f"{slip.name}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="only the pictures")
    if not parser.parse_args().draw:
        measure()
    rows = read_rows()
    for slip in with_curves():
        draw(slip, rows)


if __name__ == "__main__":
    main()
