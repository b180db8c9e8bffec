"""tools/plot.py and tools/aggregate.py draw and tabulate what the runs measured, nothing else."""

import csv
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import aggregate
import helpers
import numpy as np
import pandas as pd
import plot
import pytest
import to_tensorboard
from matplotlib import rc_context
from PIL import Image
from scipy.stats import trim_mean
from tensorboard.backend.event_processing import event_accumulator

COLUMNS = ("global_step", "seconds", "episodes", "episodic_return", "eval_return_mean")
EVAL = "eval_return_mean"
STEPS = "global_step"


def write(
    root: Path, seed: int, rows: list, env: str = "Env-v0", script: str = "sac", **settings: Any
) -> Path:
    """A run's folder as the scripts make it; its metrics.csv. None is an empty cell."""
    time = f"1795578150.{len(list(root.glob('*'))):06}"
    folder = root / f"{env.replace('/', '-')}__{script}__{seed}__{time}"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"env_id": env, "seed": seed} | settings))
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder / "metrics.csv"


def rows(*points: tuple[float, float]) -> list:
    """Rows in which the evaluation is `value` at `step`, a step takes a second, an episode ten."""
    return [(step, step, step // 10, -value, value) for step, value in points]


def three_seeds(root: Path) -> None:
    """Different steps and lengths. The first has, on the line between its points, 10, 20 and 30."""
    write(root, 1, rows((100, 0), (500, 40)))
    write(root, 2, rows((200, 10), (300, 60), (400, 10)))
    write(root, 3, rows((200, 40), (300, 40), (400, 20)))


def load(path: Path) -> plot.Run:
    (run,) = plot.find_runs((path,))
    return run


def grouped(*paths: Path, metric: str = EVAL, x: str = STEPS, labels: tuple = ()) -> plot.Groups:
    return plot.group(plot.find_runs(paths, labels), [metric], x)


def drawn(groups: plot.Groups, *metrics: str, x: str = STEPS, **args: Any) -> Any:
    """The figure, in the style that the program gives it."""
    with rc_context(plot.STYLE):
        return plot.draw(groups, list(metrics or [EVAL]), x, plot.Args(**args))


def lines(panel: Any, width: float) -> list[np.ndarray]:
    """The data, (points, 2), of a panel's lines of this width: 0.7 is a run, 1.8 an average."""
    return [line.get_xydata() for line in panel.lines if line.get_linewidth() == width]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2:]]


def last_row(root: Path, metric: str = EVAL, how: str = "mean") -> list[str]:
    return cells(plot.table(grouped(root), [metric], how))[-1]


# === Averages =====================================================================================
def test_the_mean_is_that_computed_by_hand(tmp_path):
    """It is taken where all seeds have values. Below five runs each is drawn, and no band."""
    three_seeds(tmp_path)
    figure = drawn(grouped(tmp_path))
    (panel,) = figure.axes
    assert [len(line) for line in lines(panel, 0.7)] == [2, 3, 3]
    (mean,) = lines(panel, 1.8)
    np.testing.assert_allclose(mean, [(200, 20), (300, 40), (400, 20)])
    assert not panel.collections
    assert legend(figure) == ["sac, n = 3 (1 reach the end)"]
    assert "thin lines: single runs" in figure.legends[0].get_title().get_text()
    assert (panel.get_xlabel(), panel.get_title()) == ("environment steps", "Env-v0")
    assert panel.get_ylabel() == "evaluation return (sum of rewards)"


def test_the_averages():
    """Of 0, 1, 2, 3, 100 at each of two points, the second of them one higher."""
    curves = [pd.Series([value, value + 1.0], [10, 20]) for value in (0, 1, 2, 3, 100)]
    for how, first in (("mean", 21.2), ("median", 2), ("iqm", 2)):
        middle = plot.average(curves, how)
        assert middle["centre"].tolist() == pytest.approx([first, first + 1])
    assert plot.average(curves[:4], "iqm")["centre"].tolist() == [1.5, 2.5]
    assert plot.average([], "mean").empty


@pytest.mark.parametrize("how", plot.AVERAGES)
def test_the_interval_is_that_of_all_resamples(how):
    """Five runs can be drawn in 3,125 ways; it holds the middle 95 % of their averages."""
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    drawings = np.array(list(itertools.product(values, repeat=5)))
    functions = {"mean": np.mean, "median": np.median}
    averages = functions[how](drawings, axis=1) if how in functions else trim_mean(drawings.T, 0.25)
    low, high = np.percentile(averages, [2.5, 97.5])
    curves = [pd.Series([value, value + 10], [0, 1]) for value in values]
    with mock.patch.object(plot, "RESAMPLES", 20_000):
        middle = plot.average(curves, how)
    np.testing.assert_allclose(middle["low"], [low, low + 10], atol=0.15)
    np.testing.assert_allclose(middle["high"], [high, high + 10], atol=0.15)


def test_band_from_five_runs_on(tmp_path):
    """From the lower to the upper end of the interval; then no single run, unless one is short."""
    for seed in range(1, 6):
        write(tmp_path, seed, rows((100, seed), (200, 2 * seed)))
    figure = drawn(grouped(tmp_path), average="iqm")
    (panel,) = figure.axes
    assert not lines(panel, 0.7)
    (mean,) = lines(panel, 1.8)
    np.testing.assert_allclose(mean, [(100, 3), (200, 6)])
    curves = plot.curves_of(grouped(tmp_path)["Env-v0", "sac"], STEPS, EVAL)
    middle = plot.average(curves, "iqm")
    corners = panel.collections[0].get_paths()[0].vertices
    for x, row in middle.iterrows():
        heights = corners[corners[:, 0] == x, 1]
        assert (heights.min(), heights.max()) == (row["low"], row["high"])
        assert row["low"] < row["centre"] < row["high"]
    title = figure.legends[0].get_title().get_text()
    assert title == "thick line: interquartile mean of n runs     band: 95 % bootstrap interval"
    row = last_row(tmp_path)
    assert (row[2], row[5], row[6].split(" to ")[0]) == ("5", "6", "3.6")
    write(tmp_path, 6, rows((100, 0), (150, 0)))
    groups = grouped(tmp_path)
    assert legend(drawn(groups)) == ["sac, n = 6 (5 reach the end)"]
    assert len(lines(drawn(groups).axes[0], 0.7)) == 6


def test_an_average_has_few_points_but_both_ends():
    curves = [pd.Series(np.arange(1000.0), np.arange(1000.0)) for _ in range(2)]
    middle = plot.average(curves)
    assert len(middle) == plot.MOST_POINTS
    assert (middle.index[0], middle.index[-1]) == (0, 999)
    np.testing.assert_array_equal(middle.index, middle["centre"])


def test_table(tmp_path):
    """One row a group; the value is that where the shortest run ends, beside the single runs."""
    three_seeds(tmp_path)
    expected = ["Env-v0", "sac", "3 (1 reach the end)", EVAL, "400", "20", "30; 10; 20", "7.2"]
    assert last_row(tmp_path) == expected
    assert last_row(tmp_path, how="median")[5] == "20"
    write(tmp_path, 1, rows((1000, -1e6), (2_000_000, -1234.56)), "Other-v0", "td3")
    expected = ["Other-v0", "td3", "1", EVAL, "2,000,000", "-1,234.6", "-1,234.6", "33333.3"]
    assert last_row(tmp_path) == expected
    both = plot.table(grouped(tmp_path), [EVAL, "episodic_return"])
    assert [row[3] for row in cells(both)] == [EVAL, "episodic_return"] * 2
    assert [row[5] for row in cells(both)] == ["20", "-20", "-1,234.6", "1,234.6"]


# === Which runs are alike =========================================================================
def test_runs_with_other_settings_are_told_apart(tmp_path, capsys):
    """A mean is over seeds. The legend shows what differs, and nothing that makes no difference."""
    same = {"gamma": 0.99, "runs_dir": "a", "resume": "", "track": False}
    moved = same | {"runs_dir": "b", "resume": "x.pt", "track": True}
    write(tmp_path, 1, rows((100, 0), (200, 1)), q_lr=1e-3, **same)
    write(tmp_path, 2, rows((100, 0), (200, 3)), q_lr=1e-3, **moved)
    write(tmp_path, 2, rows((100, 0), (200, 9)), q_lr=1e-4, **same)
    write(tmp_path, 3, rows((100, 0), (200, 9)), q_lr=1e-3, **same, trick=True)
    write(tmp_path, 1, rows((100, 0), (200, 9)), q_lr=1e-4, **same | {"gamma": 0.9}, env="B-v0")
    groups = grouped(tmp_path)
    names = "sac q_lr=0.001", "sac q_lr=0.0001", "sac q_lr=0.001 trick=True"
    assert set(groups) == {*(("Env-v0", name) for name in names), ("B-v0", names[1])}
    assert [run.seed for run in groups["Env-v0", names[0]]] == ["1", "2"]
    assert f"{names[0]}, n = 2" in legend(drawn(groups))
    assert not capsys.readouterr().err


def test_what_changes_only_the_speed_is_named(tmp_path, capsys):
    """It splits nothing, unless time is what is drawn over."""
    write(tmp_path, 1, rows((100, 0), (200, 1)), num_threads=1, torch="2.12", compile=False)
    write(tmp_path, 2, rows((100, 0), (200, 3)), num_threads=2, torch="2.13", compile=False)
    assert list(grouped(tmp_path)) == [("Env-v0", "sac")]
    different = "num_threads (1 and 2), torch (2.12 and 2.13)"
    expected = f"note: Env-v0, sac: runs are averaged that differ in {different}"
    assert capsys.readouterr().err.splitlines() == [expected]
    names = {name for _, name in grouped(tmp_path, x="seconds")}
    assert names == {"sac num_threads=1", "sac num_threads=2"}


def test_one_label_for_two_scripts(tmp_path):
    """Scripts are told apart even then, and so are runs whose settings are lost."""
    write(tmp_path, 1, rows((100, 0), (200, 1)), script="td3")
    write(tmp_path, 1, rows((100, 0), (200, 1)), script="sac")
    write(tmp_path, 2, rows((100, 0), (200, 1)), script="sac").with_name("args.json").unlink()
    groups = grouped(tmp_path, labels=("a",))
    names = "a script=td3", "a script=sac", "a script=sac settings=unknown"
    assert {name for _, name in groups} == set(names)


def test_runs_with_unknown_settings_are_not_averaged(tmp_path, capsys):
    """Unless they have a label in common: then somebody says that they are alike."""
    for seed in (1, 2):
        write(tmp_path, seed, rows((100, 0), (200, seed))).with_name("args.json").unlink()
    assert [len(runs) for runs in grouped(tmp_path).values()] == [1, 1]
    assert capsys.readouterr().err.count("its settings are unknown") == 2
    assert [len(runs) for runs in grouped(tmp_path, labels=("mine",)).values()] == [2]


def test_equal_seeds(tmp_path, capsys):
    """With other values both count, and the user hears of it; a copy is no second run."""
    write(tmp_path, 1, rows((100, 0), (200, 1)))
    write(tmp_path, 1, rows((100, 0), (200, 3)))
    assert last_row(tmp_path)[2:7] == ["2", EVAL, "200", "2", "1; 3"]
    assert "Env-v0, sac: 2 runs have seed 1 and other values" in capsys.readouterr().err
    write(tmp_path, 1, rows((100, 0), (200, 3)))
    assert last_row(tmp_path)[2:7] == ["2", EVAL, "200", "2", "1; 3"]
    assert "is a copy of" in capsys.readouterr().err
    write(tmp_path / "other", 1, rows((100, 0), (200, 3)), script="td3")
    write(tmp_path / "other", 2, rows((100, 0), (200, 3)), script="td3")
    assert last_row(tmp_path / "other")[2] == "2"
    assert not capsys.readouterr().err


def test_labels_tell_paths_apart(tmp_path):
    """The same script under two paths: one group, or two with names; never a run twice."""
    one, two = (write(tmp_path / name, 1, rows((100, 0), (200, len(name)))) for name in ("a", "bb"))
    assert [len(runs) for runs in grouped(tmp_path, one, tmp_path / "a").values()] == [2]
    groups = grouped(one, two.parent, labels=("old", "new"))
    expected = [(("Env-v0", "new"), two), (("Env-v0", "old"), one)]
    assert [(key, run.path) for key, (run,) in groups.items()] == expected


def test_an_unfinished_run(tmp_path, capsys):
    """It has not made the steps that it was to make. A finished one says nothing."""
    write(tmp_path, 1, rows((100, 0), (200, 1)), total_timesteps=300)
    assert legend(drawn(grouped(tmp_path))) == ["sac, n = 1 (0 reach the end)"]
    assert "0 of 1 reach the end; the shortest, step 200" in capsys.readouterr().err
    write(tmp_path / "b", 1, rows((100, 0), (200, 1)), total_timesteps=150)
    assert legend(drawn(grouped(tmp_path / "b"))) == ["sac, n = 1"]
    assert not capsys.readouterr().err


# === Reading ======================================================================================
TORN = ("600,600", "600,600,60,-1,-99", "600,600,60,-1,-9999\r", '600,600,60,"', "\n\n600,x,,\n")


@pytest.mark.parametrize("tail", TORN)
def test_torn_last_line(tmp_path, tail):
    """A last line without its end is skipped even if it looks whole: a digit may be missing."""
    path = write(tmp_path, 1, rows((100, 1), (200, 2)))
    with open(path, "a", newline="") as file:
        file.write(tail)
    points = plot.curve(load(path), STEPS, EVAL)
    assert (points.index.tolist(), points.tolist()) == ([100, 200], [1, 2])


@pytest.mark.parametrize("content", ["", "global_st", ",".join(COLUMNS) + "\n"])
def test_run_without_what_is_needed(tmp_path, capsys, content):
    """Killed before its first row, say: left out, with a word about it; the others are drawn."""
    write(tmp_path, 1, rows((100, 1), (200, 2)))
    write(tmp_path, 2, []).write_text(content)
    assert last_row(tmp_path)[2] == "1"
    assert f"no point of {EVAL} over global_step, left out" in capsys.readouterr().err


def test_empty_cells(tmp_path, capsys):
    """Evaluation is measured in few rows: the curve has those and no others."""
    table = [(t, t, 0, None, t if t % 300 == 0 else None) for t in range(100, 1000, 100)]
    path = write(tmp_path, 1, [*table, (1000, 1000, 0, "inf", "nan"), (1100, 1, 0, "", "?")])
    points = plot.curve(load(path), STEPS, EVAL)
    assert points.index.tolist() == points.tolist() == [300, 600, 900]
    assert plot.curve(load(path), STEPS, "episodic_return").empty
    assert f"2 of 11 cells of {EVAL} are no finite numbers" in capsys.readouterr().err


def test_other_axes(tmp_path):
    """Over seconds and episodes; of several rows within one episode the last is taken."""
    path = write(tmp_path, 1, [(1, 0.5, 0, 7, 1), (2, 0.7, 0, 8, 2), (3, 0.9, 1, 9, 3)])
    by_episode = plot.curve(load(path), "episodes", EVAL)
    assert list(by_episode.items()) == [(0, 2), (1, 3)]
    by_time = [[0.5, 7], [0.7, 8], [0.9, 9]]
    groups = grouped(tmp_path, metric="episodic_return", x="seconds")
    (panel,) = drawn(groups, "episodic_return", x="seconds").axes
    assert lines(panel, 0.7)[0].tolist() == by_time
    assert panel.get_xlabel() == "time (seconds)"
    assert panel.get_ylabel() == "training return (sum of rewards)"


PPO = {"num_envs": 2, "num_steps": 5, "update_epochs": 3, "num_minibatches": 4, "target_kl": 0.0}
UPDATES = [  # after 10, 20 and 30 steps
    ({"learning_starts": 15, "updates_per_step": 0.5}, [0, 2, 7]),
    (PPO, [12, 24, 36]),
]


@pytest.mark.parametrize("settings, expected", UPDATES)
def test_over_updates(tmp_path, settings, expected):
    path = write(tmp_path, 1, rows((10, 1), (20, 2), (30, 3)), **settings)
    assert plot.curve(load(path), "updates", EVAL).index.tolist() == expected


@pytest.mark.parametrize("settings", [{}, PPO | {"target_kl": 0.1}, {"target_kl": None}])
def test_unknown_updates(tmp_path, capsys, settings):
    """Where a PPO may stop early, or without the settings, their number is not known."""
    path = write(tmp_path, 1, rows((10, 1), (20, 2), (30, 3)), **settings)
    run = load(path)
    assert plot.curve(run, "updates", EVAL).empty
    with pytest.raises(SystemExit):
        plot.choose_metrics((), [run], "updates")
    assert f"{EVAL} over updates was never measured" in capsys.readouterr().err


def test_a_file_with_several_runs(tmp_path):
    """Left of the steps are settings, right of them is what was measured."""
    path = tmp_path / "race.csv"
    path.write_text(
        "algorithm,env_id,library,seed,step,eval_return_mean\n"
        "sac,A-v0,ours,1,10,1\nsac,A-v0,ours,1,20,2\nsac,A-v0,ours,2,10,3\nsac,A-v0,ours,2,20,4\n"
        "sac,A-v0,theirs,1,10,5\nsac,A-v0,theirs,1,20,6\n"
    )
    groups = grouped(path)
    assert [len(runs) for runs in groups.values()] == [2, 1]
    assert list(groups) == [("A-v0", "sac library=ours"), ("A-v0", "sac library=theirs")]
    expected = ["A-v0", "sac library=ours", "2", EVAL, "20", "3", "2; 4", "n/a"]
    assert cells(plot.table(groups, [EVAL]))[0] == expected


@pytest.mark.parametrize("variant", ["", "with_it"])
def test_runs_arranged_by_environment_and_script(tmp_path, variant):
    """<env>/<script>/<variant>/seed_<n>, as in benchmarks/results."""
    folder = tmp_path / "Env-v0" / "sac_v1_value_net" / variant / "seed_2"
    folder.parent.mkdir(parents=True)
    write(tmp_path / "x", 2, rows((100, 0), (200, 1)), env="ns/Env-v0").parent.rename(folder)
    run = load(folder / "metrics.csv")
    assert (run.env, run.name, run.seed) == ("ns/Env-v0", "sac_v1_value_net", "2")


def test_settings_are_read_or_else_the_name(tmp_path):
    """args.json knows the environment's real name; a run without it goes by its folder's."""
    path = write(tmp_path, 3, rows((100, 0), (200, 1)), env="ns/Env-v0")
    run = load(path)
    assert (run.env, run.name, run.seed) == ("ns/Env-v0", "sac", "3")
    for damage in ("", "[1]", '{"env_id": "ns/En'):
        path.with_name("args.json").write_text(damage)
        run = load(path)
        assert (run.env, run.name, run.seed) == ("ns-Env-v0", "sac", "3")
    path = path.rename(tmp_path / "metrics.csv")
    assert load(path).name == tmp_path.name


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@pytest.mark.parametrize("script", helpers.SCRIPTS)
def test_draws_what_a_script_writes(tmp_path, script):
    """A real run, over each axis: its folder, its settings and its columns are understood."""
    helpers.main(script, *helpers.QUICK[script], "--eval-frequency=120", "--runs-dir", tmp_path)
    for x in ("global_step", "episodes", "seconds", "updates"):
        ((env, name),) = groups = grouped(tmp_path, x=x)
        assert (env, name) == ("Pendulum-v1", script)
        assert len(plot.curve(groups[env, name][0], x, EVAL)) == 2


# === Pictures =====================================================================================
def test_panels_looks_and_counts(tmp_path):
    """A panel per environment; a script looks the same in all, and n is told where it differs."""
    for env, seeds in (("A-v0", 2), ("B-v0", 3), ("ns/C-v0", 3)):
        for seed in range(seeds):
            write(tmp_path, seed, rows((100, 0), (1_000_000, 1)), env, "sac")
    write(tmp_path, 1, rows((100, 0), (200, 1)), "B-v0", "ddpg")
    figure = drawn(grouped(tmp_path))
    assert [panel.get_title() for panel in figure.axes] == ["A-v0", "B-v0", "ns/C-v0"]
    assert [len(lines(panel, 0.7)) for panel in figure.axes] == [2, 4, 3]
    assert [len(lines(panel, 1.8)) for panel in figure.axes] == [1, 2, 1]
    expected = "sac, A-v0: n = 2, B-v0: n = 3, ns/C-v0: n = 3"
    assert legend(figure) == ["ddpg, n = 1", expected]
    for panel in figure.axes:
        thick = [line for line in panel.lines if line.get_linewidth() == 1.8]
        assert (thick[-1].get_color(), thick[-1].get_marker()) == (plot.COLOURS[1], "s")
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticklabels()
    assert {"0", "500,000", "1,000,000"} <= {tick.get_text() for tick in ticks}
    boxes = [tick.get_window_extent() for tick in ticks]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_several_metrics(tmp_path, capsys):
    """A row of panels for each, a column for each environment; what was not measured is said."""
    write(tmp_path, 1, rows((100, 0), (200, 1)), "A-v0")
    write(tmp_path, 2, [(100, 1, 1, 5, None), (200, 2, 2, 6, None)], "A-v0")
    write(tmp_path, 1, [(100, 1, 1, 5, None), (200, 2, 2, 6, None)], "B-v0")
    metrics = [EVAL, "episodic_return"]
    figure = drawn(plot.group(plot.find_runs((tmp_path,)), metrics, STEPS), *metrics)
    assert [panel.get_title() for panel in figure.axes] == ["A-v0", "B-v0"] * 2
    assert [len(lines(panel, 0.7)) for panel in figure.axes] == [1, 0, 2, 1]
    assert [panel.get_ylabel()[:5] for panel in figure.axes] == ["evalu", "evalu", "train", "train"]
    assert figure.axes[1].texts[0].get_text() == "not measured"
    assert f"A-v0, sac: 1 of 2 runs have {EVAL}" in capsys.readouterr().err


def test_no_two_groups_look_alike():
    """Not even in grey: up to the most that are drawn, no marker comes twice with its line."""
    looks = [plot.look(number) for number in range(plot.MOST_GROUPS)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == plot.MOST_GROUPS == 28


def test_smoothing(tmp_path):
    """A mean over the last points, which looks at no later one and which the axis owns up to."""
    write(tmp_path, 1, rows((1, 3), (2, 6), (3, 0), (4, 9)))
    (panel,) = drawn(grouped(tmp_path), smooth=3).axes
    np.testing.assert_allclose(lines(panel, 0.7)[0][:, 1], [3, 4.5, 3, 5])
    assert "mean of the last 3 points" in panel.get_ylabel()
    (panel,) = drawn(grouped(tmp_path)).axes
    assert "mean" not in panel.get_ylabel()


def test_logarithmic_axes(tmp_path, capsys, monkeypatch):
    """Labels are plain numbers; what is 0 or less is told, and refused where nothing else is."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, rows((0, 0), (1000, 20), (30_000, 3000)))
    groups = grouped(Path("runs"))
    figure = drawn(groups, log_x=True, log_y=True)
    (panel,) = figure.axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    figure.draw_without_rendering()
    assert {"1,000", "10,000"} <= {tick.get_text() for tick in panel.get_xticklabels()}
    (panel,) = drawn(groups).axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "linear")
    plot.main(plot.Args(log_x=True, log_y=True))
    told = capsys.readouterr().err.splitlines()
    where = "is not above 0 at 1 of 3 points, which are not drawn"
    assert told == [f"note: --log-x: global_step {where}", f"note: --log-y: {EVAL} {where}"]
    with pytest.raises(SystemExit):
        plot.main(plot.Args(log_y=True, metric=("episodic_return",), out=Path("no.png")))
    assert "--log-y: episodic_return is nowhere above 0" in capsys.readouterr().err


def test_a_long_legend_stays_in_the_picture(tmp_path):
    for trick in ("one", "two"):
        settings = {f"a_long_setting_{i}": trick for i in range(12)}
        write(tmp_path, 1, rows((100, 0), (200, 1)), **settings)
    figure = drawn(grouped(tmp_path))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_single_points_are_markers(tmp_path, capsys):
    """One point draws no line: it is marked, said, and a range that seeds do not share is n/a."""
    write(tmp_path, 1, rows((100, 5)))
    (panel,) = drawn(grouped(tmp_path)).axes
    assert [line.get_marker() for line in panel.lines] == ["o", "o"]
    assert f"1 point of {EVAL}, drawn as a marker" in capsys.readouterr().err
    write(tmp_path, 2, rows((200, 5), (300, 6)))
    (panel,) = drawn(grouped(tmp_path)).axes
    assert [line.get_marker() for line in panel.lines] == ["o", "", "o"]
    assert not len(lines(panel, 1.8)[0])
    row = ["Env-v0", "sac", "2 (1 reach the end)", EVAL, "n/a", "n/a", "n/a", "3.3"]
    assert last_row(tmp_path) == row


# === The command ==================================================================================
def test_default_metric(tmp_path, capsys):
    """Evaluation where any run has one, else the training return; any column on demand."""
    args = plot.Args(paths=(tmp_path,), out=tmp_path / "new" / "c.png")
    write(tmp_path, 1, [(1, 1, 0, 5, None), (2, 2, 0, 6, None)])
    plot.main(args)
    assert "| episodic_return |" in capsys.readouterr().out
    write(tmp_path, 2, rows((1, 3), (2, 4)))
    plot.main(args)
    assert f"| {EVAL} |" in capsys.readouterr().out
    args.metric = ("episodes",)
    plot.main(args)
    assert "| episodes |" in capsys.readouterr().out


@pytest.mark.slow
def test_picture(tmp_path):
    """As typed, without arguments: a picture with every script's own colour, and a table."""
    noise = np.random.default_rng(0)
    for level, script in enumerate("abcdefg"):
        for seed in (1, 2, 3):
            values = 10 * level + noise.normal(size=100)
            points = zip(range(1000, 101_000, 1000), values, strict=True)
            write(tmp_path / "runs", seed, rows(*points), script=script)
    done = helpers.run("tools/plot", "--table", "new/curves.md", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "new" / "curves.md").read_text(encoding="utf-8")
    assert text.startswith(done.stdout) and len(text.splitlines()) == 12
    assert done.stdout.count("| Env-v0 |") == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "new", "runs"]
    picture = Image.open(tmp_path / "curve.png").convert("RGB")
    counts = {rgb: count for count, rgb in picture.getcolors(2**24)}
    for colour in plot.COLOURS:
        assert counts[tuple(bytes.fromhex(colour[1:]))] > 500
    assert counts[255, 255, 255] > 0.4 * picture.width * picture.height


@pytest.mark.slow_but(".png")
@pytest.mark.parametrize("kind", plot.METADATA)
def test_replaces_its_own_picture_only(tmp_path, monkeypatch, capsys, kind):
    """The same runs give the same bytes; what another program made under that name stays."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, rows((1, 1), (2, 2)))
    out = Path(f"curve{kind}")
    plot.main(plot.Args(out=out))
    first = out.read_bytes()
    assert first.startswith(plot.BEGINNINGS[kind])
    plot.main(plot.Args(out=out))
    assert out.read_bytes() == first
    write(Path("runs"), 2, rows((1, 1), (2, 5)))
    plot.main(plot.Args(out=out))
    assert out.read_bytes() != first
    others = plot.BEGINNINGS[kind] + b" drawn by hand", f"see {plot.MARK}".encode(), b""
    for content in others:
        out.write_bytes(content)
        with pytest.raises(SystemExit):
            plot.main(plot.Args(out=out, table=Path("table.md")))
        assert "was not made by plot.py, so it stays" in capsys.readouterr().err
        assert out.read_bytes() == content
        assert not Path("table.md").exists()


def test_table_replaces_a_table_only(tmp_path, monkeypatch, capsys):
    """Without --table no table is written; what somebody wrote, or added to a table, stays."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, rows((1, 1), (2, 2)))
    Path("README.md").write_text("# Written by hand")
    plot.main(plot.Args(out=Path("README.png")))
    plot.main(plot.Args(table=Path("table.md")))
    first = Path("table.md").read_text(encoding="utf-8")
    write(Path("runs"), 2, rows((1, 1), (2, 3)))
    plot.main(plot.Args(table=Path("table.md"), title="Two runs"))
    second = Path("table.md").read_text(encoding="utf-8")
    assert first.startswith("| Env") and second.startswith("# Two runs\n\n| Env")
    Path("README.png").unlink()
    edited = first.replace("| 1 |", "| 9 |")
    for content in ("# Written by hand", "", edited, first + "My remarks."):
        Path("README.md").write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit):
            plot.main(plot.Args(out=Path("README.png"), table=Path("README.md")))
        assert "README.md exists and is no table" in capsys.readouterr().err
        assert Path("README.md").read_text(encoding="utf-8") == content
        assert not Path("README.png").exists()


ERRORS = {
    "no metrics.csv under empty": {"paths": (Path("runs"), Path("empty"))},
    "there is no nowhere": {"paths": (Path("runs"), Path("nowhere"))},
    "args.txt is neither a folder nor a .csv": {"paths": (Path("args.txt"),)},
    "no column speed; there are global_step, seconds, episodes, episodic_": {"metric": ("speed",)},
    "eval_return_mean over global_step was never measured": {"metric": (EVAL,)},
    "episodic_return over updates was never measured": {"x": "updates"},
    "--smooth must be at least 1": {"smooth": 0},
    "--out must end in .png, .pdf, .svg, not in curve.md": {"out": Path("curve.md")},
    "folder.png is no file": {"out": Path("folder.png")},
    "--table must end in .md": {"table": Path("curve.txt")},
    "--labels has 2 names for 1 paths": {"labels": ("a", "b")},
    "cannot write": {"out": Path("file", "curve.png")},
    "cannot read": {"paths": (Path("binary.csv"),)},
    "neither a column global_step nor columns seed and step": {"paths": (Path("other.csv"),)},
    "seeds.csv has no column step": {"paths": (Path("seeds.csv"),)},
    "its column seed right of step": {"paths": (Path("order.csv"),)},
    "29 kinds of runs cannot be told apart": {"paths": (Path("many.csv"),)},
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(tmp_path, monkeypatch, capsys, message):
    """What cannot be done is said in a line, the exit code is 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, [(1, 1, 0, 5, None), (2, 2, 0, 6, None)])
    Path("file").touch()
    Path("binary.csv").write_bytes(b"\xff\xfe\n")
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("seeds.csv").write_text("seed,eval_return_mean\n1,2\n")
    Path("order.csv").write_text("step,seed,eval_return_mean\n1,1,2\n")
    many = [f"{gamma},1,{step},0\n" for gamma in range(29) for step in (1, 2)]
    Path("many.csv").write_text(f"gamma,seed,step,{EVAL}\n" + "".join(many))
    Path("args.txt").touch()
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        plot.main(plot.Args(**ERRORS[message]))
    (text,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert text.startswith("error: ") and message in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_errors_of_the_command(tmp_path):
    """An error is a line on standard error and an exit status, also where a package is missing."""
    done = helpers.run("tools/plot", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: there is no runs"]
    (tmp_path / "pandas.py").write_text("raise ImportError('there is no pandas')")
    done = helpers.run("tools/aggregate", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    install = "pip install -r requirements-plot.txt"
    assert done.stderr.splitlines() == [f"error: there is no pandas: {install}"]


# === All tasks in one =============================================================================
REFERENCES = "environment,random,published\nA-v0,0,10\nB-v0,-100,100\nC-v0,0,1\n"
SCORES = [[0.1, 0.5, 0.9], [0.3, 0.2, 1.1], [0.0, 0.4, 0.7], [0.2, 0.8, 1.0], [0.6, 0.3, 0.2]]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with runs of two tasks, three seeds of sac on each, and the reference scores."""
    monkeypatch.chdir(tmp_path)
    Path("references.csv").write_text(REFERENCES)
    for seed in (1, 2, 3):
        write(Path("runs"), seed, rows((100, 0), (200, seed)), "A-v0")
        write(Path("runs"), seed, rows((100, 0), (200, 50), (300, 99)), "B-v0")
    write(Path("runs"), 4, rows((100, 0), (200, 4), (400, 8)), "A-v0")
    return tmp_path


def gathered(references: str = "references.csv") -> pd.DataFrame:
    found = aggregate.read_references(Path(references))
    return aggregate.scores_of(grouped(Path("runs")), EVAL, found)


def aggregated(**options: Any) -> None:
    aggregate.main(aggregate.Args(references=Path("references.csv"), **options))


def test_interquartile_mean_and_profile_are_rliables():
    """rliable 1.2.0 (NumPy 2.4.6, arch 7.2.0) with 20,000 and 5,000 resamples gave these numbers.

    rly.get_interval_estimates({"a": scores}, iqm) and rly.create_performance_profile({"a": scores},
    [0.15, 0.35, 0.75]).
    """
    by_task = list(np.transpose(SCORES))
    assert aggregate.iqm(*by_task) == pytest.approx(0.44444444)
    ends = plot.interval(by_task, aggregate.iqm)
    np.testing.assert_allclose(ends, [0.28888889, 0.62222222], atol=0.02)
    above = [(task[:, None] > [0.15, 0.35, 0.75]).astype(float) for task in by_task]
    np.testing.assert_allclose(aggregate.mean(*above), [0.86666667, 0.53333333, 0.26666667])
    low, high = plot.interval(above, aggregate.mean)
    np.testing.assert_allclose(low, [0.73333333, 0.33333333, 0.06666667], atol=1e-6)
    np.testing.assert_allclose(high, [1.0, 0.73333333, 0.46666667], atol=1e-6)


def test_scores(tasks, capsys):
    """Where the shortest run of the task ends, on the scale of the task."""
    scores = gathered()
    on_a = scores[scores["env"] == "A-v0"]
    assert on_a["score"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert set(on_a["step"]) == {200}
    on_b = scores[scores["env"] == "B-v0"]
    assert on_b["score"].tolist() == pytest.approx([0.995] * 3)
    assert set(on_b["step"]) == {300}


def test_table_of_all_tasks(tasks, capsys):
    """IQM of 0.1, 0.2, 0.3, 0.4 and three times 0.995, without the lowest and the highest."""
    aggregated(table=Path("new/table.md"))
    out, err = capsys.readouterr()
    (row,) = cells(out)
    middle = (0.2 + 0.3 + 0.4 + 2 * 0.995) / 5
    assert row[:3] == ["sac", "2 tasks, n = 3 or 4 each", f"{middle:.2f}"]
    low, high = map(float, row[3].split(" to "))
    assert low < middle < high
    assert row[4:] == ["2.5", "99"]
    assert "A-v0 200, B-v0 300" in out
    assert "a task with more runs weighs more" in err
    assert Path("new/table.md").read_text(encoding="utf-8").startswith(out)
    assert Path("aggregate.png").read_bytes().startswith(plot.BEGINNINGS[".png"])
    aggregated(table=Path("new/table.md"))


def test_no_interval_of_two_runs(tasks, capsys):
    for folder in Path("runs").glob("B-v0__sac__3__*"):
        shutil.rmtree(folder)
    scores = gathered()
    assert not aggregate.has_interval(aggregate.by_task(scores, "sac"))
    assert cells(aggregate.table(scores, EVAL))[0][3] == "n/a"
    left, right = aggregate.draw(scores).axes
    assert (len(left.lines), len(right.collections)) == (1, 0)


def test_picture_of_all_tasks(tasks):
    """Left the mean with its interval, right the share of runs above a score."""
    scores = gathered()
    figure = aggregate.draw(scores, "a title")
    left, right = figure.axes
    middle, bar = left.lines
    tasks = aggregate.by_task(scores, "sac")
    assert middle.get_xdata() == pytest.approx(aggregate.iqm(*tasks))
    assert list(bar.get_xdata()) == list(plot.interval(tasks, aggregate.iqm))
    (profile,) = right.lines
    share = np.interp([0.05, 0.25, 0.7], *profile.get_data())
    np.testing.assert_allclose(share, [1, 5 / 7, 3 / 7])
    assert len(right.collections) == 1
    assert legend(figure) == ["sac, 2 tasks, n = 3 or 4 each"]


def test_only_tasks_that_all_have(tasks, capsys):
    """Means over different tasks are not comparable. Settings that vary by task are named."""
    write(Path("runs"), 1, rows((100, 0), (200, 1)), "B-v0", "td3", gamma=0.9)
    write(Path("runs"), 1, rows((100, 0), (200, 1)), "A-v0", "td3", gamma=0.8)
    write(Path("runs"), 1, rows((100, 0), (200, 1)), "C-v0", "td3", gamma=0.9)
    aggregated()
    out, err = capsys.readouterr()
    assert [row[0] for row in cells(out)] == ["sac", "td3"]
    assert "C-v0 |" not in out
    assert "note: C-v0 is left out: not every kind of run was made there" in err
    assert "note: td3: the tasks differ in gamma" in err


WRONG_REFERENCES = {
    "there is no file references.csv": None,
    "lacks the columns published": "environment,random\nA-v0,0\n",
    "has an environment twice": REFERENCES + "A-v0,0,10\n",
    "must be two different numbers": REFERENCES + "D-v0,1,1\n",
    "two different numbers in each row": REFERENCES + "D-v0,1,high\n",
    "the reference scores lack B-v0": "environment,random,published\nA-v0,0,10\n",
}


@pytest.mark.parametrize("message", WRONG_REFERENCES)
def test_wrong_references(tasks, capsys, message):
    Path("references.csv").unlink()
    if WRONG_REFERENCES[message]:
        Path("references.csv").write_text(WRONG_REFERENCES[message])
    with pytest.raises(SystemExit) as stop:
        aggregated()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("aggregate.png").exists()


def test_nothing_to_compare(tasks, capsys):
    write(Path("runs"), 1, rows((100, 0), (200, 1)), "C-v0", "td3")
    with pytest.raises(SystemExit):
        aggregated()
    assert "no task has runs of every kind" in capsys.readouterr().err
    write(Path("late"), 1, rows((100, 0), (200, 1)), "C-v0")
    write(Path("late"), 2, rows((300, 0), (400, 1)), "C-v0")
    with pytest.raises(SystemExit):
        aggregated(paths=(Path("late"),))
    assert "C-v0: a run of sac begins after another one has ended" in capsys.readouterr().err


def test_the_projects_own_references():
    """They name the tasks of the results page, with random below published."""
    found = aggregate.read_references(aggregate.Args().references)
    assert {"Pendulum-v1", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"} <= set(found.index)
    assert (found["random"] < found["published"]).all()


# === to_tensorboard.py ============================================================================
def test_to_tensorboard(tmp_path, monkeypatch, capsys):
    """Every number of metrics.csv over the steps; a second call replaces the first one's file."""
    path = write(tmp_path / "runs", 1, [(100, 1.5, 0, None, -3), (200, 2.5, 1, -7, None)])
    with open(path, "a") as file:
        file.write("300,3")  # killed here
    (path.parent / "events.out.tfevents.1.of-others").touch()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        to_tensorboard.main(to_tensorboard.Args())
    assert capsys.readouterr().out == 2 * f"{Path('runs', path.parent.name)}: 2 rows\n"
    assert len(list(path.parent.glob("events.out.tfevents.*"))) == 2
    events = event_accumulator.EventAccumulator(str(path.parent))
    events.Reload()
    tags = events.Tags()["scalars"]
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    assert found == {
        "seconds": [(100, 1.5), (200, 2.5)],
        "episodes": [(100, 0), (200, 1)],
        "episodic_return": [(200, -7)],
        EVAL: [(100, -3)],
    }
    first, second = (e.wall_time for e in events.Scalars("seconds"))
    assert second - first == pytest.approx(1, abs=1e-3)


def test_errors_of_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("good"), 1, rows((1, 1), (2, 2)))
    for name, content in (("empty", ""), ("broken", "global_step,seconds\nx,1\n")):
        Path(name).mkdir()
        if content:
            Path(name, "metrics.csv").write_text(content)
        with pytest.raises(SystemExit, match=f"^error: .*{name}"):
            to_tensorboard.main(to_tensorboard.Args(paths=(Path(name),)))
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": None}):
        with pytest.raises(SystemExit, match="pip install -r requirements-tensorboard.txt"):
            to_tensorboard.main(to_tensorboard.Args(paths=(Path("good"),)))
