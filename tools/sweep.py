# MIT licence. Part of Marginalia.
"""Many runs in one command: scripts x environments x seeds x values of any flag.

    python tools/sweep.py sweep.toml                  every run of this file, one on each core
    python tools/sweep.py sweep.toml --list           what they are, and how far each one is
    python tools/sweep.py sweep.toml --task 3         the third of them alone, without Ray
    python tools/sweep.py --script td3_continuous.py --seed 1 2 3 --set policy-lr 1e-3 3e-4

The same command again goes on: what is complete is left alone, what was cut off resumes from its
last checkpoint. docs/sweeps.md shows the file, a Ray cluster and Slurm.

A run has a folder whose name comes from its settings alone, so the folder tells how far it is.
The script is started in it as from the command line and makes its own folder there.
"""

import contextlib
import csv
import ctypes
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn, get_args, get_type_hints

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent  # where the scripts are
INSTALL = "pip install -r requirements-sweep.txt"
OURS = {"resume", "runs_dir"}  # flags that the sweep sets by itself
UNIMPORTANT = {*OURS, "checkpoint_frequency", "track"}  # they leave a run's numbers as they are
SECONDS_TO_STOP = 60  # a run that is asked to stop writes a checkpoint first
SECONDS_TO_WAIT = 120  # for the lock of a machine that died, which a network disk keeps for a while
OBJECT_STORE = 100_000_000  # bytes; Ray would take a third of the memory, and needs next to none
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_raylet_start_wait_time_s": "300",  # on a busy machine it needs longer than 30
    "RAY_worker_niceness": "0",  # a run is as important as if it had been started by hand
    "RAY_memory_monitor_refresh_ms": "0",  # Ray ends no run because the memory is nearly full
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray hides no GPU
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # Ray packs nothing up under `uv run`
}


@dataclasses.dataclass
class Args:
    file: tyro.conf.Positional[Path | None] = None
    """a .toml file with blocks [[runs]]; a list in a block stands for several runs"""
    script: tuple[str, ...] = ()
    """without a file: one or more scripts"""
    env_id: tuple[str, ...] = ()
    """one or more environments; default: the script's"""
    seed: tuple[str, ...] = ()
    """one or more seeds; default: the script's"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """any other flag of the scripts and its values: --set policy-lr 1e-3 3e-4"""
    runs_dir: Path = Path("runs")
    """where the runs' folders are; on a cluster, a folder that all machines share"""
    cores: int | None = None
    """how many cores of this machine to use; default: all"""
    address: str = ""
    """of a Ray cluster that is running, or auto; default: this machine alone"""
    retries: int = 3
    """how often a run goes on elsewhere, when the machine or the process that had it dies"""
    task: int | None = None
    """only the run with this number, from 1 on, in this process and without Ray"""
    list: bool = False
    """start nothing: a line for each run, with its number, how far it is, and its command"""


@dataclasses.dataclass
class Run:
    """One run: a script with its settings, and the folder that belongs to them."""

    script: Path
    flags: list[str]  # of the script's command line
    settings: dict[str, Any]  # all of them, also those that were not given
    folder: Path


class UseError(ValueError):
    """What the user can put right."""


def fail(message: str) -> NoReturn:
    """For wrong use, before anything has been started."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or repr(error)
    return text[:300]


# === What is to be run ============================================================================
@dataclasses.dataclass
class Block:
    """A table of values: one run for each combination."""

    where: str  # for messages
    values: dict[str, list]  # flag -> what it takes in turn


def read_blocks(args: Args) -> list[Block]:
    """From the file, or from the command line."""
    on_command_line = args.script or args.env_id or args.seed or args.set
    if args.file is not None:
        if on_command_line:
            fail("either a file or --script, --env-id, --seed and --set, not both")
        return read_file(args.file)
    if not args.script:
        fail("nothing to run: name a .toml file, or one or more scripts with --script")
    table: dict[str, Any] = {"script": [*args.script]}
    if args.env_id:
        table["env_id"] = [*args.env_id]
    for words in args.set:
        if len(words) < 2:
            fail(f"--set takes a flag and its values, not only {' '.join(words)!r}")
        if words[0].removeprefix("--").replace("-", "_") in table:
            fail(f"--set {words[0]} stands twice, or has a flag of its own")
        table[words[0].removeprefix("--").replace("-", "_")] = [*words[1:]]
    if args.seed:
        table["seed"] = [*args.seed]
    return [make_block("command line", table)]


def read_file(path: Path) -> list[Block]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        fail(f"{path} is not TOML: {in_one_line(error)}")
    tables = content.pop("runs", None)
    if content:
        fail(f"{path}: {next(iter(content))} must stand in a block that begins with [[runs]]")
    if not tables or not isinstance(tables, list):
        fail(f"{path} has no block that begins with [[runs]]")
    return [make_block(f"{path}, block {i}", table) for i, table in enumerate(tables, 1)]


def make_block(where: str, table: dict[str, Any]) -> Block:
    """Every value becomes a list, and every name a Python name."""
    values = {}
    for name, value in table.items():
        items = value if isinstance(value, list) else [value]
        if not items:
            fail(f"{where}: the list of {name} is empty")
        for item in items:
            if not isinstance(item, str | int | float):
                fail(f"{where}: {name} takes words, numbers, true, false, and lists of these")
        values[name.replace("-", "_")] = items
    if "script" not in values:
        fail(f'{where}: a line such as script = "sac_continuous.py" is missing')
    return Block(where, values)


def find_script(name: str) -> Path:
    """In the current folder, else beside the folder of this tool. Raises UseError."""
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return path.resolve()
    raise UseError(f"there is no script {name}")


@functools.cache
def load_script(path: Path) -> ModuleType:
    """The script as a module, for its settings and its checks. Raises UseError."""
    sys.path.insert(0, str(path.parent))  # what the script imports may lie beside it
    name = f"swept_{path.stem}"
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for needed in ("Args", "Run", "make_env"):
            getattr(module, needed)
    except (Exception, SystemExit) as error:
        reason = in_one_line(error)
        raise UseError(f"{path.name} is not a script of this family: {reason}") from error
    return module


def as_flag(module: ModuleType, name: str, value: Any) -> str:
    """A setting as the script's command line has it."""
    flag = name.replace("_", "-")
    if get_type_hints(module.Args)[name] is bool and str(value).lower() in ("true", "false"):
        return f"--{flag}" if str(value).lower() == "true" else f"--no-{flag}"
    return f"--{flag}={value}"


@functools.lru_cache(maxsize=None, typed=True)  # True is not 1
def parse(path: Path, name: str, value: Any) -> tuple[str, Any]:
    """The flag of a setting, and its value as the script's own parser understands it.

    Raises UseError.
    """
    module = load_script(path)
    kinds = get_type_hints(module.Args)
    shown = name.replace("_", "-")
    if name in OURS:
        raise UseError(f"--{shown} cannot be swept: the sweep sets it by itself")
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"; is it --{near[0].replace('_', '-')}?" if near else ""
        raise UseError(f"{path.name} has no flag --{shown}{hint}")
    flag = as_flag(module, name, value)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            args = tyro.cli(module.Args, args=[flag])
    except SystemExit:
        kind = getattr(kinds[name], "__name__", "Literal")
        if kind == "Literal":
            kind = "one of " + ", ".join(get_args(kinds[name]))
        raise UseError(f"--{shown} of {path.name} takes {kind}, not {value!r}") from None
    return flag, getattr(args, name)


def folder_name(script: Path, settings: dict[str, Any], given: dict[str, Any]) -> str:
    """Environment, script, seed, and eight letters that stand for all settings that were given."""
    important = {name: value for name, value in given.items() if name not in UNIMPORTANT}
    text = json.dumps([script.name, important], sort_keys=True)
    letters = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{settings['env_id']}__{script.stem}__{settings['seed']}__{letters}"
    return re.sub(r"[^\w.-]", "-", name)


def make_run(values: dict[str, Any], runs_dir: Path) -> tuple[Run, Any]:
    """A run, and the script's own object of it. Raises UseError, and what the script raises."""
    values = dict(values)
    script = find_script(str(values.pop("script")))
    flags = []
    given = {}
    for name, value in values.items():
        flag, given[name] = parse(script, name, value)
        flags.append(flag)
    module = load_script(script)
    # The machine that checks need not have the device.
    prepared = module.Run(module.Args(**given | {"device": "cpu"}), None)
    settings = vars(prepared.args) | {"device": given.get("device", "cpu")}
    folder = runs_dir.resolve() / folder_name(script, settings, given)
    return Run(script, flags, settings, folder), prepared


def expand(blocks: list[Block], runs_dir: Path, open_environments: bool) -> list[Run]:
    """All runs, in the order of the file. One that stands in it twice is done once.

    Ends with a sentence at the first thing that is wrong. Each environment is opened once, to see
    that it is there and that the script can learn in it.
    """
    found: dict[Path, Run] = {}
    opened = set()
    twice = 0
    for block in blocks:
        for combination in itertools.product(*block.values.values()):
            try:
                run, prepared = make_run(
                    dict(zip(block.values, combination, strict=True)), runs_dir
                )
                env_id = run.settings["env_id"]
                environment = (run.script, env_id, json.dumps(prepared.env_options, sort_keys=True))
                if open_environments and environment not in opened:
                    opened.add(environment)
                    load_script(run.script).make_env(env_id, **prepared.env_options).close()
            except Exception as error:
                fail(f"{block.where}: {in_one_line(error)}")
            if run.folder in found:
                twice += 1
            found.setdefault(run.folder, run)
    if twice:
        print(f"note: {twice} runs stand there twice; each is done once", file=sys.stderr)
    return [*found.values()]


# === What a run's folder tells ====================================================================
def attempts(run: Run) -> list[Path]:
    """The folders that the script has made, the oldest first."""
    return sorted(path.parent for path in run.folder.glob("*/args.json"))


def last_step(path: Path) -> int:
    """The step in the last whole line of a metrics.csv."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 10_000))
            lines = [line for line in file if line.endswith(b"\n")]
        return int(lines[-1].split(b",")[0])
    except (OSError, IndexError, ValueError):  # there is no such file or line yet
        return 0


def steps_done(run: Run) -> int:
    """PPO does a few more than it was asked for: they do not count."""
    steps = [last_step(folder / "metrics.csv") for folder in attempts(run)]
    return min(max(steps, default=0), run.settings["total_timesteps"])


def is_complete(run: Run) -> bool:
    """The row of the last step is what a script writes last."""
    return steps_done(run) == run.settings["total_timesteps"]


def state(run: Run) -> str:
    if is_complete(run):
        return "complete"
    return f"step {steps_done(run):,}" if attempts(run) else "not begun"


def check_folder(run: Run) -> None:
    """The folder must belong to these settings: the defaults of the script may have changed."""
    for attempt in attempts(run):
        try:
            about = json.loads((attempt / "args.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fail(f"cannot read {attempt / 'args.json'}: {in_one_line(error)}")
        for name, value in run.settings.items():
            if name not in UNIMPORTANT and about.get(name, value) != value:
                was = f"{name} was {about[name]} and is now {value}"
                fail(f"{run.folder} holds another run: {was}; take another --runs-dir")


def results(run: Run) -> dict[str, str]:
    """The last value in each column of metrics.csv."""
    last: dict[str, str] = {}
    for attempt in attempts(run):
        with contextlib.suppress(OSError):
            with open(attempt / "metrics.csv", encoding="utf-8", newline="") as file:
                for row in csv.DictReader(line for line in file if line.endswith("\n")):
                    last |= {name: cell for name, cell in row.items() if cell}
    return last


# === One run ======================================================================================
def lock(file: BinaryIO) -> bool:
    """Hold this file, unless another process does. It is held until the process has ended."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # this disk has no locks
    return True


def take(run: Run, patience: float) -> BinaryIO | None:
    """The lock of the run's folder, or None if another process keeps it for so many seconds."""
    file = open(run.folder / "lock", "ab")  # noqa: SIM115  the caller closes it
    end = time.monotonic() + patience
    while not lock(file):
        if time.monotonic() > end:
            file.close()
            return None
        time.sleep(0.2)
    return file


def flags_to_go_on(run: Run) -> list[str]:
    """Those of the run, and the checkpoint to resume from, if there is one.

    What an earlier attempt has left without a checkpoint is of no use: it is deleted.
    """
    flags = [*run.flags, f"--runs-dir={run.folder}"]
    checkpoint = None
    for attempt in attempts(run):
        if (attempt / "checkpoint.pt").is_file():
            checkpoint = attempt / "checkpoint.pt"
        else:
            shutil.rmtree(attempt)
    if checkpoint:
        flags.append(f"--resume={checkpoint}")
    return flags


def execute(run: Run, folder: str) -> str:
    """Complete the run, as a process of its own. Returns what went wrong; "" if nothing did."""
    machine = platform.node()
    if not (run.folder / "command.txt").is_file():
        return f"{machine} does not see {run.folder}: all machines must share --runs-dir"
    if not run.script.is_file():
        return f"{machine} has no {run.script}"
    # A process whose parent died may still be writing a checkpoint.
    held = take(run, SECONDS_TO_WAIT)
    if held is None:
        return "another process is at this run"
    with held, open(run.folder / "log.txt", "ab") as log:
        if is_complete(run):
            return ""
        command = [sys.executable, str(run.script), *flags_to_go_on(run)]
        log.write(f"{time.ctime()}, {machine}: {shlex.join(command)}\n".encode())
        log.flush()
        code = supervise(command, folder, log, held)
    if code == -9:
        return "killed, as the system does when the memory is full"
    if code < 0:
        return f"ended by signal {-code}"
    if code > 0:
        return last_line(run.folder / "log.txt")
    if not is_complete(run):
        return "the script has ended without a row of its last step in metrics.csv"
    return ""


def supervise(command: list[str], folder: str, log: BinaryIO, held: BinaryIO) -> int:
    """Run the command and return its exit code. Ask it to stop if this process is interrupted."""
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
    options |= {"stdout": log, "stderr": subprocess.STDOUT}
    if sys.platform != "win32":
        # The lock passes to the process, so that the folder is held for as long as that lives.
        # In a session of its own, it does not hear Ctrl-C twice.
        options |= {"pass_fds": [held.fileno()], "start_new_session": True}
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        options["preexec_fn"] = lambda: library.prctl(1, signal.SIGTERM)  # when its parent dies
    process = subprocess.Popen(command, **options)
    try:
        while process.poll() is None:  # Ray cannot interrupt a longer wait
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except BaseException:
            process.kill()
            process.wait()
        raise
    return process.returncode


def last_line(log: Path) -> str:
    """Of the output of a script that failed: its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    filled = [line.strip() for line in lines if line.strip()]
    return filled[-1][:300]


def run_here(runs: list[Run], number: int) -> None:
    """Only this one, in this process, as if the script itself had been started."""
    run = runs[number - 1]
    make_folder(run.folder.parent)
    prepare(run)
    held = take(run, 0)
    if held is None:
        raise SystemExit(f"error: another process is at {run.folder}")
    with held:
        if is_complete(run):
            print(f"complete: {run.folder}")
            return
        flags = flags_to_go_on(run)
        print(f"run {number} of {len(runs)}: {shlex.join([str(run.script), *flags])}", flush=True)
        sys.argv = [str(run.script), *flags]
        runpy.run_path(str(run.script), run_name="__main__")


def prepare(run: Run) -> None:
    """The run's folder, with its command: whoever sees this file is at the right folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", run.script.name, *run.flags])
    (run.folder / "command.txt").write_text(command + "\n", encoding="utf-8")


# === All runs, on Ray =============================================================================
def make_folder(runs_dir: Path) -> None:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot make {runs_dir}: {error.strerror}")
    if not os.access(runs_dir, os.W_OK):
        fail(f"cannot write into {runs_dir}")


def start_ray(args: Args) -> ModuleType:
    os.environ |= RAY_SETTINGS
    try:
        import ray
    except ImportError as error:
        fail(f"{in_one_line(error)}: {INSTALL} (--task and --list need no Ray)")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if args.address:
        options |= {"address": args.address}
    else:
        options |= {"address": "local", "num_cpus": args.cores, "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE}
    try:
        ray.init(**options)
    except Exception as error:
        fail(f"Ray does not start: {in_one_line(error)}")
    return ray


def needs(run: Run) -> dict[str, float]:
    """What Ray reserves for the run: a core for each thread, a GPU if it is on one."""
    gpus = 1 if run.settings["device"] == "cuda" else 0
    return {"num_cpus": run.settings["num_threads"], "num_gpus": gpus}


def check_needs(ray: ModuleType, runs: list[Run]) -> None:
    """Ray would wait for ever for a machine that is large enough."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for run in runs:
        cores, gpus = needs(run).values()
        fits = [m.get("CPU", 0) >= cores and m.get("GPU", 0) >= gpus for m in machines]
        if not any(fits):
            what = f"{cores} cores" + (" and a GPU" if gpus else "")
            fail(f"no machine has {what}, which {run.folder.name} needs")


class Sweep:
    """The runs on their way through Ray."""

    def __init__(self, ray: ModuleType, runs: list[Run], retries: int):
        self.ray = ray
        self.runs = runs
        self.retries = retries
        self.waiting = [run for run in runs if not is_complete(run)]
        self.running: dict[Any, Run] = {}  # Ray's handle of a task -> its run
        self.problems: dict[Path, str] = {}  # folder of a run -> what went wrong
        total = sum(run.settings["total_timesteps"] for run in runs)
        done = sum(map(steps_done, runs))
        self.bar = tqdm(total=total, initial=done, unit="step", unit_scale=True, disable=None)

    def complete_all(self) -> None:
        while self.waiting or self.running:
            self.submit()
            ended = []
            if self.running:
                ended, _ = self.ray.wait([*self.running], timeout=2)
            for task in ended:
                self.collect(task, self.running.pop(task))
            self.show_progress()
        self.bar.close()

    def submit(self) -> None:
        """As many as there are cores: so they begin in the order of the file."""
        cores = self.ray.cluster_resources().get("CPU", 0)
        while self.waiting and len(self.running) < max(1, cores):
            run = self.waiting.pop(0)
            try:
                prepare(run)
            except OSError as error:
                self.problems[run.folder] = in_one_line(error)
                continue
            options = {"max_retries": self.retries, "name": run.folder.name, **needs(run)}
            task = self.ray.remote(execute).options(**options).remote(run, os.getcwd())
            self.running[task] = run

    def collect(self, task: Any, run: Run) -> None:
        try:
            problem = self.ray.get(task)
        except Exception as error:  # a machine or a process died too often, or a disk is full
            problem = in_one_line(getattr(error, "cause", error))
        if problem:
            self.problems[run.folder] = problem
        complete = sum(map(is_complete, self.runs))
        what = f"failed: {run.folder.name}: {problem}" if problem else f"complete: {run.folder}"
        tqdm.write(f"{what} ({complete} of {len(self.runs)} complete)")

    def show_progress(self) -> None:
        if not self.bar.disable:
            self.bar.n = sum(map(steps_done, self.runs))
            self.bar.set_postfix_str(f"{len(self.running)} running, {len(self.waiting)} waiting")

    def stop(self) -> None:
        """Ask every run to write a checkpoint and stop."""
        tqdm.write("stopping: the runs write their checkpoints", file=sys.stderr)
        for task in self.running:
            self.ray.cancel(task)
        tasks = [*self.running]
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_STOP)
        self.bar.close()


def interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def run_with_ray(args: Args, runs: list[Run]) -> dict[Path, str]:
    """Everything that is not complete. Returns the problems: folder of a run -> what it is."""
    ray = start_ray(args)
    try:
        check_needs(ray, runs)
        make_folder(args.runs_dir)
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), interrupt)
        sweep = Sweep(ray, runs, args.retries)
        try:
            sweep.complete_all()
        except KeyboardInterrupt:
            sweep.stop()
        return sweep.problems
    finally:
        ray.shutdown()


def run_all(args: Args, runs: list[Run]) -> int:
    """Returns the exit code: 0 if all is complete now, else 1."""
    problems = {}
    if not all(map(is_complete, runs)):
        problems = run_with_ray(args, runs)
    print(table(runs, problems), flush=True)
    for folder, problem in problems.items():
        print(f"failed: {folder.name}: {problem} ({folder / 'log.txt'})", file=sys.stderr)
    if all(map(is_complete, runs)):
        return 0
    print("the same command again goes on with what is not complete", file=sys.stderr)
    return 1


def table(runs: list[Run], problems: dict[Path, str]) -> str:
    """One line for each run."""
    rows = [["run", "state", "step", "return", "minutes"]]
    for run in runs:
        last = results(run)
        value = last.get("eval_return_mean", last.get("episodic_return", ""))
        seconds = last.get("seconds", "")
        row = [run.folder.name, "failed" if run.folder in problems else state(run)]
        row += [f"{steps_done(run):,}"]
        row += [f"{float(value):.1f}" if value else ""]
        row += [f"{float(seconds) / 60:.1f}" if seconds else ""]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def list_runs(runs: list[Run]) -> None:
    for number, run in enumerate(runs, 1):
        print(f"{number}  {state(run)}  {shlex.join([run.script.name, *run.flags])}")


def check_args(args: Args) -> None:
    for name in ("cores", "task"):
        value = getattr(args, name)
        if value is not None and value < 1:
            fail(f"--{name} must be at least 1, not {value}")
    if args.retries < 0:
        fail(f"--retries must be at least 0, not {args.retries}")
    if args.address and args.cores:
        fail("--cores is for this machine alone: a cluster knows its own cores")
    if args.runs_dir.exists() and not args.runs_dir.is_dir():
        fail(f"--runs-dir {args.runs_dir} is not a folder")


def main(args: Args) -> int:
    """Returns the exit code."""
    check_args(args)
    sys.path.append(os.getcwd())  # for an environment of your own, as in the scripts
    blocks = read_blocks(args)
    runs = expand(blocks, args.runs_dir, open_environments=args.task is None)
    if args.task is not None and args.task > len(runs):
        fail(f"there is no task {args.task}: the runs are numbered from 1 to {len(runs)}")
    for run in runs:
        check_folder(run)
    if args.list:
        list_runs(runs)
        return 0
    if args.task is not None:
        run_here(runs, args.task)
        return 0
    return run_all(args, runs)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
    except KeyboardInterrupt:
        sys.exit(1)
    except BrokenPipeError:  # as with `--list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
