# MIT licence. Part of Marginalia.
"""Draw the curves of any number of runs, and print what they end with as a Markdown table.

    python tools/plot.py                                   all runs under runs/
    python tools/plot.py old new --labels before after     runs of one script, told apart
    python tools/plot.py runs --metric q1 entropy --out curves.pdf

Only runs that differ in nothing but the seed are averaged. What differs is in the legend. The
average is taken where all of its runs have values, or lie between two of their values. Below five
runs each of them is drawn; from five on, a band is the 95 % interval of a bootstrap over runs.
tools/aggregate.py makes one number of several tasks.
"""

import dataclasses
import io
import json
import math
import sys
import textwrap
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NoReturn


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


try:  # without pyplot, matplotlib looks for no display, on any system
    import numpy as np
    import pandas as pd
    import tyro
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
    from scipy.stats import bootstrap, trim_mean
except ImportError as error:
    fail(f"{error}: pip install -r requirements-plot.txt")

LABELS = {  # other columns are called by their names
    "global_step": "environment steps",
    "seconds": "time (seconds)",
    "updates": "gradient updates",
    "eval_return_mean": "evaluation return (sum of rewards)",
    "episodic_return": "training return (sum of rewards)",
    "entropy": "entropy of the policy (nats)",
    "q_bias": "Q minus the return then obtained",
    "eval_success_rate": "share of goals met in evaluation",
    "kl": "KL(old||new) per iteration (nats)",
}
# Of args.json: what says nothing about a run; with what it was made; and what is no part of the
# algorithm but changes how long a run takes. All else tells runs apart.
IGNORED = "env_id seed resume runs_dir track wandb_project_name tensorboard capture_video".split()
VERSIONS = "torch gymnasium numpy python platform cores".split()
SPEED = "compile device num_threads async_envs".split()
SPEED += "log_frequency eval_frequency checkpoint_frequency".split()

# Runs for a band. Of ten runs with normal values the interval of the mean holds the true one in 90
# of 100 cases, of five in 85, of three in 75, of two in 50 (simulated): it is too narrow.
ENOUGH = 5
RESAMPLES = 2000
MOST_POINTS = 400  # of an average; more cannot be seen

# Okabe and Ito's colours, which the colour-blind can tell apart, without their yellow. Line styles
# and markers tell the curves apart where there is no colour: no two of 28 look alike.
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()
LINES = ["-", "--", "-.", ":"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
MOST_GROUPS = len(COLOURS) * len(LINES)
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#808080"}
STYLE |= {"axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True}
STYLE |= {"legend.frameon": False, "legend.fontsize": 9, "legend.title_fontsize": 8}
STYLE |= {"axes.titlesize": 11, "text.parse_math": False, "lines.markersize": 5}
STYLE |= {"pdf.fonttype": 42, "svg.hashsalt": "plot"}  # real letters; the same file every time

# By these a file is known as one of ours.
MARK = "Marginalia tools/plot.py"
BEGINNINGS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": MARK},
    ".pdf": {"Creator": MARK, "CreationDate": None},
    ".svg": {"Creator": MARK, "Date": None},
}


@dataclasses.dataclass
class Args:
    paths: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders, searched for metrics.csv with all that is in them; or files: a metrics.csv, or a
    CSV with several runs, whose columns left of `step` say which run a row belongs to"""
    metric: tuple[str, ...] = ()
    """columns to draw, a panel each; default: eval_return_mean if measured, else episodic_return"""
    x: Literal["steps", "seconds", "episodes", "updates"] = "steps"
    """what the picture is drawn over; the table is always over steps"""
    average: Literal["mean", "median", "iqm"] = "mean"
    """over the runs; iqm is the interquartile mean, that of the middle half"""
    smooth: int = 1
    """draw the mean of this many of a run's last points; 1 = off; the table is never smoothed"""
    log_x: bool = False
    """a logarithmic horizontal axis"""
    log_y: bool = False
    """a logarithmic vertical axis"""
    out: Path = Path("curve.png")
    """the picture, a .png, .pdf or .svg"""
    table: Path | None = None
    """a Markdown file for the table, which is printed in any case"""
    title: str = ""
    """heading of the picture and of the table's file"""
    labels: tuple[str, ...] = ()
    """what to call the runs of each path, instead of by their script"""


@dataclasses.dataclass
class Run:
    path: Path
    env: str
    name: str  # its label, or else its script
    seed: str
    settings: dict[str, Any]  # runs that differ in one of these are never averaged
    speed: dict[str, Any]  # in these they may differ; the user hears of it
    versions: dict[str, Any]  # in these too
    table: pd.DataFrame  # numbers; nan where nothing was measured


Groups = dict[tuple[str, str], list[Run]]  # by environment and name: alike but for the seed


# === Reading ======================================================================================
def find_runs(paths: tuple[Path, ...], labels: tuple[str, ...] = ()) -> list[Run]:
    """Each run under the paths, once."""
    if len(labels) not in (0, len(paths)):
        fail(f"--labels has {len(labels)} names for {len(paths)} paths")
    label_of = {}
    for path, label in zip(paths, labels or [""] * len(paths), strict=True):
        if not path.exists():
            fail(f"there is no {path}")
        if path.is_file() and path.suffix != ".csv":
            fail(f"{path} is neither a folder nor a .csv")
        files = [path] if path.is_file() else sorted(path.rglob("metrics.csv"))
        if not files:
            fail(f"no metrics.csv under {path}")
        for file in files:
            label_of.setdefault(file.resolve(), label)
    runs = []
    for file, label in label_of.items():
        table = read_table(file)
        if "seed" in table:
            runs += runs_of_results(file, table, label)
        else:
            runs.append(run_of_folder(file, table, label))
    return runs


def read_table(path: Path) -> pd.DataFrame:
    """Its cells as text, but no line without an end: the run was killed while it wrote that."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        whole_lines = text[: text.rfind("\n") + 1]
        if not whole_lines.strip():
            return pd.DataFrame()
        return pd.read_csv(io.StringIO(whole_lines), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        fail(f"cannot read {path}: {error}")


def numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The same as numbers; what is none, or is infinite, becomes nan as an empty cell does."""
    result = table.apply(pd.to_numeric, errors="coerce").astype(float)
    result = result.where(np.isfinite(result))
    for name in table:
        odd = int((result[name].isna() & (table[name].fillna("") != "")).sum())
        if odd:
            note(f"{path}: {odd} of {len(table)} cells of {name} are no finite numbers")
    return result


def run_of_folder(path: Path, table: pd.DataFrame, label: str) -> Run:
    """What a script wrote: metrics.csv, with args.json beside it."""
    if len(table) and "global_step" not in table:
        fail(f"{path} has neither a column global_step nor columns seed and step")
    folder = path.parent
    env, script, seed = about_folder(folder)
    settings = {"script": script}
    try:
        about = dict(json.loads((folder / "args.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        about = {}
        note(f"{folder} has no args.json that can be read: its settings are unknown")
        settings["settings"] = "unknown"
        if not label:  # nobody says that it is like another run
            settings["settings"] = f"unknown ({folder.name})"
    speed = {name: value for name, value in about.items() if name in SPEED}
    versions = {name: value for name, value in about.items() if name in VERSIONS}
    for name, value in about.items():
        if name not in (*IGNORED, *SPEED, *VERSIONS):
            settings[name] = value
    env = about.get("env_id", env)
    seed = str(about.get("seed", seed))
    table = numbers(table, path)
    if "global_step" in table:
        table["updates"] = updates(table["global_step"], settings)
    return Run(path, env, label or script, seed, settings, speed, versions, table)


def about_folder(folder: Path) -> tuple[str, str, str]:
    """Environment, script and seed, as far as the folder's name or place tells them."""
    parts = folder.name.rsplit("__", 3)
    if len(parts) == 4:
        return parts[0], parts[1], parts[2]
    for part in reversed(folder.parts):  # of <env>/<script>/<variant>/seed_<n>
        if part.endswith("_continuous") or part == "sac_v1_value_net":
            return "?", part, "?"
    return "?", folder.name, "?"


def updates(steps: pd.Series, settings: dict[str, Any]) -> pd.Series:
    """Gradient updates after so many steps, as the scripts make them; nan if that is unknown."""
    unknown = steps * math.nan
    try:
        if "updates_per_step" in settings:
            after_warm_up = (steps - settings["learning_starts"]).clip(lower=0)
            return np.floor(after_warm_up * settings["updates_per_step"])
        if settings["target_kl"] > 0:  # this ends PPO's epochs early
            return unknown
        iterations = steps // (settings["num_envs"] * settings["num_steps"])
        return iterations * settings["update_epochs"] * settings["num_minibatches"]
    except (KeyError, TypeError):
        return unknown


def runs_of_results(path: Path, table: pd.DataFrame, label: str) -> list[Run]:
    """Several runs in one file: left of the column of steps are settings, right of it metrics."""
    table = table.rename(columns={"step": "global_step"})
    if "global_step" not in table:
        fail(f"{path} has no column step: it cannot be drawn")
    place = list(table.columns).index("global_step")
    about_columns = list(table.columns[:place])
    if "seed" not in about_columns:
        fail(f"{path} has its column seed right of step: left of it is what a row belongs to")
    runs = []
    for values, rows in table.groupby(about_columns, sort=False, dropna=False):
        settings = dict(zip(about_columns, values, strict=True))
        env = settings.pop("env_id", path.stem)
        seed = settings.pop("seed")
        name = settings.pop("algorithm", path.stem)
        settings["script"] = name
        measured = numbers(rows.iloc[:, place:], path)
        runs.append(Run(path, env, label or name, seed, settings, {}, {}, measured))
    return runs


# === Which runs are alike =========================================================================
def curve(run: Run, x: str, metric: str, smooth: int = 1) -> pd.Series:
    """The metric where it was measured, by x, increasing; of several at the same x the last."""
    if x not in run.table or metric not in run.table:
        return pd.Series(dtype=float)
    measured = pd.DataFrame({"x": run.table[x], "y": run.table[metric]}).dropna()
    points = measured.groupby("x")["y"].last()
    return points.rolling(smooth, min_periods=1).mean()


def curves_of(runs: list[Run], x: str, metric: str, smooth: int = 1) -> list[pd.Series]:
    """Of the runs in which it was measured."""
    curves = [curve(run, x, metric, smooth) for run in runs]
    return [points for points in curves if len(points)]


def group(runs: list[Run], metrics: list[str], x: str) -> Groups:
    """The runs that have something to draw, sorted; the user hears of the odd ones."""
    members = []
    for run in runs:
        points = max(len(curve(run, x, metric)) for metric in metrics)
        if points == 0:
            note(f"{run.path}: no point of {' or '.join(metrics)} over {x}, left out")
        elif points == 1:
            note(f"{run.path}: 1 point of {' and '.join(metrics)}, drawn as a marker")
        if points > 0:
            members.append(run)
    members.sort(key=lambda run: (run.env, run.name))
    if x == "seconds":  # then what changes the speed is a setting like others
        for run in members:
            run.settings |= run.speed
    different = {run.name: settings_that_differ(members, run.name) for run in members}
    groups: Groups = {}
    for run in members:
        known = [name for name in different[run.name] if name in run.settings]
        words = [f"{name}={run.settings[name]}" for name in known]
        groups.setdefault((run.env, " ".join([run.name, *words])), []).append(run)
    for (env, name), alike in groups.items():
        groups[env, name] = without_copies(alike, metrics, x)
        tell_about(groups[env, name], f"{env}, {name}")
    return groups


def settings_that_differ(runs: list[Run], name: str) -> list[str]:
    """Settings in which two runs of this name differ within an environment."""
    found: dict[str, None] = {}  # as a set, but in order
    for env in {run.env for run in runs}:
        alike = [run for run in runs if (run.env, run.name) == (env, name)]
        for setting in dict.fromkeys(key for run in alike for key in run.settings):
            values = {str(run.settings.get(setting, "missing")) for run in alike}
            if len(values) > 1:
                found[setting] = None
    return sorted(found, key=lambda setting: setting != "script")


def without_copies(runs: list[Run], metrics: list[str], x: str) -> list[Run]:
    """Each run once: the same seed with the same values is no second piece of evidence."""
    seen = {}
    for run in runs:
        values = [tuple(curve(run, x, metric)) for metric in metrics]
        first = seen.setdefault((run.seed, *values), run)
        if first is not run:
            note(f"{run.path} is a copy of {first.path}, left out")
    return list(seen.values())


def tell_about(runs: list[Run], name: str) -> None:
    """What the reader of an average should know of its runs."""
    for seed, count in Counter(run.seed for run in runs).items():
        if count > 1:
            note(f"{name}: {count} runs have seed {seed} and other values; each is counted")
    different = []
    for key in [*SPEED, *VERSIONS]:
        made_with = [run.speed | run.versions for run in runs]
        values = {str(about[key]) for about in made_with if key in about}
        if len(values) > 1:
            different.append(f"{key} ({' and '.join(sorted(values))})")
    if different:
        note(f"{name}: runs are averaged that differ in {', '.join(different)}")
    finished = at_the_end(runs)
    if finished < len(runs):
        reached = min(last_step(run) for run in runs)
        note(f"{name}: {finished} of {len(runs)} reach the end; the shortest, step {reached:,.0f}")


def last_step(run: Run) -> float:
    return run.table["global_step"].max()


def at_the_end(runs: list[Run]) -> int:
    """How many of these runs are as long as the longest is, or as they were meant to be."""
    ends = [run.settings.get("total_timesteps", 0) for run in runs]
    end = max(*ends, *(last_step(run) for run in runs))
    return sum(last_step(run) >= end for run in runs)


# === Statistics ===================================================================================
def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Without the lowest and the highest quarter, each rounded down."""
    return trim_mean(values, 0.25, axis=axis)


AVERAGES: dict[str, Any] = {"mean": np.mean, "median": np.median, "iqm": interquartile_mean}
NAMES = {"mean": "mean", "median": "median", "iqm": "interquartile mean"}


def interval(samples: list[np.ndarray], statistic: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval, from resamples of the rows of each sample on its own.

    With one sample for each task this is the stratified bootstrap of Agarwal et al. (2021),
    arXiv:2108.13264.
    """
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": 200, "axis": 0}
    options |= {"method": "percentile", "vectorized": True, "rng": np.random.default_rng(0)}
    ends = bootstrap(samples, statistic, **options).confidence_interval
    return ends.low, ends.high


def average(curves: list[pd.Series], how: str = "mean") -> pd.DataFrame:
    """Columns centre, low and high, at the points of any curve in the range of them all."""
    begin = max((points.index[0] for points in curves), default=0)
    end = min((points.index[-1] for points in curves), default=0)
    grid = np.unique([x for points in curves for x in points.index])
    grid = grid[(begin <= grid) & (grid <= end)]
    if len(grid) > MOST_POINTS:
        chosen = np.linspace(0, len(grid) - 1, MOST_POINTS).round().astype(int)
        grid = grid[chosen]
    result = pd.DataFrame(index=grid, columns=["centre", "low", "high"], dtype=float)
    if len(grid) > 0:
        values = np.array([np.interp(grid, points.index, points) for points in curves])
        result["centre"] = AVERAGES[how](values, axis=0)
        if len(curves) >= ENOUGH:
            result["low"], result["high"] = interval([values], AVERAGES[how])
    return result


# === Curves =======================================================================================
def look(number: int) -> dict[str, Any]:
    """Colour, line style and marker of a group."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markevery": (0.02 * (number % len(MARKERS)), 0.15),  # of the panel's diagonal
    }


def make_panels(count: int, columns: int, names: list[str]) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, and with room for a legend of these names."""
    rows = math.ceil(count / columns)
    size = (max(7, 3.5 * columns), 3 * rows + 0.8 + 0.13 * len(names))
    figure = Figure(size, dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def add_legend(figure: Figure, lines: list, labels: list[str], key: str) -> None:
    labels = [textwrap.fill(label, 80) for label in labels]
    columns = 2 if max(len(label) for label in labels) < 40 else 1
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(lines, labels, title=key, handlelength=4, **place)


def draw(groups: Groups, metrics: list[str], x: str, args: Args) -> Figure:
    """A panel per environment and metric; a group looks the same in all of them."""
    envs = sorted({env for env, _ in groups})
    names = sorted({name for _, name in groups})
    if len(names) > MOST_GROUPS:
        fail(f"{len(names)} kinds of runs cannot be told apart in one picture: name fewer paths")
    columns = min(len(envs), 2) if len(metrics) == 1 else len(envs)
    if len(envs) == 1:
        columns = min(len(metrics), 2)
    figure, panels = make_panels(len(envs) * len(metrics), columns, names)
    lines = {}
    for number, panel in enumerate(panels):
        metric = metrics[number // len(envs)]
        env = envs[number % len(envs)]
        label = LABELS.get(metric, metric)
        if args.smooth > 1:
            label += f"\nmean of the last {args.smooth} points"
        panel.set(title=env, xlabel=LABELS.get(x, x), ylabel=label)
        for i, name in enumerate(names):
            runs = groups.get((env, name), [])
            curves = curves_of(runs, x, metric, args.smooth)
            if curves:
                alone = len(curves) < ENOUGH or at_the_end(runs) < len(runs)
                lines[name] = draw_group(panel, curves, args.average, alone, look(i))
            if 0 < len(curves) < len(runs):
                note(f"{env}, {name}: {len(curves)} of {len(runs)} runs have {metric}")
        if not panel.lines:
            panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes)
        set_axes(panel, columns, args)
    key = f"thick line: {NAMES[args.average]} of n runs"
    if any(len(runs) < ENOUGH or at_the_end(runs) < len(runs) for runs in groups.values()):
        key += "     thin lines: single runs"
    if any(len(runs) >= ENOUGH for runs in groups.values()):
        key += "     band: 95 % bootstrap interval"
    drawn = sorted(lines)
    labels = [f"{name}, {counts(groups, name)}" for name in drawn]
    add_legend(figure, [lines[name] for name in drawn], labels, key)
    figure.suptitle(args.title)
    return figure


def draw_group(panel: Axes, curves: list[pd.Series], how: str, alone: bool, looks: dict) -> Any:
    """The average, its band, and the single runs if they are wanted. Returns the thick line."""
    middle = average(curves, how)
    if len(curves) >= ENOUGH:
        colour = looks["color"]
        panel.fill_between(middle.index, middle["low"], middle["high"], alpha=0.2, lw=0, fc=colour)
    if alone or len(middle) == 0:
        for points in curves:
            thin = looks | {"marker": "o" if len(points) == 1 else "", "markevery": None}
            panel.plot(points.index, points, lw=0.7, alpha=0.6, **thin)
    return panel.plot(middle.index, middle["centre"], lw=1.8, **looks)[0]


def set_axes(panel: Axes, columns: int, args: Args) -> None:
    """Numbers on the axes that can be read, few enough to stand side by side."""
    for axis, ticks in ((panel.xaxis, max(6 // columns, 3)), (panel.yaxis, 7)):
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    if args.log_x:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=[1, 3]))
    if args.log_y:
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5] if high < 100 * low else [1]))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


def counts(groups: Groups, name: str) -> str:
    """n, and how many runs reach the end if not all do; by environment where that differs."""
    texts = {}
    for (env, other), runs in groups.items():
        if other == name:
            finished = at_the_end(runs)
            missing = f" ({finished} reach the end)" if finished < len(runs) else ""
            texts[env] = f"n = {len(runs)}{missing}"
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{env}: {text}" for env, text in texts.items())


def show(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def table(groups: Groups, metrics: list[str], how: str = "mean") -> str:
    """A row per group and metric: over steps, not smoothed."""
    header = ["Environment", "Runs", "n", "Metric", "Step", NAMES[how].capitalize()]
    lines = [[*header, "95 % interval, or the runs", "Minutes"]]
    for (env, name), runs in groups.items():
        n = counts({(env, name): runs}, name).removeprefix("n = ")
        seconds = [run.table["seconds"].max() for run in runs if "seconds" in run.table]
        minutes = f"{np.mean(seconds) / 60:.1f}" if seconds else "n/a"
        for metric in metrics:
            curves = curves_of(runs, "global_step", metric)
            middle = average(curves, how)
            cells = ["n/a", "n/a", "n/a"]
            if len(middle):
                step = middle.index[-1]
                last = middle.iloc[-1]
                spread = f"{show(last['low'])} to {show(last['high'])}"
                if len(curves) < ENOUGH:
                    ends = [np.interp(step, points.index, points) for points in curves]
                    spread = "; ".join(show(value) for value in ends)
                cells = [f"{step:,.0f}", show(last["centre"]), spread]
            lines.append([env, name, n, metric, *cells, minutes])
    explanation = (
        f"{NAMES[how].capitalize()} over the runs at the last step that all of them reached, with"
        f" the 95 % bootstrap interval from n = {ENOUGH} on and the single runs below. Minutes:"
        " mean over the runs."
    )
    return markdown(lines, explanation)


def markdown(lines: list[list[str]], explanation: str) -> str:
    """A table, whose header is the first line."""
    rule = ["---"] * len(lines[0])
    rows = [f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*rows, "", explanation, ""])


# === Writing ======================================================================================
def check_targets(out: Path, table: Path | None) -> None:
    """Nothing is written over a file that this program did not make."""
    if out.suffix not in METADATA:
        fail(f"--out must end in {', '.join(METADATA)}, not in {out.name}")
    if out.exists():
        if not out.is_file():
            fail(f"{out} is no file, so nothing is written there")
        content = out.read_bytes()
        if not content.startswith(BEGINNINGS[out.suffix]) or MARK.encode() not in content:
            fail(f"{out} exists and was not made by plot.py, so it stays")
    if table is not None and table.suffix != ".md":
        fail(f"--table must end in .md, not in {table.name}")
    if table is not None and table.exists():
        text = table.read_text(encoding="utf-8", errors="replace") if table.is_file() else ""
        if text != signed(text.rpartition("<!-- ")[0]):
            fail(f"{table} exists and is no table as plot.py wrote it, so it stays")


def signed(text: str) -> str:
    """With a last line by which the table is known again, as long as nobody has changed it."""
    return f"{text}<!-- {MARK} {zlib.crc32(text.encode()):08x} -->\n"


def write(figure: Figure, text: str, args: Any) -> None:
    """The picture and, if it is wanted, the table into their files; the table on the screen."""
    kind = args.out.suffix
    picture = io.BytesIO()
    figure.savefig(picture, format=kind[1:], metadata=METADATA[kind])
    heading = f"# {args.title}\n\n" if args.title else ""
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(picture.getvalue())
        if args.table is not None:
            args.table.parent.mkdir(parents=True, exist_ok=True)
            args.table.write_text(signed(heading + text), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write: {error}")
    print(text, end="")


# === The command line =============================================================================
def choose_metrics(wanted: tuple[str, ...], runs: list[Run], x: str) -> list[str]:
    """The columns that were asked for, which must exist, or the usual one."""
    columns = list(dict.fromkeys(column for run in runs for column in run.table))
    metrics = list(dict.fromkeys(wanted))
    if not metrics:
        evaluated = curves_of(runs, "global_step", "eval_return_mean")
        metrics = ["eval_return_mean" if evaluated else "episodic_return"]
    for column in (*metrics, x):
        if column not in columns:
            fail(f"no column {column}; there are {', '.join(columns) or 'none'}")
    for metric in metrics:
        if not curves_of(runs, x, metric):
            fail(f"{metric} over {x} was never measured in these runs")
    return metrics


def check_logarithms(groups: Groups, metrics: list[str], x: str, args: Args) -> None:
    """What has no logarithm cannot be drawn: the user hears of it."""
    runs = [run for alike in groups.values() for run in alike]
    for metric in metrics:
        points = pd.concat(curves_of(runs, x, metric, args.smooth))
        if args.log_x:
            check_positive(points.index.to_numpy(), f"--log-x: {x}")
        if args.log_y:
            check_positive(points.to_numpy(), f"--log-y: {metric}")


def check_positive(values: np.ndarray, what: str) -> None:
    lost = int((values <= 0).sum())
    if lost == len(values):
        fail(f"{what} is nowhere above 0")
    if lost > 0:
        note(f"{what} is not above 0 at {lost} of {len(values)} points, which are not drawn")


def main(args: Args) -> None:
    if args.smooth < 1:
        fail(f"--smooth must be at least 1, not {args.smooth}")
    check_targets(args.out, args.table)
    runs = find_runs(args.paths, args.labels)
    x = "global_step" if args.x == "steps" else args.x
    metrics = choose_metrics(args.metric, runs, x)
    groups = group(runs, metrics, x)
    check_logarithms(groups, metrics, x, args)
    text = table(groups, metrics, args.average)
    with rc_context(STYLE):
        write(draw(groups, metrics, x, args), text, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
