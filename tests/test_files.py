"""What a run leaves: its folder, metrics.csv, args.json, and what train() returns."""

import dataclasses
import itertools
import json
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds
from helpers import (
    FIRST,
    LAST,
    PENDULUM,
    TINY,
    after_each_step,
    each_kind,
    metrics,
    off_policy,
    one,
    run_dir,
    same_training,
    table,
)

worlds.register("space/Endless", worlds.Corridor, 5)


@pytest.mark.slow_but("sac_continuous")
@off_policy
def test_header_grows_to_the_right(tiny_run, module):
    """A column of the script's own is added when there is something to fill in, and never goes."""
    bias = ["q_bias"] if hasattr(module, "q_bias") else []  # of evaluation
    for settings in ({"updates_per_step": 0}, {"learning_starts": 100}, {}):
        header, rows = table(tiny_run(**settings))
        assert header[:9] == [*FIRST, *LAST] and len(set(header)) == len(header)
        assert {len(row) for row in rows} == {len(header)}
        if settings:
            assert header[9:] == bias
        else:
            assert {"critic_loss", "actor_loss", *bias} < set(header[9:])


@off_policy
def test_rows(tiny_run):
    """One whenever a row or an evaluation is due and one at the end, none twice."""
    results = tiny_run(log_frequency=9, eval_frequency=12, total_timesteps=40)
    rows, own = metrics(results["run_dir"]), table(results)[0][9:]
    assert [int(row["global_step"]) for row in rows] == [9, 12, 18, 24, 27, 36, 40]
    for row in rows:
        step = int(row["global_step"])
        evaluated = step % 12 == 0 or step == 40
        assert row["eval_return_mean"] == ("5.0" if evaluated else "")
        for name in own:
            assert (row[name] != "") == (evaluated if name == "q_bias" else step > 20), name
        assert all(math.isfinite(float(row[name])) for name in own if row[name])


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@pytest.mark.parametrize("every", [3, 10])
@pytest.mark.parametrize("world", ["Endless", "Ending", "Both"])
def test_every_episode_is_counted(world, every, tiny_run):
    """Whether it was cut, terminated or both: each has 5 steps of reward 1."""
    before = 0
    for row in metrics(tiny_run(env_id=f"worlds:{world}-v0", log_frequency=every)["run_dir"]):
        episodes = int(row["episodes"])
        assert episodes == int(row["global_step"]) // 5
        expected = ("5.0", "5.0") if episodes > before else ("", "")
        assert (row["episodic_return"], row["episodic_length"]) == expected
        before = episodes
    assert before == 12


@one
def test_metrics_are_on_disk_at_once(tiny_run, module, monkeypatch):
    """What a killed run would leave: every row that was due."""
    seen = []
    after_each_step(module, monkeypatch, lambda run: seen.append(len(metrics(run.dir))))
    tiny_run()
    assert seen == [step // 10 for step in range(1, 61)]


@each_kind
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other;columns\n")])
def test_a_table_that_is_lost_comes_back_whole(damage, tiny_run, module, monkeypatch):
    """Deleted, it is written anew with its header; else, where the run is resumed."""
    whole = tiny_run()
    deleted = damage is Path.unlink

    def damage_once(run):
        if run.step == 40:
            damage(run.dir / "metrics.csv")

    with monkeypatch.context() as patch:
        after_each_step(module, patch, damage_once)
        results = tiny_run(total_timesteps=60 if deleted else 40)
    if not deleted:
        module.resume(str(results["run_dir"] / "checkpoint.pt"), total_timesteps=60)
    assert table(results)[0] == table(whole)[0]
    steps = [[row["global_step"] for row in metrics(r["run_dir"])] for r in (results, whole)]
    assert steps[0] == steps[1] == ["10", "20", "30", "40", "50", "60"]
    if deleted:
        assert metrics(results["run_dir"]) == metrics(whole["run_dir"])


@each_kind
def test_a_table_that_is_locked_where_the_run_ends(tiny_run, module, monkeypatch, capsys):
    """As by a spreadsheet. Its rows are kept: resumed, the run writes them."""
    whole, numbers = metrics(tiny_run()["run_dir"]), itertools.count(1)

    def deny(path, *args, **kwargs):
        if Path(path).name == "metrics.csv" and next(numbers) > 5:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", deny, raising=False)
        folder = tiny_run()["run_dir"]
    assert capsys.readouterr().out.count("metrics.csv cannot be written now") == 2
    assert metrics(folder) == whole[:4]
    module.resume(str(folder / "checkpoint.pt"))
    assert [row["global_step"] for row in metrics(folder)] == ["10", "20", "30", "40", "50", "60"]


@each_kind
def test_args_json(tiny_run, script, module, tmp_path):
    results = tiny_run(seed=7, gamma=0.5)
    about = json.loads((results["run_dir"] / "args.json").read_text())
    settings = TINY[script] | {"seed": 7, "gamma": 0.5, "runs_dir": str(tmp_path / "runs0")}
    assert dataclasses.asdict(module.Args(**settings)).items() <= about.items()
    for package in (torch, gym, np):
        assert about[package.__name__] == package.__version__
    assert about["python"] == sys.version and about["platform"] == platform.platform()
    assert about["cores"] == os.cpu_count()


@each_kind
@pytest.mark.parametrize("env_id", ["worlds:Endless-v0", "space/Endless-v0"])
def test_folder_names_are_safe_everywhere(env_id, tiny_run, script, tmp_path):
    name = run_dir(tmp_path / "runs0").name if tiny_run(env_id=env_id, seed=12) else ""
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert "Endless-v0" in name and script in name and "__12__" in name


@each_kind
def test_no_run_writes_into_anothers_folder(tiny_run, failed_run, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    first = tiny_run(runs_dir=str(tmp_path))
    before = {path: path.read_bytes() for path in first["run_dir"].iterdir()}
    assert str(first["run_dir"]) in failed_run(runs_dir=str(tmp_path))
    assert before == {path: path.read_bytes() for path in first["run_dir"].iterdir()}


@each_kind
def test_two_runs_in_one_second(tiny_run, monkeypatch, tmp_path):
    """A thousandth of it apart, as a loop in a shell starts them."""
    times = itertools.count(1_000_000_000_250)
    monkeypatch.setattr(time, "time", lambda: next(times) / 1000)
    folders = [tiny_run(runs_dir=str(tmp_path))["run_dir"] for _ in "ab"]
    assert folders[0] != folders[1] and sorted(tmp_path.iterdir()) == sorted(folders)


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
def test_what_train_returns(tiny_run, script, module, tmp_path):
    """What a notebook needs: the evaluation, where the files are, and the actor."""
    results = tiny_run(**PENDULUM[script], eval_episodes=2)
    expected = {*LAST, "global_step", "seconds", "run_dir", "agent", "actor"}
    expected |= {"q_bias"} & results.keys()
    assert results.keys() == expected and results["actor"] is results["agent"].actor
    assert results["run_dir"] == run_dir(tmp_path / "runs0")
    assert results["global_step"] == 240 and results["eval_episodes"] == 2
    args = module.Args(**TINY[script] | PENDULUM[script] | {"eval_episodes": 2})
    trajectories = module.evaluate(results["actor"], module.make_env("Pendulum-v1"), args)
    returns = [sum(step[2] for step in trajectory) for trajectory in trajectories]
    assert results["eval_return_mean"] == np.mean(returns)
    assert results["eval_return_std"] == np.std(returns)


@pytest.mark.slow
@one
def test_track_offline(tiny_run, module, monkeypatch, tmp_path):
    """Without an account, and without a file outside the run's folder."""
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # of an earlier test, which would keep its settings
    plain, tracked = tiny_run(), tiny_run(track=True)
    same_training(plain, tracked)
    (file,) = tmp_path.rglob("*.wandb")
    assert tracked["run_dir"] in file.parents
    names = [name.encode() for name in table(plain)[0][9:]]
    end = time.monotonic() + 60  # W&B writes in a process of its own, which may be late
    while not all(name in file.read_bytes() for name in names) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(name in file.read_bytes() for name in names)
