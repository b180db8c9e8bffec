# MIT licence. Part of Marginalia.
"""Draw the learning curves of any number of runs, and print them as a Markdown table.

    python tools/plot.py                                   all runs under runs/
    python tools/plot.py old new --labels before after     runs of one script, told apart

Runs are grouped by environment and script, and by the settings that differ, which the legend then
shows: a mean is over seeds and nothing else. It is taken only where all runs of a group have values
or lie between two of their values.
"""

import csv
import dataclasses
import io
import json
import math
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import tyro

try:  # without pyplot, matplotlib looks for no display, on any system
    from matplotlib import rc_context
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
    from PIL import Image
except ImportError as error:
    raise SystemExit(f"error: {error}: pip install -r requirements-plot.txt") from None

LABELS = {  # other columns are called by their names
    "global_step": "environment steps",
    "seconds": "time (seconds)",
    "eval_return_mean": "evaluation return (sum of rewards)",
    "episodic_return": "training return (sum of rewards)",
    "entropy": "entropy of the policy (nats)",
    "q_bias": "Q minus the return then obtained",
    "eval_success_rate": "share of goals met in evaluation",
    "kl": "KL(old||new) per iteration (nats)",
}
# What args.json holds besides settings of the algorithm: seed, places, versions.
IGNORED = "env_id seed resume runs_dir track wandb_project_name tensorboard capture_video".split()
IGNORED += "torch gymnasium numpy platform python cores".split()
TABLE = "| Environment | Script | n | Steps |"  # so begins a table of ours
# Okabe and Ito's colours, which the colour-blind can tell apart, without their yellow.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#808080"}
STYLE |= {"axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True}
STYLE |= {"legend.frameon": False, "legend.fontsize": 9, "legend.title_fontsize": 8}
STYLE |= {"axes.titlesize": 11, "text.parse_math": False}


@dataclasses.dataclass
class Args:
    paths: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders, searched with all that is in them, or metrics.csv files"""
    metric: str = ""
    """a column of metrics.csv; default: eval_return_mean if measured, else episodic_return"""
    x: Literal["steps", "episodes", "seconds"] = "steps"
    """what the picture is drawn over; the table is always over steps"""
    smooth: int = 1
    """draw the mean of this many of a run's last points; 1 = off; the table is never smoothed"""
    out: Path = Path("curve.png")
    """the picture, a .png"""
    table: Path | None = None
    """a Markdown file for the table, which is printed in any case"""
    title: str = ""
    """heading of the picture"""
    labels: tuple[str, ...] = ()
    """what to call the runs of each path, instead of by their script"""


@dataclasses.dataclass
class Run:
    path: Path
    env: str
    group: str
    seed: str
    settings: dict[str, Any]  # all that may make a difference
    columns: dict[str, np.ndarray]  # nan where nothing was measured


Groups = dict[tuple[str, str], list[Run]]  # by environment and script or label
Curve = tuple[np.ndarray, np.ndarray]  # x, increasing, and the metric at x


def fail(message: str) -> NoReturn:
    raise SystemExit(f"error: {message}")


def note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def show(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def find_runs(args: Args) -> list[Run]:
    """Each run under the paths, once."""
    if len(args.labels) not in (0, len(args.paths)):
        fail(f"--labels has {len(args.labels)} names for {len(args.paths)} paths")
    found = {}
    for path, label in zip(args.paths, args.labels or [""] * len(args.paths), strict=True):
        files = [path] if path.is_file() else sorted(path.rglob("metrics.csv"))
        if not files:
            fail(f"no metrics.csv under {path}" if path.exists() else f"there is no {path}")
        if path.is_file() and path.suffix != ".csv":
            fail(f"{path} is neither a folder nor a metrics.csv")
        for file in files:
            found.setdefault(file.resolve(), label)
    return [load(file, label) for file, label in found.items()]


def load(path: Path, label: str = "") -> Run:
    """Read a run, without a line that has no end: the run was killed while it wrote that."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader([line for line in file if line.endswith("\n")] or [""])
    except (OSError, ValueError, csv.Error) as error:
        fail(f"cannot read {path}: {error}")
    rows = [row for row in rows if len(row) == len(header)]
    columns = {k: np.array([number(row[i]) for row in rows]) for i, k in enumerate(header)}
    try:
        about = dict(json.loads(path.with_name("args.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        about = {}
    env, script, seed = about_folder(path.resolve().parent)
    env, seed = about.get("env_id", env), str(about.get("seed", seed))
    settings = {"script": script} if about else {"script": script, "settings": "unknown"}
    settings |= {name: value for name, value in about.items() if name not in IGNORED}
    return Run(path, env, label or script, seed, settings, columns)


def about_folder(folder: Path) -> tuple[str, str, str]:
    """Environment, script and seed, as far as the folder's name or place tells them."""
    parts = folder.name.rsplit("__", 3)
    if len(parts) == 4:
        return parts[0], parts[1], parts[2]
    for part in reversed(folder.parts):  # of <env>/<script>/<variant>/seed_<n>
        if part.endswith("_continuous") or part == "sac_v1_value_net":
            return "?", part, "?"
    return "?", folder.name, "?"


def curve(run: Run, x: str, metric: str, smooth: int = 1) -> Curve:
    """The rows where the metric was measured; of several at the same x the last."""
    if not {x, metric} <= run.columns.keys():
        return np.empty(0), np.empty(0)
    xs, ys = run.columns[x][::-1], run.columns[metric][::-1]
    measured = np.isfinite(xs) & np.isfinite(ys)
    xs, last = np.unique(xs[measured], return_index=True)
    ys = ys[measured][last]
    if smooth > 1:
        ys = np.array([ys[max(0, i - smooth) : i].mean() for i in range(1, len(ys) + 1)])
    return xs, ys


def group(runs: list[Run], metric: str, x: str) -> Groups:
    """The runs that have something to draw, sorted; the user hears of the odd ones."""
    members = []
    for run in sorted(runs, key=lambda run: (run.env, run.group)):
        points = min(len(curve(run, of, metric)[0]) for of in {x, "global_step", "seconds"})
        if points < 2:
            fate = "drawn as a marker" if points else "left out"
            note(f"{run.path}: {points or 'no'} point of {metric}, {fate}")
        if points:
            members.append(run)
    groups = {}
    for run in members:
        alike = [other for other in members if (other.env, other.group) == (run.env, run.group)]
        name = " ".join([run.group, *differences(run, alike)])
        groups.setdefault((run.env, name), []).append(run)
    for (env, name), of in groups.items():
        for seed, count in Counter(run.seed for run in of).items():
            if count > 1:
                note(f"{env}, {name}: {count} runs have seed {seed}; each is counted")
    return groups


def differences(run: Run, others: list[Run]) -> list[str]:
    """The run's settings that are not the same in all the others, as name=value."""
    found = []
    for name in dict.fromkeys(name for other in others for name in other.settings):
        values = {repr(other.settings.get(name)) for other in others}
        if len(values) > 1 and name in run.settings:
            found.append(f"{name}={run.settings[name]}")
    return found


def mean_curve(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, mean and sample standard deviation, at every x of any curve in the range of them all."""
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(begin <= grid) & (grid <= end)]
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else 0 * grid


def draw(groups: Groups, metric: str, x: str, smooth: int = 1, title: str = "") -> Figure:
    """A panel per environment, two in a row; a group has one colour in all of them."""
    envs, names = (sorted(set(part)) for part in zip(*groups, strict=True))
    wide, tall = min(len(envs), 2), math.ceil(len(envs) / 2)
    figure = Figure((7, 3 * tall + 0.8 + 0.1 * len(names)), dpi=150, layout="constrained")
    panels = dict(zip(envs, figure.subplots(tall, wide, squeeze=False).flat, strict=False))
    for panel in figure.axes[len(envs) :]:
        panel.remove()
    lines, counts = {}, {}
    for (env, name), runs in groups.items():
        i, curves = names.index(name), [curve(run, x, metric, smooth) for run in runs]
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--"}
        grid, mean, std = mean_curve(curves)
        panels[env].fill_between(grid, mean - std, mean + std, alpha=0.15, lw=0, fc=look["color"])
        for xs, ys in curves:
            panels[env].plot(xs, ys, lw=0.7, alpha=0.4, marker="o" * (len(xs) == 1), **look)
        lines[name] = panels[env].plot(grid, mean, lw=1.8, marker="o" * (len(grid) == 1), **look)
        counts.setdefault(name, set()).add(len(runs))
    smoothed = f"\nmean of the last {smooth} points" if smooth > 1 else ""
    for i, (env, panel) in enumerate(panels.items()):
        panel.set(title=env, xlabel=LABELS.get(x, x))
        panel.set_ylabel("" if i % wide else LABELS.get(metric, metric) + smoothed)
        for axis, ticks in ((panel.xaxis, 6 // wide), (panel.yaxis, 7)):
            axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    labels = [f"{name}, n = {' or '.join(map(str, sorted(counts[name])))}" for name in names]
    labels = [textwrap.fill(label, 60) for label in labels]
    key = "thin: one run     thick: mean over n runs     band: ± one standard deviation"
    handles = [lines[name][0] for name in names]
    ncols = 2 if max(map(len, labels)) < 40 else 1
    figure.legend(handles, labels, title=key, loc="outside lower center", ncols=ncols)
    figure.suptitle(title)
    return figure


def shrink(picture: Image.Image) -> Image.Image:
    """Keep few shades, a sixth of the bytes; of our own colours, so that no two become one."""
    shades = np.linspace(0, 255, 12)
    ramps = [255 - shades[:, None] * (1 - np.array(to_rgb(colour))) for colour in COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(ramps).round().astype(np.uint8).tobytes())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def table(groups: Groups, metric: str) -> str:
    """A row per group: over steps, not smoothed."""
    lines = [f"{TABLE} {metric} | Best mean | Minutes |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for (env, name), runs in groups.items():
        steps, mean, std = mean_curve([curve(run, "global_step", metric) for run in runs])
        minutes = np.mean([curve(run, "seconds", "seconds")[1][-1] for run in runs]) / 60
        cells = ["n/a", "n/a", "n/a"]
        if len(steps):
            spread = f" ± {show(std[-1])}" if len(runs) > 1 else ""
            cells = [f"{steps[-1]:,.0f}", show(mean[-1]) + spread, show(mean.max())]
        lines += [f"| {env} | {name} | {len(runs)} | {' | '.join(cells)} | {minutes:.1f} |"]
    return "\n".join(lines) + (
        f"\n\n{metric}: mean ± standard deviation over the n runs at the last step that all of them"
        " reached. Best mean: the highest on the way there. Minutes: mean over the runs.\n"
    )


def write_table(text: str, path: Path) -> None:
    """Into a new file, or over a table of ours."""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(TABLE):
        fail(f"{path} exists and is no table of plot.py, so it stays")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(args: Args) -> None:
    if args.smooth < 1:
        fail(f"--smooth must be at least 1, not {args.smooth}")
    if args.out.suffix != ".png":
        fail(f"--out must end in .png, not in {args.out.name}")
    runs, x = find_runs(args), {"steps": "global_step"}.get(args.x, args.x)
    evaluated = any(len(curve(run, x, "eval_return_mean")[0]) for run in runs)
    metric = args.metric or ("eval_return_mean" if evaluated else "episodic_return")
    columns = list(dict.fromkeys(column for run in runs for column in run.columns))
    for column in (metric, x):
        if column not in columns:
            fail(f"no column {column}; there are {', '.join(columns) or 'none'}")
    groups = group(runs, metric, x)
    if not groups:
        fail(f"{metric} was never measured in these runs")
    text = table(groups, metric)
    try:
        if args.table:
            write_table(text, args.table)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        with rc_context(STYLE):
            draw(groups, metric, x, args.smooth, args.title).savefig(picture)
        shrink(Image.open(picture).convert("RGB")).save(args.out, optimize=True)
    except OSError as error:
        fail(f"cannot write: {error}")
    print(text, end="")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
