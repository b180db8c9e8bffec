"""Races our scripts with Stable-Baselines3 and SBX on this machine.

    python benchmarks/speed.py [--algorithm sac td3 ...] [--parts throughput memory ...] [--quick]

All contestants of all algorithms take turns within one invocation, every run in a fresh process and
every round in another order, so that whatever else the machine does meets them all; ratios are
formed within a round. Results go to benchmarks/results as CSV (every single number) and Markdown.
"""

import ast
import dataclasses
import importlib
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import common
import tyro

Rows = list[dict[str, Any]]
Part = Literal["throughput", "memory", "startup", "solved", "floor", "profile"]
PARTS: tuple[Part, ...] = ("throughput", "memory", "startup", "solved", "floor", "profile")
LIBRARIES: tuple[common.Library, ...] = ("ours", "sb3", "sbx")
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
    """runs of each contestant, for throughput, memory and startup"""
    threads: int = 1
    """CPU threads for all but startup and solved; with 1, those parts run on one core"""
    env_id: str = "HalfCheetah-v5"
    """environment of all but startup and solved"""
    learning_starts: int = 500
    """steps of warm-up, for those that have one"""
    settle_steps: int = 0
    """steps of learning before the clock: JAX compiles in them; 0 = those of common.ALGORITHMS"""
    measured_steps: int = 0
    """steps of learning on the clock; 0 = likewise"""
    solve_seeds: int = 5
    """runs of each contestant until Pendulum is solved"""
    solve_steps: int = 0
    """steps after which a peer has failed to solve it; 0 = those of common.ALGORITHMS"""
    floor_rounds: int = 60
    """rounds of 20 updates each"""
    also: tuple[Path, ...] = ()
    """CSV files of earlier invocations on equal terms, whose rounds count too"""
    results_dir: Path = common.RESULTS
    """where the results go"""
    quick: bool = False
    """tiny numbers, to see that everything works"""


QUICK = {"rounds": 1, "learning_starts": 100, "settle_steps": 100, "measured_steps": 100}
QUICK |= {"solve_seeds": 1, "solve_steps": 250, "floor_rounds": 2}


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


def earlier(paths: tuple[Path, ...]) -> Rows:
    """What earlier invocations measured, but for profiles; each round has a number of its own."""
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise SystemExit(f"error: there is no {', '.join(missing)}")
    return [
        row | {"round": 1000 * number + int(row["round"]), "value": float(row["value"])}
        for number, path in enumerate(paths, 1)
        for row in common.read_csv(path)
        if row["contestant"] != "line"
    ]


def short(value: float) -> str:
    if not math.isfinite(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> list[str]:
    """The median, and the range of the values."""
    low, high = short(min(values)), short(max(values))
    return [short(statistics.median(values)), low if low == high else f"{low} to {high}"]


def summary(rows: Rows, metric: str, titles: dict[str, str]) -> str:
    """A table of one metric; the ratio of the first contestant to each is formed within rounds."""
    values = {name: {} for name in titles}
    for row in rows:
        if row["metric"] == metric and not math.isnan(row["value"]):
            values[row["contestant"]][row["round"]] = row["value"]
    values = {name: of for name, of in values.items() if of}
    first = next(iter(titles))
    lines = []
    for name, of in values.items():
        shared = of.keys() & values.get(first, {}).keys() if name != first else ()
        pairs = [(values[first][r], of[r]) for r in shared]
        ratios = [a / b for a, b in pairs if min(a, b) < math.inf]
        middle, width = spread(ratios) if ratios else ("", "")
        ratio = f"{middle} ({width})" if ratios else ""
        lines.append([titles[name], *spread(list(of.values())), str(len(of)), ratio])
    return common.table([metric, "median", "range", "runs", f"{titles[first]} / this one"], lines)


def steps_per_second(clock: dict[int, float], first: int, last: int) -> float:
    return (last - first) / (clock[last] - clock[first])


# === 1 and 4. Steps per second and memory =========================================================
def clocked(args: Args, algorithm: str) -> tuple[int, int]:
    """The steps between which the clock runs."""
    row = common.ALGORITHMS[algorithm]
    warm_up = args.learning_starts if row.rollout == 1 else 0
    first = row.whole(warm_up + (args.settle_steps or row.race[0]))
    return first, first + row.whole(args.measured_steps or row.race[1])


def training_command(args: Args, who: Contestant) -> list[str]:
    first, last = clocked(args, who.algorithm)
    # Our script evaluates and saves at its last step, which is therefore after the clock's.
    terms = {"env_id": args.env_id, "steps": last + 1, "seed": 1, "threads": args.threads}
    terms |= {"learning_starts": args.learning_starts}
    watch = {"marks": [first, last]}
    if who.name == "ours":
        watch = {"eval_frequency": 0, "eval_episodes": 1, "checkpoint_frequency": 0}
    return common.equal_command(who.name, who.algorithm, **terms, **watch)


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
        flags = {"total_timesteps": 2, "log_frequency": 1, "eval_frequency": 0, "eval_episodes": 1}
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
    settings = {"env_id": "Pendulum-v1", "steps": row.whole(args.solve_steps or steps)}
    settings |= {"seed": seed, "eval_frequency": every}
    noise = {term.theirs: term.value for term in row.terms if term == common.NOISE}
    return common.peer_command(who.name, who.algorithm, **settings, model=noise)


def solved(args: Args, who: Contestant) -> Once:
    row = common.ALGORITHMS[who.algorithm]
    limit = row.whole(args.solve_steps or row.solve[0])

    def once(number: int) -> dict[str, float]:
        def enough(line: str) -> bool:
            found = common.evaluation(0, line)
            return found is not None and (found.mean >= row.solved or found.step >= limit)

        ran = common.run(solve_command(args, who, seed=number + 1), enough)
        last = common.evaluations(ran)[-1]
        done = last.mean >= row.solved
        print(
            f"{', '.join(who)}: {last.mean} at step {last.step}, {last.seconds:.1f} s", flush=True
        )
        return {
            "solved (s)": last.seconds if done else math.inf,
            "solved (steps)": last.step if done else math.inf,
        }

    return once


# === 5. The floor: the matrix products of one update ==============================================
class Products(NamedTuple):
    """What the updates of one period multiply: names of networks in train()."""

    updates: int  # the period
    forward: str  # only evaluated
    learn: str  # evaluated, and learning: gradients of all weights and hidden layers
    through: str  # evaluated, and passed through on the way to the action that went in


PRODUCTS = {
    "ddpg": Products(1, "actor q", "q actor", "q"),
    "td3": (TD3 := Products(2, 2 * "actor q1 q2 ", 2 * "q1 q2 " + "actor", "q1")),
    "td3_per": TD3,
    "sac_v1": Products(1, "v", "q1 q2 actor v", "q1 q2"),
    "sac": Products(1, "actor q1 q2", "q1 q2 actor", "q1 q2"),
}


class Script(NamedTuple):
    """One of our scripts in this process, and the settings of its race."""

    module: Any
    args: Any
    functions: dict[str, ast.FunctionDef]


def load(args: Args, algorithm: str, steps: int, folder: str = "runs") -> Script:
    sys.path.append(str(common.ROOT))
    script = importlib.import_module(common.ALGORITHMS[algorithm].script.removesuffix(".py"))
    terms = {"env_id": args.env_id, "steps": steps, "seed": 1, "threads": args.threads}
    watch = {"runs_dir": folder, "eval_frequency": 0, "eval_episodes": 1}
    command = common.equal_command("ours", algorithm, **terms, learning_starts=0, **watch)
    tree = ast.parse(Path(script.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return Script(script, tyro.cli(script.Args, args=command[2:]), functions)


def fill(replay: Any) -> None:
    """Random transitions in every row, and random priorities where there are priorities."""
    import torch

    added, width = replay.table.shape
    table, priority = torch.randn(added, width), torch.rand(added, dtype=torch.float64) + 0.1
    replay.load_state_dict({"added": added, "table": table, "priority": priority})
    replay.columns[1].clip(-1, 1, out=replay.columns[1])
    replay.columns[4][:] = 0


def own_updates(script: Script) -> tuple[Callable[[range], None], dict[str, Any]]:
    """The loop over updates in train() as it stands, on random data; and the variables it uses.

    What it takes is the numbers of the updates.
    """

    def compiled(*nodes: ast.stmt) -> Any:
        return compile(ast.Module([*nodes], []), script.module.__file__, "exec")

    names = vars(script.module) | {"args": script.args}
    train = script.functions["train"]
    exec(compiled(*train.body[:-1]), names)  # all but `with run, env:`
    fill(names["replay"])
    loops = (node for node in ast.walk(train) if isinstance(node, ast.For))
    (loop,) = (node for node in loops if "updates_due" in ast.unparse(node.iter))
    loop.iter = ast.copy_location(ast.Name("numbers", ast.Load()), loop.iter)
    code = compiled(loop)
    names["fraction"] = 0.5  # of the run, which a schedule in the loop may look at
    return lambda numbers: exec(code, names | {"numbers": numbers}), names


def products(algorithm: str, names: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """(left, right, room for the product) of all that the updates of a period multiply."""
    import torch

    def layers(network: str) -> list[tuple]:
        """Of each layer: inputs, weights, gradient of the outputs."""
        weights = [w for w in names[network].parameters() if w.dim() == 2]
        return [
            tuple(torch.randn(shape) for shape in ((size, w.shape[1]), w.shape, (size, w.shape[0])))
            for w in weights
        ]

    size = names["args"].batch_size
    pairs, of = [], PRODUCTS[algorithm]
    for network in f"{of.forward} {of.learn} {of.through}".split():
        pairs += [(x, w.t()) for x, w, _ in layers(network)]
    for network in of.learn.split():
        pairs += [(g.t(), x) for x, _, g in layers(network)]
        pairs += [(g, w) for _, w, g in layers(network)[1:]]
    for network in of.through.split():
        pairs += [(g, w) for _, w, g in layers(network)]
    return [(left, right, left @ right) for left, right in pairs]


def timed(call: Callable[[], None], updates: int) -> Once:
    """`updates` is how many a call makes."""

    def once(_: int) -> dict[str, float]:
        calls = 20 // updates
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return {"one update (ms)": 1000 * (time.perf_counter() - start) / (calls * updates)}

    return once


def floor(args: Args, algorithms: list[str]) -> Rows:
    """The updates and their products, in turns."""
    import torch

    def multiply(triples: list[tuple]) -> None:
        with torch.inference_mode():
            for left, right, out in triples:
                torch.mm(left, right, out=out)

    calls = {}
    for algorithm in algorithms:
        period = PRODUCTS[algorithm].updates
        update, names = own_updates(load(args, algorithm, steps=100_000))
        numbers, triples = range(1, 1 + period), products(algorithm, names)
        calls |= {
            Contestant(algorithm, "update"): timed(partial(update, numbers), period),
            Contestant(algorithm, "floor"): timed(partial(multiply, triples), period),
        }
    race(calls, 2)  # to warm up
    return race(calls, args.floor_rounds)


# === 6. Where the time goes =======================================================================
class Stopwatch:
    """Durations of each line of train(), by its number."""

    def __init__(self) -> None:
        self.lines: dict[int, list[float]] = {}
        self.last = time.perf_counter()

    def __call__(self, line: int) -> None:
        now = time.perf_counter()
        self.lines.setdefault(line, []).append(now - self.last)
        self.last = time.perf_counter()


def watched(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements with one after each, or after each of those inside it, that stops the time."""
    found = []
    for node in body:
        found.append(node)
        inner = [name for name in ("body", "orelse") if getattr(node, name, None)]
        for name in inner:
            setattr(node, name, watched(getattr(node, name)))
        if not (inner or isinstance(node, ast.Break | ast.Continue | ast.Return)):
            found += ast.parse(f"watch({node.lineno})").body
    return found


def profile(args: Args, algorithm: str) -> Rows:
    """Microseconds per step of each line in the loop of train() while our script learns.

    A function that is handed `run` is a part of that loop. The median of a line's durations stands
    for all of them: logging, resets, the evaluation at the end and what else is rare is left out.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        first, last = clocked(args, algorithm)
        steps, watch = last - first, Stopwatch()
        script = load(args, algorithm, steps, folder)
        (loop,) = (x for x in script.functions["train"].body[-1].body if isinstance(x, ast.For))
        parts = [f for f in script.functions.values() if "run" in [a.arg for a in f.args.args]]
        for node in (loop, *parts):
            node.body = watched(node.body)
        names = vars(script.module) | {"watch": watch}
        nodes = [script.functions["train"], *parts]
        module = ast.fix_missing_locations(ast.Module(nodes, []))
        exec(compile(module, script.module.__file__, "exec"), names)
        names["train"](script.args)
    source = Path(script.module.__file__).read_text(encoding="utf-8").splitlines()
    return [
        {
            "algorithm": algorithm,
            "metric": source[line - 1].strip(),
            "contestant": "line",
            "round": line,
            "value": 1e6 * statistics.median(values) * len(values) / steps,
        }
        for line, values in sorted(watch.lines.items())
    ]


def breakdown(rows: Rows) -> str:
    """The lines that take a hundredth of the time or more, in their order."""
    total = sum(row["value"] for row in rows)
    lines, rest = [], 0.0
    for row in rows:
        share = row["value"] / total
        if share < 0.01:
            rest += row["value"]
        else:
            code = row["metric"].replace("|", "\\|")
            lines.append([f"`{code}`", f"{row['value']:.0f}", f"{share:.1%}"])
    lines += [["all others", f"{rest:.0f}", f"{rest / total:.1%}"], ["all", f"{total:.0f}", ""]]
    return common.table(["line of the loop", "us per step", "share"], lines)


# === Everything ===================================================================================
def chosen(args: Args) -> dict[str, list[str]]:
    """Who takes part for each algorithm."""
    names = common.ALGORITHMS if "all" in args.algorithm else args.algorithm
    return {name: common.contestants(name, args.libraries) for name in names}


def measure(args: Args, field: dict[str, list[str]], rows: Rows) -> None:
    """Each part that is asked for, into the rows."""
    everybody = [Contestant(name, library) for name, there in field.items() for library in there]

    def turns(part: Callable[[Args, Contestant], Once], rounds: int) -> Rows:
        return race({who: part(args, who) for who in everybody}, rounds)

    if {"throughput", "memory"} & set(args.parts):
        with common.one_core(args.threads == 1):
            rows += turns(training, args.rounds)
    if "startup" in args.parts:
        rows += turns(startup, args.rounds)
    if "solved" in args.parts:
        rows += turns(solved, args.solve_seeds)
    with common.one_core(args.threads == 1):
        if "floor" in args.parts:
            rows += floor(args, [name for name in field if name in PRODUCTS])
        for name in field if "profile" in args.parts else ():
            rows += profile(args, name)


def describe(args: Args, algorithm: str, there: list[str], rows: Rows, report: Any) -> None:
    """The chapter of one algorithm."""
    row = common.ALGORITHMS[algorithm]
    rows = [found for found in rows if found["algorithm"] == algorithm]
    measured = {found["metric"] for found in rows}
    titles = {name: common.TITLES[name] for name in LIBRARIES if name in there}

    def section(title: str, about: str, metrics: list[str], command: Callable) -> None:
        if metrics[0] not in measured:
            return
        lines = (f"`{common.shown(command(args, Contestant(algorithm, k)))}`" for k in titles)
        listed = (f"- {name}: {line}" for name, line in zip(titles.values(), lines, strict=True))
        tables = [summary(rows, metric, titles) for metric in metrics]
        report.section(title, about, *tables, "\n".join(listed), level=3)

    report.section(algorithm, *(() if row.peer else ("No peer has this algorithm.",)))
    first, last = clocked(args, algorithm)
    updates = "one update at each" if row.rollout == 1 else "whole rollouts with their updates"
    about = f"{args.env_id}, from step {first} to {last}, {updates}: no start-up, compilation or "
    if "throughput" in args.parts:
        about += "evaluation. More is better."
        section("Training", about, ["steps per second"], training_command)
    if "memory" in args.parts:
        about = "The same runs, whole: resident memory at its largest. Less is better."
        section("Memory", about, ["peak memory (MiB)"], training_command)
    about = "From the start of the process to the end of the first step"
    if row.rollout > 1:
        about += " (ours: of a first rollout of two steps and its update)"
    section("Start-up", f"{about}. Less is better.", ["start-up (s)"], startup_command)
    about = (
        f"From the start of the process to an evaluation of {row.solved:g} or more on "
        "Pendulum-v1: mean return of the deterministic policy from the same 10 starts for "
        f"all, every {row.solve[1]} steps. Each with its own defaults, threads included"
    )
    if common.NOISE in row.terms:
        about += "; the peers have no exploration noise by default and get ours"
    metrics = ["solved (s)", "solved (steps)"]
    section("Time to a solved Pendulum", f"{about}. Less is better.", metrics, solve_command)
    if "one update (ms)" in measured:
        about = (
            "The loop over updates in train() beside the matrix products in it, at their shapes, "
            "in turns. The floor is that of PyTorch's products; another library's may take less."
        )
        sides = {"update": "the update", "floor": "its products"}
        report.section("The floor", about, summary(rows, "one update (ms)", sides), level=3)
    if lines := [found for found in rows if found["contestant"] == "line"]:
        about = f"Our script while it learns, {args.env_id}: median durations of its lines."
        report.section("Where the time goes", about, breakdown(lines), level=3)


def free_stem(folder: Path, name: str) -> Path:
    """The name, numbered if it is taken: no result is overwritten."""
    for tail in ("", *(f"_{i}" for i in range(2, 1000))):
        if not (folder / f"{name}{tail}.csv").exists():
            return folder / f"{name}{tail}"
    raise SystemExit(f"error: {folder} is full")


def main(args: Args) -> None:
    if args.quick:
        args = dataclasses.replace(args, **QUICK)
    note = (
        f"{args.threads} (with 1, everybody on one core; otherwise JAX takes what it finds); each "
        "library's default for start-up and Pendulum"
    )
    field = chosen(args)
    report = common.Report(f"Speed of {', '.join(field)} and their peers", note)
    rows = earlier(args.also)
    try:
        measure(args, field, rows)
    finally:
        if rows:
            stem = free_stem(args.results_dir, f"speed_{time.strftime('%Y-%m-%d')}")
            common.write_csv(stem.with_suffix(".csv"), rows)
            for algorithm, there in field.items():
                describe(args, algorithm, there, rows, report)
            report.write(stem.with_suffix(".md"))


if __name__ == "__main__":
    main(tyro.cli(Args))
