"""tools/plot.py draws and tabulates what the runs measured, and nothing else."""

import csv
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import helpers
import numpy as np
import plot
import pytest
import to_tensorboard
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

COLUMNS = ("global_step", "seconds", "episodes", "episodic_return", "eval_return_mean")
EVAL = "eval_return_mean"


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


def grouped(*paths: Path, metric: str = EVAL, x: str = "global_step", **args: Any) -> plot.Groups:
    return plot.group(plot.find_runs(plot.Args(paths=paths, **args)), metric, x)


def lines(panel: Any, width: float) -> list[np.ndarray]:
    """The data, (points, 2), of a panel's lines of this width: 0.7 is a run, 1.8 a mean."""
    return [line.get_xydata() for line in panel.lines if line.get_linewidth() == width]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def last_row(root: Path, metric: str = EVAL) -> list[str]:
    line = [line for line in plot.table(grouped(root), metric).splitlines() if "|" in line][-1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_band_are_those_computed_by_hand(tmp_path):
    """The mean is taken where all seeds have values; the deviation is that of a sample."""
    three_seeds(tmp_path)
    figure = plot.draw(grouped(tmp_path), EVAL, "global_step")
    (panel,) = figure.axes
    assert [len(line) for line in lines(panel, 0.7)] == [2, 3, 3]
    (mean,) = lines(panel, 1.8)
    np.testing.assert_allclose(mean, [(200, 20), (300, 40), (400, 20)])
    corners = panel.collections[0].get_paths()[0].vertices
    for x, middle, std in ((200, 20, math.sqrt(300)), (300, 40, 20), (400, 20, 10)):
        heights = corners[corners[:, 0] == x, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [middle - std, middle + std])
    assert legend(figure) == ["sac, n = 3"]
    assert (panel.get_xlabel(), panel.get_title()) == ("environment steps", "Env-v0")
    assert panel.get_ylabel() == "evaluation return (sum of rewards)"


def test_table(tmp_path):
    """One row a group; the final value is where the shortest run ends, the best before it."""
    three_seeds(tmp_path)
    assert last_row(tmp_path) == ["Env-v0", "sac", "3", "400", "20 ± 10", "40", "7.2"]
    write(tmp_path, 1, rows((1000, -1e6), (2_000_000, -1234.56)), "Other-v0", "td3")
    expected = ["Other-v0", "td3", "1", "2,000,000", "-1,234.6", "-1,234.6", "33333.3"]
    assert last_row(tmp_path) == expected
    assert len(plot.table(grouped(tmp_path), EVAL).split("\n\n")[0].splitlines()) == 4


def test_panels_colours_and_counts(tmp_path):
    """A panel per environment; a script keeps its colour, and n is told where it differs."""
    for env, seeds in (("A-v0", 2), ("B-v0", 3), ("ns/C-v0", 3)):
        for seed in range(seeds):
            write(tmp_path, seed, rows((100, 0), (1_000_000, 1)), env, "sac")
    write(tmp_path, 1, rows((100, 0), (200, 1)), "B-v0", "ddpg")
    figure = plot.draw(grouped(tmp_path), EVAL, "global_step")
    assert [panel.get_title() for panel in figure.axes] == ["A-v0", "B-v0", "ns/C-v0"]
    assert [len(lines(panel, 0.7)) for panel in figure.axes] == [2, 4, 3]
    assert [len(lines(panel, 1.8)) for panel in figure.axes] == [1, 2, 1]
    assert legend(figure) == ["ddpg, n = 1", "sac, n = 2 or 3"]
    colours = [[line.get_color() for line in panel.lines] for panel in figure.axes]
    assert set(colours[0]) == set(colours[2]) == {plot.COLOURS[1]}
    assert set(colours[1]) == {plot.COLOURS[0], plot.COLOURS[1]}
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticklabels()
    assert {"0", "500,000", "1,000,000"} <= {tick.get_text() for tick in ticks}
    boxes = [tick.get_window_extent() for tick in ticks]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


TORN = ("600,600", "600,600,60,-1,-99", "600,600,60,-1,-9999\r", '600,600,60,"', "\n\n600,x,,\n")


@pytest.mark.parametrize("tail", TORN)
def test_torn_last_line(tmp_path, tail):
    """A last line without its end is skipped even if it looks whole: a digit may be missing."""
    path = write(tmp_path, 1, rows((100, 1), (200, 2)))
    with open(path, "a", newline="") as file:
        file.write(tail)
    steps, values = plot.curve(plot.load(path), "global_step", EVAL)
    assert (steps.tolist(), values.tolist()) == ([100, 200], [1, 2])


EMPTY = ("", "global_st", ",".join(COLUMNS) + "\n", f"global_step,{EVAL}\n1,1\n2,2\n")


@pytest.mark.parametrize("content", EMPTY)
def test_run_without_what_is_needed(tmp_path, capsys, content):
    """Killed before its first row, say: left out, with a word about it; the others are drawn."""
    write(tmp_path, 1, rows((100, 1), (200, 2)))
    write(tmp_path, 2, []).write_text(content)
    assert last_row(tmp_path)[2] == "1"
    assert f"no point of {EVAL}, left out" in capsys.readouterr().err


def test_empty_cells(tmp_path):
    """Evaluation is measured in few rows: the curve has those and no others."""
    table = [(t, t, 0, None, t if t % 300 == 0 else None) for t in range(100, 1000, 100)]
    path = write(tmp_path, 1, [*table, (1000, 1000, 0, "inf", "nan"), (1100, 1, 0, "", "?")])
    steps, values = plot.curve(plot.load(path), "global_step", EVAL)
    assert steps.tolist() == values.tolist() == [300, 600, 900]
    assert not len(plot.curve(plot.load(path), "global_step", "episodic_return")[0])


def test_other_axes(tmp_path):
    """Over seconds and episodes; of several rows within one episode the last is taken."""
    path = write(tmp_path, 1, [(1, 0.5, 0, 7, 1), (2, 0.7, 0, 8, 2), (3, 0.9, 1, 9, 3)])
    run = plot.load(path)
    assert np.transpose(plot.curve(run, "episodes", EVAL)).tolist() == [[0, 2], [1, 3]]
    by_time = [[0.5, 7], [0.7, 8], [0.9, 9]]
    assert np.transpose(plot.curve(run, "seconds", "episodic_return")).tolist() == by_time
    groups = grouped(tmp_path, metric="episodic_return", x="seconds")
    (panel,) = plot.draw(groups, "episodic_return", "seconds").axes
    assert lines(panel, 0.7)[0].tolist() == by_time
    assert panel.get_xlabel() == "time (seconds)"
    assert panel.get_ylabel() == "training return (sum of rewards)"


def test_smoothing(tmp_path):
    """A mean over the last points, which looks at no later one and which the axis owns up to."""
    write(tmp_path, 1, rows((1, 3), (2, 6), (3, 0), (4, 9)))
    (panel,) = plot.draw(grouped(tmp_path), EVAL, "global_step", smooth=3).axes
    np.testing.assert_allclose(lines(panel, 0.7)[0][:, 1], [3, 4.5, 3, 5])
    assert "mean of the last 3 points" in panel.get_ylabel()
    (panel,) = plot.draw(grouped(tmp_path), EVAL, "global_step").axes
    assert "mean" not in panel.get_ylabel()


def test_default_metric(tmp_path, capsys):
    """Evaluation where any run has one, else the training return; any column on demand."""
    args = plot.Args(paths=(tmp_path,), out=tmp_path / "new" / "c.png")
    write(tmp_path, 1, [(1, 1, 0, 5, None), (2, 2, 0, 6, None)])
    plot.main(args)
    assert "| episodic_return |" in capsys.readouterr().out
    write(tmp_path, 2, rows((1, 3), (2, 4)))
    plot.main(args)
    assert f"| {EVAL} |" in capsys.readouterr().out
    args.metric = "episodes"
    plot.main(args)
    assert "| episodes |" in capsys.readouterr().out


def test_equal_seeds_are_both_counted(tmp_path, capsys):
    write(tmp_path, 1, rows((100, 0), (200, 1)))
    write(tmp_path, 1, rows((100, 0), (200, 3)))
    assert last_row(tmp_path)[2:6] == ["2", "200", "2 ± 1.41", "2"]
    assert "Env-v0, sac: 2 runs have seed 1" in capsys.readouterr().err
    write(tmp_path / "other", 1, rows((100, 0), (200, 3)), script="td3")
    write(tmp_path / "other", 2, rows((100, 0), (200, 3)), script="td3")
    grouped(tmp_path / "other")
    assert not capsys.readouterr().err


def test_labels_tell_paths_apart(tmp_path):
    """The same script under two paths: one group, or two with names; never a run twice."""
    one, two = (write(tmp_path / name, 1, rows((100, 0), (200, 1))) for name in "ab")
    assert [len(runs) for runs in grouped(tmp_path, one, tmp_path / "a").values()] == [2]
    groups = grouped(one, two.parent, labels=("old", "new"))
    expected = [(("Env-v0", "new"), two), (("Env-v0", "old"), one)]
    assert [(key, run.path) for key, (run,) in groups.items()] == expected


def test_runs_with_other_settings_are_told_apart(tmp_path, capsys):
    """A mean is over seeds. The legend shows what differs, and nothing that makes no difference."""
    same = {"gamma": 0.99, "runs_dir": "a", "torch": "1", "cores": 2, "resume": "", "track": False}
    moved = same | {"runs_dir": "b", "torch": "2", "cores": 4, "resume": "x.pt", "track": True}
    write(tmp_path, 1, rows((100, 0), (200, 1)), q_lr=1e-3, **same)
    write(tmp_path, 2, rows((100, 0), (200, 3)), q_lr=1e-3, **moved)
    write(tmp_path, 2, rows((100, 0), (200, 9)), q_lr=1e-4, **same)
    write(tmp_path, 3, rows((100, 0), (200, 9)), q_lr=1e-3, **same, trick=True)
    write(tmp_path, 1, rows((100, 0), (200, 9)), q_lr=1e-4, **same, env="Other-v0")
    groups = grouped(tmp_path)
    names = "sac q_lr=0.001", "sac q_lr=0.0001", "sac q_lr=0.001 trick=True"
    assert set(groups) == {*(("Env-v0", name) for name in names), ("Other-v0", "sac")}
    assert [run.seed for run in groups["Env-v0", names[0]]] == ["1", "2"]
    assert f"{names[0]}, n = 2" in legend(plot.draw(groups, EVAL, "global_step"))
    assert not capsys.readouterr().err


def test_one_label_for_two_scripts(tmp_path):
    """Scripts are told apart even then, and so are runs whose settings are lost."""
    write(tmp_path, 1, rows((100, 0), (200, 1)), script="td3")
    write(tmp_path, 1, rows((100, 0), (200, 1)), script="sac")
    write(tmp_path, 2, rows((100, 0), (200, 1)), script="sac").with_name("args.json").unlink()
    groups = grouped(tmp_path, labels=("a",))
    names = "a script=td3", "a script=sac", "a script=sac settings=unknown"
    assert {name for _, name in groups} == set(names)


def test_a_long_legend_stays_in_the_picture(tmp_path):
    for trick in ("one", "two"):
        settings = {f"a_long_setting_{i}": trick for i in range(12)}
        write(tmp_path, 1, rows((100, 0), (200, 1)), **settings)
    figure = plot.draw(grouped(tmp_path), EVAL, "global_step")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("variant", ["", "with_it"])
def test_runs_arranged_by_environment_and_script(tmp_path, variant):
    """<env>/<script>/<variant>/seed_<n>, as in benchmarks/results."""
    folder = tmp_path / "Env-v0" / "sac_v1_value_net" / variant / "seed_2"
    folder.parent.mkdir(parents=True)
    write(tmp_path / "x", 2, rows((100, 0), (200, 1)), env="ns/Env-v0").parent.rename(folder)
    run = plot.load(folder / "metrics.csv")
    assert (run.env, run.group, run.seed) == ("ns/Env-v0", "sac_v1_value_net", "2")


def test_settings_are_read_or_else_the_name(tmp_path):
    """args.json knows the environment's real name; a run without it goes by its folder's."""
    path = write(tmp_path, 3, rows((100, 0), (200, 1)), env="ns/Env-v0")
    run = plot.load(path)
    assert (run.env, run.group, run.seed) == ("ns/Env-v0", "sac", "3")
    for damage in ("", "[1]", '{"env_id": "ns/En'):
        path.with_name("args.json").write_text(damage)
        run = plot.load(path)
        assert (run.env, run.group, run.seed) == ("ns-Env-v0", "sac", "3")
    path = path.rename(tmp_path / "metrics.csv")
    assert plot.load(path).group == tmp_path.name


def test_single_points_are_markers(tmp_path, capsys):
    """One point draws no line: it is marked, said, and a range that seeds do not share is n/a."""
    write(tmp_path, 1, rows((100, 5)))
    (panel,) = plot.draw(grouped(tmp_path), EVAL, "global_step").axes
    assert [line.get_marker() for line in panel.lines] == ["o", "o"]
    assert f"1 point of {EVAL}, drawn as a marker" in capsys.readouterr().err
    write(tmp_path, 2, rows((200, 5), (300, 6)))
    (panel,) = plot.draw(grouped(tmp_path), EVAL, "global_step").axes
    assert [line.get_marker() for line in panel.lines] == ["o", "", ""]
    assert not len(lines(panel, 1.8)[0])
    assert last_row(tmp_path) == ["Env-v0", "sac", "2", "n/a", "n/a", "n/a", "3.3"]


def test_picture(tmp_path):
    """As typed, without arguments: a small picture with every script's own colour, and a table."""
    noise = np.random.default_rng(0)
    for level, script in enumerate("abcdefg"):
        for seed in (1, 2, 3):
            values = 10 * level + noise.normal(size=100)
            points = zip(range(1000, 101_000, 1000), values, strict=True)
            write(tmp_path / "runs", seed, rows(*points), script=script)
    done = helpers.run("tools/plot", "--table", "new/curves.md", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "new" / "curves.md").read_text(encoding="utf-8") == done.stdout
    assert not list(tmp_path.glob("*.md"))
    assert done.stdout.count("| Env-v0 |") == 7
    assert (tmp_path / "curve.png").stat().st_size < 100_000
    picture = Image.open(tmp_path / "curve.png").convert("RGB")
    counts = {rgb: count for count, rgb in picture.getcolors(2**24)}
    for colour in plot.COLOURS:
        assert counts[tuple(bytes.fromhex(colour[1:]))] > 500
    assert counts[255, 255, 255] > 0.4 * picture.width * picture.height


def test_table_replaces_a_table_only(tmp_path, monkeypatch):
    """Without --table no table is written; a page that somebody wrote stays as it is."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, rows((1, 1), (2, 2)))
    Path("README.md").write_text("# Written by hand")
    plot.main(plot.Args(out=Path("README.png")))
    plot.main(plot.Args(table=Path("table.md")))
    first = Path("table.md").read_text(encoding="utf-8")
    write(Path("runs"), 2, rows((1, 1), (2, 2)))
    plot.main(plot.Args(table=Path("table.md")))
    assert first != Path("table.md").read_text(encoding="utf-8")
    Path("README.png").unlink()
    with pytest.raises(SystemExit, match="README.md exists and is no table"):
        plot.main(plot.Args(out=Path("README.png"), table=Path("README.md")))
    assert Path("README.md").read_text() == "# Written by hand"
    assert not Path("README.png").exists()


ERRORS = {
    "no metrics.csv under empty": {"paths": (Path("runs"), Path("empty"))},
    "there is no nowhere": {"paths": (Path("runs"), Path("nowhere"))},
    "args.txt is neither a folder nor a metrics.csv": {"paths": (Path("args.txt"),)},
    "no column speed; there are global_step, seconds, episodes, episodic_": {"metric": "speed"},
    "eval_return_mean was never measured": {"metric": EVAL},
    "--smooth must be at least 1": {"smooth": 0},
    "--out must end in .png, not in curve.md": {"out": Path("curve.md")},
    "--labels has 2 names for 1 paths": {"labels": ("a", "b")},
    "cannot write": {"out": Path("file", "curve.png")},
    "cannot read": {"paths": (Path("binary.csv"),)},
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(tmp_path, monkeypatch, message):
    """What cannot be done is said in a line, and no picture is left."""
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), 1, [(1, 1, 0, 5, None), (2, 2, 0, 6, None)])
    Path("file").touch()
    Path("binary.csv").write_bytes(b"\xff\xfe\n")
    Path("args.txt").touch()
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        plot.main(plot.Args(**ERRORS[message]))
    text = str(stop.value)
    assert text.startswith("error: ") and message in text and "\n" not in text
    assert not list(tmp_path.rglob("curve.*"))


def test_errors_of_the_command(tmp_path):
    """An error is a line on standard error and an exit status, also where matplotlib is missing."""
    done = helpers.run("tools/plot", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["error: there is no runs"]
    (tmp_path / "matplotlib.py").write_text("raise ImportError('there is no matplotlib')")
    done = helpers.run("tools/plot", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, "")
    install = "pip install -r requirements-plot.txt"
    assert done.stderr.splitlines() == [f"error: there is no matplotlib: {install}"]


@pytest.mark.parametrize("script", helpers.SCRIPTS)
def test_draws_what_a_script_writes(tmp_path, script):
    """A real run, over each axis: its folder, its settings and its columns are understood."""
    helpers.main(script, *helpers.QUICK[script], "--eval-frequency=120", "--runs-dir", tmp_path)
    for x in ("global_step", "episodes", "seconds"):
        ((env, name),) = groups = grouped(tmp_path, x=x)
        assert (env, name) == ("Pendulum-v1", script)
        (panel,) = plot.draw(groups, EVAL, x).axes
        assert len(lines(panel, 0.7)[0]) == 2


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
