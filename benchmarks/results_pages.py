"""Make the tables and pictures of results anew from their CSV files.

    python benchmarks/results_pages.py            writes them
    python benchmarks/results_pages.py --check    writes nothing; names the tables that would change

A page keeps what is written by hand: only what stands between its two marks is replaced.
"""

import sys
from pathlib import Path
from typing import Any

import common
import learning
import tyro

ROOT = common.ROOT
DEFAULTS = common.RESULTS / "defaults"
PAGES = (ROOT / "benchmarks" / "README.md", DEFAULTS / "README.md")
MARKS = "<!-- made by benchmarks/results_pages.py: begin -->\n", "<!-- end -->\n"
NAMES = {"sac": "SAC", "sac_v1": "SAC with a value network", "td3": "TD3", "ddpg": "DDPG"}
NAMES |= {"td3_per": "TD3 with prioritised replay", "ppo": "PPO"}
# What is compared with what: our contestant, Stable-Baselines3's, SBX's.
SIDE_BY_SIDE = {
    "": ("ours", "sb3", "sbx"),
    ", observations and rewards normalised": ("ours, both", "sb3, VecNormalize", ""),
    ", neither normalised": ("ours, neither", "sb3", ""),
    ", only rewards normalised": ("ours, rewards", "", ""),
    ", only observations normalised": ("ours, observations", "", ""),
}
HEADER = ["", "task", "steps", "Marginalia", "Stable-Baselines3", "SBX"]


def read_defaults(folder: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """The rows of each CSV file of `learning.py defaults`, by algorithm and task."""
    found = {}
    for path in folder.glob("*.csv"):
        algorithm = max(
            (name for name in common.ALGORITHMS if path.stem.startswith(f"{name}_")), key=len
        )
        found[algorithm, path.stem.removeprefix(f"{algorithm}_")] = common.read_csv(path)
    order = list(NAMES)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def last_returns(rows: list[dict[str, str]]) -> tuple[int, dict[str, list[float]]]:
    """The last step of the runs, and each contestant's returns there."""
    last = max(int(row["step"]) for row in rows)
    returns: dict[str, list[float]] = {}
    for row in rows:
        if int(row["step"]) == last:
            returns.setdefault(row["contestant"], []).append(float(row["eval_return_mean"]))
    return last, returns


def cell(values: list[float]) -> str:
    """Mean, Student's interval where there are three or more values, and their number."""
    if not values:
        return ""
    half = f" ± {learning.interval(values):.0f}" if len(values) > 2 else ""
    return f"{sum(values) / len(values):.0f}{half} ({len(values)})"


def summary(folder: Path) -> str:
    """A line for each algorithm, task and way to normalise."""
    lines = []
    for (algorithm, task), rows in read_defaults(folder).items():
        last, returns = last_returns(rows)
        for way, contestants in SIDE_BY_SIDE.items():
            cells = [cell(returns.get(name, [])) for name in contestants]
            if cells[0]:
                lines.append([NAMES[algorithm] + way, task, f"{last:,}", *cells])
    return common.table(HEADER, lines)


def replaced(text: str, part: str, path: Path) -> str:
    """The text with this part between its marks. Raises SystemExit if there are none."""
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise SystemExit(f"{path} lacks the marks between which the table belongs")
    return f"{before}{begin}\n{part}\n\n{end}{after}"


def draw(folder: Path, out: Path) -> None:
    """A panel for each algorithm and task: each run as a point, the mean as a line."""
    sys.path.append(str(ROOT / "tools"))
    import plot
    from matplotlib import rc_context

    found = read_defaults(folder)
    with rc_context(plot.STYLE):
        columns = min(3, len(found))
        figure, panels = plot.make_panels(len(found), columns, [])
        for panel, ((algorithm, task), rows) in zip(panels, found.items(), strict=True):
            last, returns = last_returns(rows)
            order = [who.name for who in learning.contestants(algorithm) if who.name in returns]
            for place, name in enumerate(order):
                colour = plot.COLOURS[0 if name.startswith("ours") else 1 + name.startswith("sbx")]
                values = returns[name]
                points: dict[str, Any] = {"color": colour, "alpha": 0.6, "linestyle": ""}
                panel.plot(values, [place] * len(values), "o", **points)
                mean = sum(values) / len(values)
                panel.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, lw=2.5)
            panel.set_yticks(range(len(order)), order)
            panel.set_ylim(len(order) - 0.4, -0.6)
            panel.set_title(f"{NAMES[algorithm]}, {task}, {last:,} steps", fontsize=10)
            low, high = panel.get_xlim()
            panel.set_xlim(min(0, low), high + 0.03 * abs(high))  # from 0; no point is cut
            panel.set_xlabel("return at the end")
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, metadata=plot.METADATA[".png"])
    print(f"wrote {out}")


def draw_aggregate() -> None:
    """The picture and the table of PPO's normalisations over four tasks."""
    sys.path.append(str(ROOT / "tools"))
    import aggregate

    place = common.RESULTS / "ppo_normalisation"
    about: dict[str, Any] = {"labels": ("ppo_continuous",)}
    about |= {"title": "PPO's two normalisations on four tasks"}
    files: dict[str, Any] = {"out": place / "aggregate.png", "table": place / "aggregate.md"}
    aggregate.main(aggregate.Args((place / "normalisation.csv",), **about, **files))


def main(check: bool = False) -> None:
    """Make the tables and pictures of results anew from their CSV files.

    Args:
        check: write nothing, and end with an error if a table is not that of the CSV files
    """
    part = summary(DEFAULTS)
    stale = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        new = replaced(text, part, path)
        if new != text:
            stale.append(common.shown([str(path)]))
            if not check:
                path.write_text(new, encoding="utf-8")
                print(f"wrote {path}")
    if check:
        if stale:
            raise SystemExit(f"not what the CSV files say: {', '.join(stale)}")
        return
    draw(DEFAULTS, DEFAULTS / "defaults.png")
    draw_aggregate()


if __name__ == "__main__":
    tyro.cli(main)
