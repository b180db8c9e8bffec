# MIT licence. Part of Marginalia.
"""Make one number, and one picture, of the runs on several tasks.

    python tools/aggregate.py runs                         all runs under runs/
    python tools/aggregate.py old new --labels old new     two kinds of runs, told apart

The return of each run, where the shortest run of its task ends, becomes a score: 0 for random
actions, 1 for a published return. On the left is the interquartile mean of the scores of all runs
on all tasks, on the right the share of runs above each score. Intervals are those of a bootstrap
that draws runs anew within each task: Agarwal et al. 2021, arXiv:2108.13264.
"""

import dataclasses
from pathlib import Path
from typing import Any

import plot  # first, since it says what to install

# isort: split
import numpy as np
import pandas as pd
import tyro
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ROOT = Path(__file__).resolve().parent.parent
ENOUGH_PER_TASK = 3  # runs; on four tasks the interval then holds the true mean in 85 of 100 cases


@dataclasses.dataclass
class Args:
    paths: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders and files, as plot.py takes them"""
    references: Path = ROOT / "benchmarks" / "reference_scores.csv"
    """a CSV with the columns environment, random, published: the returns that score 0 and 1"""
    metric: str = "eval_return_mean"
    """the column that holds the return"""
    out: Path = Path("aggregate.png")
    """the picture, a .png, .pdf or .svg"""
    table: Path | None = None
    """a Markdown file for the table, which is printed in any case"""
    title: str = ""
    """heading of the picture and of the table's file"""
    labels: tuple[str, ...] = ()
    """what to call the runs of each path, instead of by their script"""


def read_references(path: Path) -> pd.DataFrame:
    """Random and published returns, by environment."""
    if not path.is_file():
        plot.fail(f"there is no file {path}")
    cells = plot.read_table(path)
    missing = {"environment", "random", "published"} - set(cells)
    if missing:
        plot.fail(f"{path} lacks the columns {', '.join(sorted(missing))}")
    if cells["environment"].duplicated().any():
        plot.fail(f"{path} has an environment twice")
    returns = cells[["random", "published"]].apply(pd.to_numeric, errors="coerce")
    finite = np.isfinite(returns.to_numpy()).all()
    if not finite or (returns["random"] == returns["published"]).any():
        plot.fail(f"{path}: random and published must be two different numbers in each row")
    return returns.set_index(cells["environment"])


def common_tasks(groups: plot.Groups) -> list[str]:
    """Those with runs of every kind: means over different tasks cannot be compared."""
    names = {name for _, name in groups}
    common = []
    for env in sorted({env for env, _ in groups}):
        if all((env, name) in groups for name in names):
            common.append(env)
        else:
            plot.note(f"{env} is left out: not every kind of run was made there")
    if not common:
        plot.fail("no task has runs of every kind, so there is nothing to compare")
    return common


def scores_of(groups: plot.Groups, metric: str, references: pd.DataFrame) -> pd.DataFrame:
    """A row per run: its task, kind and score, and the return and the step behind that."""
    rows = []
    for env in common_tasks(groups):
        if env not in references.index:
            plot.fail(f"the reference scores lack {env}")
        random, published = references.loc[env, ["random", "published"]]
        curves = {
            name: plot.curves_of(runs, "global_step", metric)
            for (task, name), runs in groups.items()
            if task == env
        }
        step = min(points.index[-1] for alike in curves.values() for points in alike)
        for name, alike in curves.items():
            for points in alike:
                if points.index[0] > step:
                    plot.fail(f"{env}: a run of {name} begins after another one has ended")
                value = np.interp(step, points.index, points)
                score = (value - random) / (published - random)
                row = {"env": env, "name": name, "score": score, "return": value, "step": step}
                rows.append(row)
    return pd.DataFrame(rows)


def tell_about_tasks(groups: plot.Groups, scores: pd.DataFrame) -> None:
    """What the reader of a mean over tasks should know."""
    if scores.groupby(["name", "env"]).size().nunique() > 1:
        plot.note("a task with more runs weighs more, since the numbers of runs differ")
    for name in sorted(set(scores["name"])):
        settings = [groups[env, name][0].settings for env in sorted(set(scores["env"]))]
        keys = dict.fromkeys(key for task in settings for key in task)
        different = [key for key in keys if len({str(task.get(key)) for task in settings}) > 1]
        if different:
            plot.note(f"{name}: the tasks differ in {', '.join(different)}")


def by_task(scores: pd.DataFrame, name: str) -> list[np.ndarray]:
    """The scores of one kind of runs, an array per task."""
    mine = scores[scores["name"] == name]
    return [task.to_numpy() for _, task in mine.groupby("env")["score"]]


def iqm(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """Over the runs of all tasks together."""
    return plot.interquartile_mean(np.concatenate(tasks, axis=axis), axis=axis)


def mean(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.mean(np.concatenate(tasks, axis=axis), axis=axis)


def has_interval(tasks: list[np.ndarray]) -> bool:
    sizes = [len(task) for task in tasks]
    return min(sizes) >= ENOUGH_PER_TASK and sum(sizes) >= plot.ENOUGH


def draw(scores: pd.DataFrame, title: str = "") -> Figure:
    """Left the interquartile means, right the performance profiles."""
    names = sorted(set(scores["name"]))
    if len(names) > plot.MOST_GROUPS:
        plot.fail(f"{len(names)} kinds of runs cannot be told apart in one picture")
    figure, (left, right) = plot.make_panels(2, 2, names)
    lowest, highest = scores["score"].min(), scores["score"].max()
    margin = 0.05 * (highest - lowest) + 1e-6
    levels = np.linspace(lowest - margin, highest + margin, 300)
    lines = []
    labels = []
    for number, name in enumerate(names):
        looks = plot.look(number)
        tasks = by_task(scores, name)
        above = [(task[:, None] > levels).astype(float) for task in tasks]
        lines += right.plot(levels, mean(*above), lw=1.8, **looks)
        labels.append(f"{name}, {size(tasks)}")
        plain: dict[str, Any] = {key: looks[key] for key in ("color", "linestyle", "marker")}
        left.plot(iqm(*tasks), -number, markersize=8, **plain)
        if has_interval(tasks):
            low, high = plot.interval(tasks, iqm)
            left.plot([low, high], [-number, -number], lw=1.8, **plain | {"marker": "|"})
            low, high = plot.interval(above, mean)
            right.fill_between(levels, low, high, alpha=0.2, lw=0, fc=looks["color"])
    left.set(xlabel="score", title="interquartile mean of the scores", yticks=[])
    left.set_ylim(0.6 - len(names), 0.6)
    right.set(xlabel="score", ylabel="share of runs above it", title="performance profile")
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(5))
    key = "score 0: random actions     1: published return"
    if any(has_interval(by_task(scores, name)) for name in names):
        key += "     bars and bands: 95 % bootstrap intervals"
    plot.add_legend(figure, lines, labels, key)
    figure.suptitle(title)
    return figure


def size(tasks: list[np.ndarray]) -> str:
    sizes = sorted({len(task) for task in tasks})
    return f"{len(tasks)} tasks, n = {' or '.join(str(n) for n in sizes)} each"


def table(scores: pd.DataFrame, metric: str) -> str:
    """A row per kind of runs."""
    steps = scores.groupby("env")["step"].first()
    lines = [["Runs", "n", "Interquartile mean", "95 % interval", *steps.index]]
    for name in sorted(set(scores["name"])):
        tasks = by_task(scores, name)
        spread = "n/a"
        if has_interval(tasks):
            low, high = plot.interval(tasks, iqm)
            spread = f"{low:.2f} to {high:.2f}"
        returns = scores[scores["name"] == name].groupby("env")["return"].mean()
        cells = [plot.show(value) for value in returns]
        lines.append([name, size(tasks), f"{iqm(*tasks):.2f}", spread, *cells])
    reached = ", ".join(f"{env} {step:,.0f}" for env, step in steps.items())
    explanation = (
        "Interquartile mean of the scores of all runs on all tasks, where random actions score 0"
        f" and the published return 1. Under a task's name the mean {metric} itself. Both at the"
        f" last step that all runs of the task reached: {reached}."
    )
    if len(lines) > 1 and "n/a" in [line[3] for line in lines]:
        explanation += f" No interval for tasks with fewer than {ENOUGH_PER_TASK} runs."
    return plot.markdown(lines, explanation)


def main(args: Args) -> None:
    plot.check_targets(args.out, args.table)
    references = read_references(args.references)
    runs = plot.find_runs(args.paths, args.labels)
    plot.choose_metrics((args.metric,), runs, "global_step")
    groups = plot.group(runs, [args.metric], "global_step")
    scores = scores_of(groups, args.metric, references)
    tell_about_tasks(groups, scores)
    with rc_context(plot.STYLE):
        plot.write(draw(scores, args.title), table(scores, args.metric), args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
