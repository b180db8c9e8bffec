"""tools/sweep.py completes every run once, whatever dies meanwhile, and refuses wrong use."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import helpers
import pytest
import sweep
import tyro
from processes import contents, posix

ROOT = helpers.TESTS.parent
NO_RAY = "Ray is missing: pip install -r requirements-sweep.txt"
# A run of a second, with rows 20, 40, ..., 200 and a checkpoint every 20 steps.
TINY = {"total_timesteps": 200, "hidden_dim": 8, "batch_size": 8, "learning_starts": 20}
TINY |= {"log_frequency": 20, "checkpoint_frequency": 20, "eval_frequency": 0, "eval_episodes": 1}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """What the tool leaves in this process is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets one
    with mock.patch.dict(os.environ):
        yield
    signal.signal(signal.SIGTERM, handler)


def toml(table: dict[str, Any]) -> str:
    """A block of a sweep's file."""
    return "[[runs]]\n" + "".join(f"{name} = {json.dumps(v)}\n" for name, v in table.items())


def write(*tables: dict[str, Any]) -> Path:
    Path("sweep.toml").write_text("".join(map(toml, tables)), encoding="utf-8")
    return Path("sweep.toml")


def expand(*tables: dict[str, Any], runs_dir: str = "runs") -> list[sweep.Run]:
    blocks = sweep.read_blocks(sweep.Args(file=write(*tables)))
    return sweep.expand(blocks, Path(runs_dir), open_environments=False)


def command_line(*words: str) -> Any:
    """What `python tools/sweep.py` with these words ends with: an exit code or a message."""
    try:
        return sweep.main(tyro.cli(sweep.Args, args=words))
    except SystemExit as stop:
        return stop.code


def a_run(**settings: Any) -> sweep.Run:
    (run,) = expand({"script": "sac_continuous.py"} | TINY | settings)
    return run


def rows(run: sweep.Run) -> list[dict[str, str]]:
    """The rows of metrics.csv in the only folder that the script has made."""
    (attempt,) = sweep.attempts(run)
    with open(attempt / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def table_in(run: sweep.Run, text: str, attempt: str = "1") -> Path:
    """A folder of the script with this metrics.csv."""
    folder = run.folder / attempt
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(run.settings), encoding="utf-8")
    (folder / "metrics.csv").write_text(text, encoding="utf-8", newline="")
    return folder


# === What is to be run ============================================================================


def test_every_combination_in_the_order_of_the_file():
    """The first list varies slowest; a second block comes after the first."""
    first = {"script": ["td3_continuous.py", "ddpg_continuous.py"], "seed": [1, 2]}
    first |= {"policy-lr": [1e-3, 3e-4]}
    runs = expand(first, {"script": "sac_continuous.py", "autotune": [True, False]})
    lines = [" ".join([run.script.name, *run.flags]) for run in runs]
    assert lines == [
        "td3_continuous.py --seed=1 --policy-lr=0.001",
        "td3_continuous.py --seed=1 --policy-lr=0.0003",
        "td3_continuous.py --seed=2 --policy-lr=0.001",
        "td3_continuous.py --seed=2 --policy-lr=0.0003",
        "ddpg_continuous.py --seed=1 --policy-lr=0.001",
        "ddpg_continuous.py --seed=1 --policy-lr=0.0003",
        "ddpg_continuous.py --seed=2 --policy-lr=0.001",
        "ddpg_continuous.py --seed=2 --policy-lr=0.0003",
        "sac_continuous.py --autotune",
        "sac_continuous.py --no-autotune",
    ]
    assert runs[3].settings["policy_lr"] == 3e-4 and runs[3].settings["gamma"] == 0.99
    assert [run.settings["autotune"] for run in runs[8:]] == [True, False]
    assert len({run.folder for run in runs}) == 10


def test_command_line_and_file_mean_the_same():
    """Scripts, environments, values of --set, seeds: the last vary fastest."""
    words = "--script ddpg_continuous.py --env-id Pendulum-v1 MountainCarContinuous-v0 "
    words += "--set q-lr 1e-3 --set compile false --seed 1 2"
    args = tyro.cli(sweep.Args, args=words.split())
    typed = sweep.expand(sweep.read_blocks(args), Path("runs"), open_environments=False)
    table = {"script": "ddpg_continuous.py", "env_id": ["Pendulum-v1", "MountainCarContinuous-v0"]}
    written = expand(table | {"seed": [1, 2], "compile": False, "q_lr": 0.001})
    assert [run.folder for run in typed] == [run.folder for run in written]
    assert [run.settings for run in typed] == [run.settings for run in written]


def test_a_run_that_stands_twice_is_done_once(capsys):
    runs = expand({"script": "sac_continuous.py", "seed": [3, 1]}, {"script": "sac_continuous.py",
                  "seed": [1, 2, 3]})  # fmt: skip
    assert [run.settings["seed"] for run in runs] == [3, 1, 2]
    assert "2 runs stand there twice" in capsys.readouterr().err


def test_folder_is_that_of_the_settings():
    """Not of their order, their spelling, or of what leaves the numbers as they are."""
    run = a_run(policy_lr=1e-3)
    assert re.fullmatch(r"Pendulum-v1__sac_continuous__1__[0-9a-f]{8}", run.folder.name)
    assert a_run(**{"policy-lr": "1e-3"}).folder == run.folder
    assert a_run(track=False, policy_lr=1e-3).folder == run.folder
    assert a_run(policy_lr=1e-3, checkpoint_frequency=7).folder == run.folder
    (turned,) = expand({"policy_lr": 1e-3} | TINY | {"script": "sac_continuous.py"})
    assert turned.folder == run.folder
    others = [a_run(), a_run(policy_lr=2e-3), a_run(policy_lr=1e-3, seed=2)]
    others += expand({"script": "sac_v1_value_net.py", "policy_lr": 1e-3} | TINY)
    others += [a_run(policy_lr=1e-3, env_kwargs='{"g": 5.0}')]
    assert len({run.folder, *(other.folder for other in others)}) == 6
    strange = a_run(env_id="my_module:A/B-v0")
    assert strange.folder.name.startswith("my_module-A-B-v0__sac_continuous__1__")


def test_true_is_not_one(capsys):
    """Although Python takes them for equal."""
    switch = {"script": "sac_continuous.py", "compile": True}
    assert expand(switch)[0].settings["compile"] is True
    with pytest.raises(SystemExit):
        expand(switch | {"compile": 1})
    assert "--compile of sac_continuous.py takes bool, not 1" in capsys.readouterr().err
    assert expand({"script": "sac_continuous.py", "updates_per_step": 1})[0].flags == [
        "--updates-per-step=1"
    ]


def test_your_own_copy_comes_before_the_original(tmp_path):
    copy = Path("ddpg_continuous.py")
    shutil.copy(helpers.source("ddpg_continuous"), copy)
    (mine,) = expand({"script": "ddpg_continuous.py"})
    assert mine.script == tmp_path / "ddpg_continuous.py"
    copy.unlink()
    (original,) = expand({"script": "ddpg_continuous.py"})
    assert original.script == ROOT / "ddpg_continuous.py"


def test_the_queue_of_published_runs(capsys):
    """Its settings are ones that the scripts take; the first six are the most wanted."""
    args = sweep.Args(file=ROOT / "benchmarks" / "published.toml")
    runs = sweep.expand(sweep.read_blocks(args), Path("runs"), open_environments=False)
    first = [(run.script.stem, run.settings["env_id"], run.settings["seed"]) for run in runs[:6]]
    sac, td3 = "sac_continuous", "td3_continuous"
    assert first == [(name, "HalfCheetah-v5", seed) for seed in (1, 2, 3) for name in (sac, td3)]
    assert {run.script.stem for run in runs} == {*helpers.SCRIPTS, "sac_her_continuous"}


# === Wrong use ====================================================================================

WRONG = {
    "nothing": ([], "nothing to run: name a .toml file, or one or more scripts with --script"),
    "file and flags": (["good.toml", "--seed", "1"], "either a file or --script"),
    "no such file": (["none.toml"], "cannot read none.toml: No such file"),
    "not TOML": (["half.toml"], "half.toml is not TOML: "),
    "no block": (["empty.toml"], "empty.toml has no block that begins with [[runs]]"),
    "outside": (["outside.toml"], "outside.toml: seed must stand in a block that begins with"),
    "no script": (["noscript.toml"], 'noscript.toml, block 2: a line such as script = "sac_'),
    "empty list": (["nolist.toml"], "nolist.toml, block 1: the list of seed is empty"),
    "a table": (["table.toml"], "table.toml, block 1: env_kwargs takes words, numbers, true"),
    "unknown script": (["--script", "sac.py"], "command line: there is no script sac.py"),
    "no script of ours": (["--script", "other.py"], "other.py is not a script of this family"),
    "unknown flag": (["@", "--set", "policy-rl", "1"], "no flag --policy-rl; is it --policy-lr?"),
    "wrong type": (
        ["@", "--set", "gamma", "high"],
        "gamma of sac_continuous.py takes float, not",
    ),
    "wrong word": (
        ["@", "--set", "device", "tpu"],
        "takes one of cpu, cuda, mps, not",
    ),
    "out of range": (["@", "--set", "gamma", "1", "1.5"], "--gamma must be of type float, from 0"),
    "not together": (
        ["@", "--set", "buffer-size", "9"],
        "batch-size 256 exceeds --buffer-size 9",
    ),
    "unknown environment": (["@", "--env-id", "Pendulum-v1", "No-v0"], "cannot make No-v0"),
    "discrete actions": (["@", "--env-id", "CartPole-v1"], "CartPole-v1 acts in Discrete(2)"),
    "no JSON": (["@", "--set", "env-kwargs", "{g"], "--env-kwargs {g is no JSON object"),
    "our flag": (["@", "--set", "runs-dir", "a"], "--runs-dir cannot be swept"),
    "no value": (["@", "--set", "gamma"], "--set takes a flag and its values, not only 'gamma'"),
    "set twice": (["@", "--set", "tau", "0", "--set", "tau", "1"], "--set tau stands twice"),
    "task 0": (["good.toml", "--task", "0"], "--task must be at least 1, not 0"),
    "task 3": (
        ["good.toml", "--task", "3"],
        "there is no task 3: the runs are numbered from 1 to",
    ),
    "no cores": (["good.toml", "--cores", "0"], "--cores must be at least 1, not 0"),
    "retries": (["good.toml", "--retries", "-1"], "--retries must be at least 0, not -1"),
    "cores there": (["good.toml", "--cores=1", "--address=auto"], "--cores is for this machine"),
    "no folder": (["good.toml", "--runs-dir", "other.py"], "--runs-dir other.py is not a folder"),
    "no place": (["good.toml", "--task=1", "--runs-dir=other.py/a"], "cannot make "),
    "another run": (["good.toml", "--runs-dir", "taken"], "gamma was 0.5 and is now 0.99; take"),
    "without Ray": (["good.toml"], "pip install -r requirements-sweep.txt (--task and --list need"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use(words, message, monkeypatch, capsys, tmp_path):
    """One sentence, exit code 2, and every file is as it was."""
    good = toml({"script": "ppo_continuous.py", "seed": [1, 2]})
    Path("good.toml").write_text(good)
    Path("half.toml").write_text("[[runs]\n")
    Path("empty.toml").write_text("")
    Path("outside.toml").write_text(f"seed = 1\n{good}")
    Path("noscript.toml").write_text(f"{good}[[runs]]\nseed = 1\n")
    Path("nolist.toml").write_text(toml({"script": "ppo_continuous.py", "seed": []}))
    Path("table.toml").write_text(good + "env_kwargs = {g = 5.0}\n")
    Path("other.py").write_text("print = 1\n")
    (other, _) = expand({"script": "ppo_continuous.py", "seed": [1, 2]}, runs_dir="taken")
    Path("sweep.toml").unlink()
    other.settings["gamma"] = 0.5
    table_in(other, "global_step\r\n5\r\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    before = contents(tmp_path)
    words = " ".join(words).replace("@", "--script sac_continuous.py").split()
    assert command_line(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert message in helpers.one_line(printed.err.removesuffix("\n"))
    assert contents(tmp_path) == before and not Path("runs").exists()


@pytest.mark.slow
def test_an_address_where_nobody_is(capsys):
    """Also one sentence, since Ray's own message is long."""
    pytest.importorskip("ray", reason=NO_RAY)
    write({"script": "ppo_continuous.py"})
    assert command_line("sweep.toml", "--address", "auto") == 2
    assert "Ray does not start: " in helpers.one_line(capsys.readouterr().err.removesuffix("\n"))
    assert not Path("runs").exists()


def test_a_run_that_no_machine_can_take(capsys):
    """Ray would wait for ever."""
    machine = {"Alive": True, "Resources": {"CPU": 2.0}}
    dead = {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    ray: Any = mock.Mock(nodes=lambda: [machine, dead])
    sweep.check_needs(ray, [a_run(num_threads=2)])
    for settings, what in (({"num_threads": 3}, "3 cores,"), ({"device": "cuda"}, "1 cores and")):
        with pytest.raises(SystemExit):
            sweep.check_needs(ray, [a_run(**settings)])
        assert f"no machine has {what}" in capsys.readouterr().err


# === What a folder tells ==========================================================================


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", 0),
        ("global_step,seconds\r\n", 0),
        ("global_step,seconds\r\n20,1\r\n40,2\r\n", 40),
        ("global_step,seconds\r\n20,1\r\n40,2\r\n200,", 40),  # the last line is not whole
        ("global_step,seconds\r\n" + "180,1\r\n" * 5000, 180),
        ("global_step,seconds\r\n180,1\r\n200,2\r\n", 200),
        ("global_step,seconds\r\n180,1\r\n2048,2\r\n", 200),  # PPO's last rollout is whole
    ],
)
def test_how_far_a_run_is(text, step):
    run = a_run()
    assert not sweep.is_complete(run) and sweep.state(run) == "not begun"
    table_in(run, text)
    assert sweep.steps_done(run) == step
    assert sweep.is_complete(run) == (step == 200)
    assert sweep.state(run) == ("complete" if step == 200 else f"step {step}")


def test_results_are_the_last_of_each_column():
    run = a_run()
    table_in(run, "global_step,seconds,eval_return_mean\r\n100,60,-5.26\r\n200,90,\r\n")
    assert sweep.results(run)["eval_return_mean"] == "-5.26"
    lines = sweep.table([run, a_run(seed=2)], {run.folder: "it broke"}).splitlines()
    assert lines[0].split() == ["run", "state", "step", "return", "minutes"]
    assert lines[1].split() == [run.folder.name, "failed", "200", "-5.3", "1.5"]
    assert lines[2].split()[1:] == ["not", "begun", "0"]


def test_it_goes_on_from_the_checkpoint():
    """An attempt that has none is begun anew, and its rows do not stay for a plot."""
    run = a_run()
    given = [*run.flags, f"--runs-dir={run.folder}"]
    assert sweep.flags_to_go_on(run) == given
    torn = table_in(run, "global_step\r\n20\r\n", "1")
    other = run.folder / "notes"
    other.mkdir()
    assert sweep.flags_to_go_on(run) == given
    assert not torn.exists() and other.exists()
    kept = table_in(run, "global_step\r\n20\r\n", "2")
    (kept / "checkpoint.pt").touch()
    assert sweep.flags_to_go_on(run) == [*given, f"--resume={kept / 'checkpoint.pt'}"]
    assert kept.exists()


def test_settings_of_the_folder(capsys):
    """Where a script's default has changed since, the folder is refused; a frequency is not."""
    run = a_run()
    folder = table_in(run, "")
    about = run.settings | {"checkpoint_frequency": 999, "python": "3.11"}
    (folder / "args.json").write_text(json.dumps(about))
    sweep.check_folder(run)
    (folder / "args.json").write_text(json.dumps(about | {"tau": 0.1}))
    with pytest.raises(SystemExit):
        sweep.check_folder(run)
    assert "tau was 0.1 and is now 0.005; take another" in capsys.readouterr().err


# === One run ======================================================================================


def test_list_and_task(capsys):
    """--list numbers the runs and starts none; --task does one of them here, and only once."""
    table = {"script": ["sac_continuous.py", "ddpg_continuous.py"]} | TINY
    file = str(write(table))
    assert command_line(file, "--list") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1  not begun  sac_continuous.py --total-timesteps=200 ")
    assert second.startswith("2  not begun  ddpg_continuous.py ") and not Path("runs").exists()

    assert command_line(file, "--task", "2") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("run 2 of 2: ") and printed[-1].startswith("final eval_return")
    sac, ddpg = expand(table)
    assert not sac.folder.exists() and sweep.state(ddpg) == "complete"
    steps = [row["global_step"] for row in rows(ddpg)]
    assert steps == [str(step) for step in range(20, 201, 20)]
    shown = (ddpg.folder / "command.txt").read_text()
    assert shown == f"python {shlex.join(['ddpg_continuous.py', *ddpg.flags])}\n"

    before = contents(ddpg.folder)
    assert command_line(file, "--task", "2") == 0
    assert capsys.readouterr().out == f"complete: {ddpg.folder}\n"
    assert contents(ddpg.folder) == before
    assert command_line(file, "--list") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["not", "complete"]


def test_all_complete_needs_no_ray(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    file = write({"script": "sac_continuous.py"} | TINY)
    run = a_run()
    table_in(run, "global_step,seconds\r\n200,9\r\n")
    assert sweep.main(sweep.Args(file=file)) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == [run.folder.name, "complete"]


def test_a_folder_that_another_process_holds():
    """It is left alone; when that process ends, the folder is free."""
    run = a_run()
    sweep.prepare(run)
    held = sweep.take(run, 0)
    with held, mock.patch.object(sweep, "SECONDS_TO_WAIT", 0.3):
        assert sweep.take(run, 0.3) is None
        assert sweep.execute(run, os.getcwd()) == "another process is at this run"
        with pytest.raises(SystemExit, match="error: another process is at "):
            sweep.run_here([run], 1)
    assert sweep.attempts(run) == []
    free = sweep.take(run, 0)
    free.close()


@posix
def test_a_process_keeps_the_lock_when_its_parent_has_died():
    """Else a second process could go on with a run whose first one still writes."""
    run = a_run()
    sweep.prepare(run)
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    with sweep.take(run, 0) as held:
        child = subprocess.Popen(wait, pass_fds=[held.fileno()])
    try:
        assert sweep.take(run, 0.3) is None
    finally:
        child.kill()
        child.wait()
    sweep.take(run, 0).close()


def test_a_script_that_fails():
    """The reason is the last line of its output."""
    run = a_run()
    sweep.prepare(run)
    broken = Path("broken.py").resolve()
    run = dataclasses.replace(run, script=broken)
    broken.write_text("print('begun')\n1 / 0\n")
    assert sweep.execute(run, os.getcwd()) == "ZeroDivisionError: division by zero"
    broken.write_text("import sys\nsys.exit('error: the disk is full')\n")
    assert sweep.execute(run, os.getcwd()) == "error: the disk is full"
    broken.write_text("")
    assert "without a row of its last step" in sweep.execute(run, os.getcwd())
    assert (run.folder / "log.txt").read_text().count("broken.py") >= 3
    if os.name == "posix":
        broken.write_text("import os\nos.kill(os.getpid(), 9)\n")
        assert sweep.execute(run, os.getcwd()).startswith("killed, as the system does when")
        broken.write_text("import os\nos.kill(os.getpid(), 15)\n")
        assert sweep.execute(run, os.getcwd()) == "ended by signal 15"


def test_a_folder_that_cannot_be_made():
    """It is that run's problem alone."""
    Path("file").touch()
    good = a_run()
    bad = dataclasses.replace(good, folder=Path("file").resolve() / "run")
    ray: Any = mock.Mock(cluster_resources=lambda: {"CPU": 2.0})
    all_runs = sweep.Sweep(ray, [bad, good], retries=0)
    all_runs.submit()
    assert "file" in all_runs.problems[bad.folder]
    assert [*all_runs.running.values()] == [good]


def test_a_machine_that_lacks_the_folder_or_the_script():
    run = a_run()
    assert "all machines must share --runs-dir" in sweep.execute(run, os.getcwd())
    assert not run.folder.exists()
    sweep.prepare(run)
    gone = dataclasses.replace(run, script=Path("gone.py").resolve())
    assert "has no " in sweep.execute(gone, os.getcwd())


# === All runs, on Ray =============================================================================
# Long enough to be cut off in the middle, with 40 rows.
LONG: dict[str, Any] = TINY | {
    "total_timesteps": 4000,
    "log_frequency": 100,
    "checkpoint_frequency": 200,
}
LONG |= {"updates_per_step": 0.25}


@pytest.fixture
def ray():
    return pytest.importorskip(
        "ray", reason="Ray is missing: pip install -r requirements-sweep.txt"
    )


def start(*words: str, **options: Any) -> subprocess.Popen:
    """`python tools/sweep.py` in a process group of its own, as a terminal has it."""
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes | options)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def until(condition: Any, process: subprocess.Popen) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def in_the_middle(runs: list[sweep.Run]) -> list[sweep.Run]:
    """Those that have a checkpoint and are not complete."""
    begun = [run for run in runs if [*run.folder.glob("*/checkpoint.pt")]]
    return [run for run in begun if not sweep.is_complete(run)]


def begun(run: sweep.Run) -> list[str]:
    """The lines of the log with which the script was started."""
    lines = (run.folder / "log.txt").read_text().splitlines()
    return [line for line in lines if f" {run.script} " in line]


def completed_once(run: sweep.Run, every: int) -> None:
    """One folder, one end, and each row once."""
    log = (run.folder / "log.txt").read_text()
    assert log.count("\nfinal eval_return_mean=") == 1, log
    last = run.settings["total_timesteps"]
    steps = [row["global_step"] for row in rows(run)]
    assert steps == [str(step) for step in range(every, last + 1, every)]


def descendants(pid: int) -> list[int]:
    """This process and all that came from it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found


@posix
@pytest.mark.slow
def test_a_machine_dies_in_the_middle(ray):
    """Two of them, one run each. All that ran on one is killed at once; the other does its share.

    Every run is complete, none is lost, and none was done twice.
    """
    from ray.cluster_utils import Cluster

    os.environ |= sweep.RAY_SETTINGS
    machine = {"num_cpus": 1, "object_store_memory": sweep.OBJECT_STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        machine.pop("include_dashboard")
        doomed = cluster.add_node(**machine)
        cluster.wait_for_nodes()
        table = {"script": "sac_continuous.py", "seed": [1, 2, 3, 4]} | LONG
        runs = expand(table)
        process = start("sweep.toml", "--address", cluster.address)
        until(lambda: len(in_the_middle(runs)) == 2, process)
        (raylet,) = doomed.all_processes["raylet"]
        killed = descendants(raylet.process.pid)
        scripts = subprocess.run(
            ["ps", "-o", "args=", "-p", ",".join(map(str, killed))], capture_output=True, text=True
        ).stdout
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert scripts.count(" --seed=") == 1, scripts
        code, out, err = finish(process)
    finally:
        cluster.shutdown()
    assert code == 0, err
    for run in runs:
        completed_once(run, 100)
    assert [line.split()[1] for line in out.splitlines()[-4:]] == ["complete"] * 4
    starts = {run.settings["seed"]: begun(run) for run in runs}
    again = [lines[1:] for lines in starts.values() if len(lines) > 1]
    assert len(again) == 1 and len(again[0]) == 1, starts
    assert "/checkpoint.pt" in again[0][0] and "--resume=" in again[0][0]


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stop_and_go_on(ray, number):
    """The runs write their checkpoints; the same command completes them from there."""
    runs = expand({"script": "sac_continuous.py", "seed": [1, 2, 3]} | LONG)
    process = start("sweep.toml", "--cores", "2")
    until(lambda: len(in_the_middle(runs)) == 2, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    code, out, err = finish(process)
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1] == "the same command again goes on with what is not complete"
    states = [line.split()[1] for line in out.splitlines()[-3:]]
    assert states == ["step", "step", "not"]
    for run in runs[:2]:
        assert "stopped at step " in (run.folder / "log.txt").read_text()

    code, out, err = finish(start("sweep.toml", "--cores", "2"))
    assert code == 0, err
    for run in runs:
        completed_once(run, 100)
    assert ["--resume=" in begun(run)[-1] for run in runs] == [True, True, False]


@pytest.mark.slow
def test_a_run_that_fails_takes_no_other_along(ray):
    """It is named with its reason. When it is mended, the same command does only this one."""
    code = """
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class Broken(PendulumEnv):
    def __init__(self, g=10.0, breaks=True, render_mode=None):
        super().__init__(render_mode, g)
        self.breaks = breaks
        self.steps = 0

    def step(self, action):
        self.steps += 1
        if self.breaks and self.steps > 50 and BROKEN:
            raise OSError("the simulator is gone")
        return super().step(action)

gym.register("Broken-v0", Broken, max_episode_steps=50)
"""
    table = {"script": "sac_continuous.py", "env_id": "my_task:Broken-v0"} | TINY
    table |= {"env_kwargs": ['{"breaks": false}', '{"breaks": true}'], "seed": [1, 2]}
    Path("my_task.py").write_text("BROKEN = True" + code)
    runs = expand(table)
    code_1, out, err = finish(start("sweep.toml"))
    assert code_1 == 1 and "Traceback" not in err
    states = [line.split()[1] for line in out.splitlines()[-4:]]
    assert states == ["complete", "complete", "failed", "failed"]
    for run in runs[2:]:
        reason = f"failed: {run.folder.name}: OSError: the simulator is gone ({run.folder}"
        assert reason in err
    before = [contents(run.folder) for run in runs[:2]]
    Path("my_task.py").write_text("BROKEN = False" + code)
    code_2, out, err = finish(start("sweep.toml"))
    assert code_2 == 0, err
    for run in runs:
        completed_once(run, 20)
    assert [contents(run.folder) for run in runs[:2]] == before


@pytest.mark.slow
def test_two_sweeps_at_once(ray):
    """Over the same runs: each run is done by one of them, once."""
    runs = expand({"script": "sac_continuous.py", "seed": [1, 2]} | LONG)
    both = [start("sweep.toml", "--cores", "2") for _ in range(2)]
    for process in both:
        code, _, err = finish(process)
        assert code == 0, err
    for run in runs:
        completed_once(run, 100)
        assert len(begun(run)) == 1
