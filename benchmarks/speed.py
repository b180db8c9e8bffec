"""Races our scripts with Stable-Baselines3 and SBX on this machine.

    python benchmarks/speed.py [--algorithm sac td3 ...] [--parts throughput memory ...] [--quick]

All contestants of all algorithms take turns within one invocation, every run in a fresh process and
every round in another order, so that whatever else the machine does meets them all; ratios are
formed within a round. Results are added to a CSV file in benchmarks/results/speed (every single
number, and the number of the invocation) and to the page beside it. Nothing is overwritten.
"""

import contextlib
import cProfile
import dataclasses
import importlib
import inspect
import math
import pstats
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import common
import tyro

Rows = list[dict[str, Any]]
Part = Literal["throughput", "memory", "startup", "solved", "floor", "profile"]
PARTS: tuple[Part, ...] = ("throughput", "memory", "startup", "solved", "floor", "profile")
LIBRARIES: tuple[common.Library, ...] = ("ours", "compiled", "sb3", "sbx")
Name = Literal["all", "ddpg", "td3", "td3_per", "sac_v1", "sac", "ppo"]


@dataclasses.dataclass
class Args:
    algorithm: tuple[Name, ...] = ("sac",)
    """rows of common.ALGORITHMS, or all"""
    parts: tuple[Part, ...] = PARTS
    """what is measured"""
    libraries: tuple[common.Library, ...] = LIBRARIES
    """who takes part"""
    rounds: int = 6
    """runs of each contestant, and seeds of a solved Pendulum; ten times as many for the floor"""
    threads: int = 1
    """CPU threads for all but startup and solved; with 1, those parts run on one core"""
    env_id: str = "HalfCheetah-v5"
    """environment of all but startup and solved"""
    learning_starts: int = 500
    """steps of warm-up, for those that have one"""
    out: Path | None = None
    """CSV file to add to, with a page beside it; not given: one in benchmarks/results/speed"""
    pool: bool = False
    """on the page, count the rounds of the earlier invocations in that file too"""
    quick: bool = False
    """few steps, to see that everything works; they go to quick.csv"""


# === Racing =======================================================================================
class Contestant(NamedTuple):
    algorithm: str
    name: str  # a library, or one side of another comparison


Once = Callable[[int], dict[str, float]]  # round -> {metric: value}


def race(contestants: dict[Contestant, Once], rounds: int) -> Rows:
    """Let each contestant run once a round, in an order of its own."""
    rows = []
    for number in range(rounds):
        for who in random.Random(number).sample(list(contestants), len(contestants)):
            for metric, value in contestants[who](number).items():
                about = {"algorithm": who.algorithm, "metric": metric, "contestant": who.name}
                rows.append(about | {"round": number, "value": value})
    return rows


def earlier(path: Path) -> Rows:
    """What earlier invocations raced; each round has a number of its own."""
    rows = []
    for row in common.read_csv(path):
        if row["contestant"] not in ("line", "part"):  # which are profiles
            number = 1000 * int(row["invocation"]) + int(row["round"])
            rows.append(row | {"round": number, "value": float(row["value"])})
    return rows


def short(value: float) -> str:
    if not math.isfinite(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> list[str]:
    """The median, and the range of the values."""
    low, high = short(min(values)), short(max(values))
    return [short(statistics.median(values)), low if low == high else f"{low} to {high}"]


def summary(rows: Rows, metric: str, titles: Mapping[Any, str]) -> str:
    """A table of one metric; the ratio of the first contestant to each is formed within rounds."""
    values = {name: {} for name in titles}
    for row in rows:
        if row["metric"] == metric and not math.isnan(row["value"]):
            values[row["contestant"]][row["round"]] = row["value"]
    values = {name: of for name, of in values.items() if of}
    first, lines = next(iter(titles)), []
    for name, of in values.items():
        shared = of.keys() & values.get(first, {}).keys() if name != first else ()
        pairs = [(values[first][number], of[number]) for number in shared]
        ratios = [a / b for a, b in pairs if min(a, b) < math.inf]
        middle, width = spread(ratios) if ratios else ("", "")
        ratio = f"{middle} ({width})" if ratios else ""
        lines.append([titles[name], *spread(list(of.values())), str(len(of)), ratio])
    return common.table([metric, "median", "range", "runs", f"{titles[first]} / this one"], lines)


# === 1. Steps per second and memory ===============================================================
def clocked(args: Args, algorithm: str) -> tuple[int, int]:
    """The steps between which the clock runs."""
    row = common.ALGORITHMS[algorithm]
    settle, measured = (100, 100) if args.quick else row.race  # JAX compiles in the first ones
    first = row.whole(settle + (args.learning_starts if row.rollout == 1 else 0))
    return first, first + row.whole(measured)


def training_command(args: Args, who: Contestant) -> list[str]:
    first, last = clocked(args, who.algorithm)
    # Our script saves at its last step, which is therefore after the clock's.
    terms: dict[str, Any] = {
        "env_id": args.env_id,
        "steps": last + 1,
        "seed": 1,
        "threads": args.threads,
    }
    terms |= {"learning_starts": args.learning_starts}
    watch: dict[str, Any] = {"marks": [first, last]}
    if who.name in common.OURS:
        watch = {"eval_episodes": 0, "checkpoint_frequency": 0}
    return common.equal_command(who.name, who.algorithm, **terms, **watch)


def steps_per_second(clock: dict[int, float], first: int, last: int) -> float:
    return (last - first) / (clock[last] - clock[first])


def training(args: Args, who: Contestant) -> Once:
    def once(_: int) -> dict[str, float]:
        ran = common.run(training_command(args, who))
        speed = steps_per_second(common.clock(ran), *clocked(args, who.algorithm))
        print(f"{who.algorithm}, {who.name}: {speed:.1f} steps per second", flush=True)
        memory = math.nan if ran.memory is None else ran.memory
        return {"steps per second": speed, "peak memory (MiB)": memory}

    return once


# === 2. Start-up ==================================================================================
def startup_command(args: Args, who: Contestant) -> list[str]:
    """Two steps, which are a rollout where there are rollouts."""
    rollouts = common.ALGORITHMS[who.algorithm].rollout > 1
    if who.name == "ours":
        flags = {"total_timesteps": 2, "log_frequency": 1, "eval_episodes": 1}
        small = {"num_steps": 2, "num_minibatches": 1, "update_epochs": 1}
        return common.our_command(who.algorithm, **flags, **(small if rollouts else {}))
    settings = {"env_id": "Pendulum-v1", "steps": 2, "seed": 1, "marks": [1]}
    small = {"model": {"n_steps": 2, "batch_size": 2, "n_epochs": 1}}
    return common.peer_command(who.name, who.algorithm, **settings, **(small if rollouts else {}))


def first_step(ran: common.Ran) -> float:
    """Seconds from the start of the process to the end of the first step in the environment.

    Our script prints its folder when its clock starts, and its first row is that clock at step 1,
    or after the first rollout.
    """
    line = "runs" if ran.metrics else "step 1 at"
    began = next(seconds for seconds, text in ran.lines if text.startswith(line))
    return began + (float(ran.metrics[0]["seconds"]) if ran.metrics else 0.0)


def startup(args: Args, who: Contestant) -> Once:
    return lambda _: {"start-up (s)": first_step(common.run(startup_command(args, who)))}


# === 3. From Enter to a solved Pendulum ===========================================================
def solve_command(args: Args, who: Contestant, seed: int = 1) -> list[str]:
    row = common.ALGORITHMS[who.algorithm]
    steps, every = row.solve
    if who.name == "ours":
        return common.our_command(who.algorithm, seed=seed, eval_frequency=every)
    settings = {"env_id": "Pendulum-v1", "steps": steps, "seed": seed, "eval_frequency": every}
    noise = {term.theirs: term.value for term in row.terms if term == common.NOISE}
    return common.peer_command(who.name, who.algorithm, **settings, model=noise)


def solved(args: Args, who: Contestant) -> Once:
    row = common.ALGORITHMS[who.algorithm]
    steps, every = row.solve
    limit = every if args.quick else steps

    def enough(line: str) -> bool:
        found = common.evaluation(0, line)
        return found is not None and (found.mean >= row.solved or found.step >= limit)

    def once(number: int) -> dict[str, float]:
        ran = common.run(solve_command(args, who, seed=number + 1), enough)
        last = common.evaluations(ran)[-1]
        print(
            f"{', '.join(who)}: {last.mean} at step {last.step}, {last.seconds:.1f} s", flush=True
        )
        if last.mean < row.solved:
            return {"solved (s)": math.inf, "solved (steps)": math.inf}
        return {"solved (s)": last.seconds, "solved (steps)": last.step}

    return once


# === 4. The floor: the matrix products of one update ==============================================
class Ready(NamedTuple):
    """One of our scripts in this process, ready for updates."""

    script: ModuleType
    args: Any
    env: Any
    agent: Any
    replay: Any  # full of random transitions


def load(args: Args, algorithm: str, steps: int, folder: str = "runs") -> tuple[ModuleType, Any]:
    """The script as a module, and the settings of its race."""
    sys.path.append(str(common.ROOT))
    script = importlib.import_module(common.ALGORITHMS[algorithm].script.removesuffix(".py"))
    terms: dict[str, Any] = {
        "env_id": args.env_id,
        "steps": steps,
        "seed": 1,
        "threads": args.threads,
    }
    watch: dict[str, Any] = {"runs_dir": folder, "eval_episodes": 0, "checkpoint_frequency": 0}
    command = common.equal_command("ours", algorithm, **terms, learning_starts=0, **watch)
    return script, tyro.cli(script.Args, args=command[2:])


def prepare(args: Args, algorithm: str, size: int) -> Ready:
    """A new agent, and `size` transitions, with random priorities where there are priorities."""
    import torch

    script, settings = load(args, algorithm, size)
    env = script.make_env(settings.env_id)
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    replay = getattr(script, "PrioritizedReplayBuffer", script.ReplayBuffer)(size, *dims)
    table, priority = torch.randn(replay.table.shape), torch.rand(size, dtype=torch.float64) + 0.1
    replay.load_state_dict({"added": size, "table": table, "priority": priority})
    replay.columns[1].clip(-1, 1, out=replay.columns[1])
    replay.columns[4][:] = 0
    return Ready(script, settings, env, script.Agent(*dims, settings), replay)


def updater(ready: Ready, updates: int) -> Callable[[], None]:
    """Calls the script's update() so many times, with the same batch."""
    import torch

    batch = ready.replay.gather(torch.arange(ready.args.batch_size))
    wanted = inspect.signature(ready.script.update).parameters
    more = {"weight": torch.ones(ready.args.batch_size)} if "weight" in wanted else {}

    def update() -> None:
        for number in range(1, updates + 1):
            if "number" in wanted:
                more["number"] = number
            ready.script.update(ready.agent, batch, args=ready.args, **more)

    return update


def multiplier(update: Callable[[], None]) -> Callable[[], None]:
    """Makes all the matrix products in `update`, equal ones in a row: their memory stays hot."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                counts[tuple((factor.shape, factor.stride()) for factor in args[-2:])] += 1
            return function(*args, **(kwargs or {}))

    counts, work = Counter(), []
    with Recorder():
        update()
    for factors, times in counts.items():
        left, right = (torch.empty_strided(*factor).normal_() for factor in factors)
        work.append((left, right, left @ right, times))

    def multiply() -> None:
        for left, right, out, times in work:
            for _ in range(times):
                torch.mm(left, right, out=out)

    return multiply


def floor(args: Args, algorithms: list[str], updates: int = 20) -> Rows:
    """Updates, and the products in them, in turns."""

    def timed(call: Callable[[], None]) -> Once:
        def once(_: int) -> dict[str, float]:
            start = time.perf_counter()
            call()
            return {"update (ms)": 1000 * (time.perf_counter() - start) / updates}

        return once

    field = {}
    with contextlib.ExitStack() as stack:
        for algorithm in algorithms:
            ready = prepare(args, algorithm, size=100_000)
            stack.enter_context(ready.script.processor_settings(args.threads))
            update = updater(ready, updates)
            field[Contestant(algorithm, "update")] = timed(update)
            field[Contestant(algorithm, "products")] = timed(multiplier(update))
        race(field, 2)  # to warm up
        return race(field, 10 * args.rounds)


# === 5. Where the time goes =======================================================================
def profile(args: Args, algorithm: str) -> Rows:
    """Microseconds per step in each function that the loop calls, while our script learns."""
    first, last = clocked(args, algorithm)
    profiler = cProfile.Profile(builtins=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script, settings = load(args, algorithm, last - first, folder)
        results = profiler.runcall(script.train, settings)
    loop = {(script.__file__, name) for name in ("train", "collect")}  # PPO acts in collect()
    seconds = Counter()
    for (file, line, name), (*_, own, _, callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if (file, name) in loop:
            seconds["the loop itself"] += own
        for (parent_file, _, parent), (_, calls, _, total) in callers.items():
            if calls > 1 and (parent_file, parent) in loop and (file, name) not in loop:
                seconds[f"{name} ({Path(file).name}:{line})"] += total
    about = {"algorithm": algorithm, "contestant": "part"}
    return [
        about | {"metric": name, "round": i, "value": 1e6 * value / results["global_step"]}
        for i, (name, value) in enumerate(seconds.most_common())
    ]


def breakdown(rows: Rows) -> str:
    """The functions that take a hundredth of the time or more."""
    total = sum(row["value"] for row in rows)
    large = [row for row in rows if row["value"] >= total / 100]
    lines = [[row["metric"], row["value"]] for row in large]
    lines.append(["all others", total - sum(row["value"] for row in large)])
    lines = [[name, f"{value:.0f}", f"{value / total:.1%}"] for name, value in lines]
    return common.table(["function", "us per step", "share"], [*lines, ["all", f"{total:.0f}", ""]])


# === Everything ===================================================================================
def measure(args: Args, field: dict[str, list[str]], rows: Rows) -> None:
    """Each part that is asked for, into the rows."""
    everybody = [Contestant(name, library) for name, there in field.items() for library in there]

    def turns(part: Callable[[Args, Contestant], Once], rounds: int) -> Rows:
        compiles = part is training  # a short run does not live to see it
        field = [who for who in everybody if compiles or who.name != "compiled"]
        return race({who: part(args, who) for who in field}, rounds)

    if {"throughput", "memory"} & set(args.parts):
        with common.one_core(args.threads == 1):
            rows += turns(training, args.rounds)
    if "startup" in args.parts:
        rows += turns(startup, args.rounds)
    if "solved" in args.parts:
        rows += turns(solved, args.rounds)
    with common.one_core(args.threads == 1):
        if "floor" in args.parts:
            rows += floor(args, [name for name in field if name != "ppo"])
        for name in field if "profile" in args.parts else ():
            rows += profile(args, name)


def describe(args: Args, algorithm: str, there: list[str], rows: Rows, report: Any) -> None:
    """The chapter of one algorithm."""
    row = common.ALGORITHMS[algorithm]
    rows = [found for found in rows if found["algorithm"] == algorithm]
    measured = {found["metric"] for found in rows}
    titles = {name: common.TITLES[name] for name in LIBRARIES if name in there}
    report.section(algorithm, *(() if row.peer else ("No peer has this algorithm.",)), level=3)

    def section(title: str, metrics: list[str], command: Callable, about: str) -> None:
        if metrics[0] in measured:
            took_part = {row["contestant"] for row in rows if row["metric"] == metrics[0]}
            named = {name: title for name, title in titles.items() if name in took_part}
            commands = (command(args, Contestant(algorithm, name)) for name in named)
            pairs = zip(named.values(), map(common.shown, commands), strict=True)
            listed = "\n".join(f"- {name}: `{words}`" for name, words in pairs)
            tables = [summary(rows, metric, named) for metric in metrics]
            if "compiled" in named:  # first, so that the ratios are its own
                first = {"compiled": named["compiled"]}
                tables.append(summary(rows, metrics[0], first | named))
            report.section(title, about, *tables, listed, level=4)

    first, last = clocked(args, algorithm)
    if "throughput" in args.parts:
        about = f"{args.env_id}, from step {first} to {last}: no start-up, compilation or "
        about += "evaluation; one update per step, or whole rollouts with theirs. More is better."
        section("Training", ["steps per second"], training_command, about)
    if "memory" in args.parts:
        about = "The same runs, whole: resident memory at its largest. Less is better."
        section("Memory", ["peak memory (MiB)"], training_command, about)
    about = "From the start of the process to the end of the first step (ours with rollouts: of a "
    about += "first rollout of two steps and its update). Less is better."
    section("Start-up", ["start-up (s)"], startup_command, about)
    about = f"From the start of the process to an evaluation of {row.solved:g} or more on "
    about += "Pendulum-v1: mean return of the deterministic policy from the same 10 starts for "
    about += f"all, every {row.solve[1]} steps. Each with its own defaults, threads included; a "
    about += "peer that has no exploration noise by default gets ours. Less is better."
    metrics = ["solved (s)", "solved (steps)"]
    section("Time to a solved Pendulum", metrics, solve_command, about)
    if "update (ms)" in measured:
        about = "update() on a batch beside the matrix products in it, in turns. Equal products "
        about += "come one after the other on the same memory, which the cache holds: with "
        about += "PyTorch's products no update is faster. Another library's may take less."
        sides = {"update": "update()", "products": "its products"}
        report.section("The floor", about, summary(rows, "update (ms)", sides), level=4)
    parts = [found for found in rows if found["contestant"] == "part"]
    if parts:
        about = f"The functions that the loop calls, {args.env_id}, means over {last - first} "
        about += "steps. The profiler itself slows short functions more than long ones."
        report.section("Where the time goes", about, breakdown(parts), level=4)


def subject(args: Args) -> Path:
    """The CSV file for what is measured, unless another one is asked for."""
    names = {1: "one_thread", 2: "two_threads"}
    name = names.get(args.threads, f"{args.threads}_threads")
    if set(args.parts) <= {"startup", "solved"}:
        name = "startup"
    if args.quick:
        name = "quick"
    return common.RESULTS / "speed" / f"{name}.csv"


def main(args: Args) -> None:
    if args.quick:
        args = dataclasses.replace(args, rounds=min(args.rounds, 1), learning_starts=100)
    names = common.ALGORITHMS if "all" in args.algorithm else args.algorithm
    field = {name: common.contestants(name, args.libraries) for name in names}
    out = args.out or subject(args)
    page = out.with_suffix(".md")
    number = 1 + max((int(row["invocation"]) for row in common.read_csv(out)), default=0)
    old, rows = earlier(out) if args.pool else [], []
    title = "All invocations" if args.pool else f"Invocation {number}"
    threads = f"{args.threads} (with 1, everybody on one core; otherwise JAX takes what it finds); "
    threads += "each library's default for start-up and Pendulum"
    report = common.Report(f"{title}: {', '.join(field)}", threads, level=2)
    try:
        measure(args, field, rows)
    finally:
        if rows:
            common.write_csv(out, [{"invocation": number} | row for row in rows], append=True)
        if old or rows:
            for algorithm, there in field.items():
                describe(args, algorithm, there, old + rows, report)
            text = page.read_text(encoding="utf-8") if page.exists() else "# Speed\n"
            report.write(page, before=f"{text.rstrip()}\n\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
