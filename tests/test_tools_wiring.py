"""What the tools do with the files, names and options that real runs have."""

import json
import os
import shutil
from pathlib import Path

import enjoy
import helpers
import plot
import pytest
import to_tensorboard
from tensorboard.backend.event_processing import event_accumulator

SAC = "sac_continuous"
TABLE = "global_step,seconds,eval_return_mean\r\n100,7.5,1\r\n200,9.0,3\r\n"


@pytest.fixture
def run(tmp_path):
    """The folder of a short run."""
    settings = helpers.TINY[SAC] | {"env_id": "Pendulum-v1", "total_timesteps": 30}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return helpers.train(SAC, *flags, f"--runs-dir={tmp_path / 'runs'}")["run_dir"]


def play(run, **args):
    return enjoy.main(enjoy.Args(run=run, numbers=True, **args))


def table_in(folder, text=TABLE):
    """A run's folder with this table."""
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(text, encoding="utf-8", newline="")
    return folder / "metrics.csv"


def test_a_run_from_a_gpu_is_played_on_the_cpu(run):
    """Whatever device it was trained on; its returns are the same here."""
    returns = play(run)
    path = run / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda"}))
    assert play(run) == returns


def test_seed_zero_is_a_seed(run, capsys):
    """And not the lack of one."""
    play(run, seed=0)
    assert "episode 1, seed 0: " in capsys.readouterr().out


def test_an_environment_with_underscores_in_its_name(tmp_path):
    """Script, seed and time are the last three parts of a folder's name, whatever comes before."""
    folder = tmp_path / "runs" / f"my__own__World-v0__{SAC}__7__1795578150.000001"
    assert enjoy.find_script(None, folder).name == f"{SAC}.py"
    (found,) = plot.find_runs((table_in(folder),))
    assert (found.env, found.name, found.seed) == ("my__own__World-v0", SAC, "7")


def test_a_table_that_excel_has_saved(tmp_path, capsys):
    """It begins with a mark, which is no part of the first column's name."""
    path = table_in(tmp_path / "run", "\ufeff" + TABLE)
    (found,) = plot.find_runs((path,))
    points = plot.curve(found, "global_step", "eval_return_mean")
    assert list(points.items()) == [(100, 1), (200, 3)]
    to_tensorboard.main(to_tensorboard.Args(paths=(tmp_path,)))
    assert capsys.readouterr().out == f"{path.parent}: 2 rows\n"


def test_the_table_is_over_steps(tmp_path):
    """Whatever the picture is drawn over."""
    table_in(tmp_path / f"World-v0__{SAC}__1__5.0")
    out, written = tmp_path / "curve.png", tmp_path / "table.md"
    plot.main(plot.Args(paths=(tmp_path,), x="seconds", out=out, table=written))
    row = written.read_text(encoding="utf-8").splitlines()[2]
    # 9 seconds are 0.15 minutes
    assert row == f"| World-v0 | {SAC} | 1 | eval_return_mean | 200 | 3 | 3 | 0.1 |"


def test_tensorboard_shows_when_the_run_was(tmp_path):
    """Its last row was written when the file was, the others so much earlier."""
    path = table_in(tmp_path / "run")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    to_tensorboard.main(to_tensorboard.Args(paths=(tmp_path,)))
    events = event_accumulator.EventAccumulator(str(path.parent))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("eval_return_mean")]
    assert times == pytest.approx([1_700_000_000 - 1.5, 1_700_000_000], abs=1e-3)


def test_enjoy_needs_no_file_but_model_and_settings(run, tmp_path):
    """A folder that was copied without checkpoint and table is played as before."""
    returns = play(run)
    alone = tmp_path / "elsewhere" / run.name
    alone.mkdir(parents=True)
    for name in ("model.pt", "args.json"):
        shutil.copy(run / name, alone)
    assert play(alone) == returns
    assert sorted(path.name for path in Path(alone).iterdir()) == ["args.json", "model.pt"]
