"""Races our scripts with Stable-Baselines3 and SBX on this machine.

    python benchmarks/speed.py [--parts throughput memory startup solved floor] [--quick]

The contestants take turns within one invocation, every run in a fresh process and every round in
another order, so that whatever else the machine does meets them all; ratios are formed within a
round. Results go to benchmarks/results as CSV (every single number) and Markdown.
"""

import copy
import dataclasses
import importlib
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import common
import tyro

Rows = list[dict[str, Any]]
Part = Literal["throughput", "memory", "startup", "solved", "floor"]
PARTS: tuple[Part, ...] = ("throughput", "memory", "startup", "solved", "floor")
LIBRARIES: tuple[common.Library, ...] = ("ours", "sb3", "sbx")


@dataclasses.dataclass
class Args:
    algorithm: str = "sac"
    """a row of common.ALGORITHMS"""
    parts: tuple[Part, ...] = PARTS
    """what is measured"""
    libraries: tuple[common.Library, ...] = LIBRARIES
    """who takes part"""
    rounds: int = 6
    """runs of each contestant, for throughput, memory and startup"""
    threads: int = 2
    """CPU threads for throughput, memory and floor; with 1, those run on one core"""
    env_id: str = "HalfCheetah-v5"
    """environment of throughput and memory"""
    learning_starts: int = 500
    """steps of warm-up"""
    settle_steps: int = 500
    """steps of learning before the clock: JAX compiles in them"""
    measured_steps: int = 1500
    """steps of learning on the clock"""
    solve_seeds: int = 5
    """runs of each contestant until Pendulum is solved"""
    solve_steps: int = 10_000
    """steps after which a peer has failed to solve it"""
    solve_return: float = -200.0
    """mean evaluation return that counts as solved"""
    floor_rounds: int = 60
    """rounds of 20 updates each"""
    results_dir: Path = common.RESULTS
    """where the results go"""
    quick: bool = False
    """tiny numbers, to see that everything works"""


QUICK = {"rounds": 1, "learning_starts": 100, "settle_steps": 100, "measured_steps": 100}
QUICK |= {"threads": 1, "solve_seeds": 1, "solve_steps": 250, "floor_rounds": 2}


# === Racing =======================================================================================
def race(contestants: dict[str, Callable[[int], dict[str, float]]], rounds: int) -> Rows:
    """Let each contestant (round -> {metric: value}) run once a round, in an order of its own."""
    rows = []
    for number in range(rounds):
        for name in random.Random(number).sample(list(contestants), len(contestants)):
            for metric, value in contestants[name](number).items():
                rows.append({"metric": metric, "contestant": name, "round": number, "value": value})
    return rows


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
def training_commands(args: Args, libraries: list[str]) -> dict[str, list[str]]:
    first = args.learning_starts + args.settle_steps
    last = first + args.measured_steps
    shared = common.Shared(args.threads, args.learning_starts)
    # Our script evaluates and saves at its last step, which is therefore one after the clock's.
    watch = {"ours": {"eval_frequency": 0, "eval_episodes": 1, "checkpoint_frequency": 0}}
    return {
        name: common.equal_command(
            name,
            args.algorithm,
            shared,
            args.env_id,
            last + 1,
            seed=1,
            **watch.get(name, {"marks": [first, last]}),
        )
        for name in libraries
    }


def training(args: Args, commands: dict[str, list[str]]) -> Rows:
    first = args.learning_starts + args.settle_steps

    def contestant(name: str) -> Callable[[int], dict[str, float]]:
        def once(_: int) -> dict[str, float]:
            ran = common.run(commands[name])
            speed = steps_per_second(common.clock(ran), first, first + args.measured_steps)
            print(f"{name}: {speed:.1f} steps per second", flush=True)
            memory = math.nan if ran.memory is None else ran.memory
            return {"steps per second": speed, "peak memory (MiB)": memory}

        return once

    return race({name: contestant(name) for name in commands}, args.rounds)


# === 2. Start-up ==================================================================================
def startup_commands(args: Args, libraries: list[str]) -> dict[str, list[str]]:
    flags = {"total_timesteps": 2, "log_frequency": 1, "eval_frequency": 0, "eval_episodes": 1}
    settings = {"env_id": "Pendulum-v1", "steps": 2, "seed": 1, "marks": [1]}
    return {
        name: common.our_command(args.algorithm, **flags)
        if name == "ours"
        else common.peer_command(name, args.algorithm, **settings)
        for name in libraries
    }


def first_step(ran: common.Ran) -> float:
    """Seconds from the start of the process to the end of the first step in the environment.

    Our script prints a line when its clock starts, and its first row is that clock at step 1.
    """
    line = "replay takes up to" if ran.metrics else "step 1 at"
    began = next(seconds for seconds, text in ran.lines if line in text)
    return began + (float(ran.metrics[0]["seconds"]) if ran.metrics else 0.0)


def startup(args: Args, commands: dict[str, list[str]]) -> Rows:
    def contestant(name: str) -> Callable[[int], dict[str, float]]:
        return lambda _: {"start-up (s)": first_step(common.run(commands[name]))}

    return race({name: contestant(name) for name in commands}, args.rounds)


# === 3. From Enter to a solved Pendulum ===========================================================
def solve_command(args: Args, name: str, seed: int) -> list[str]:
    if name == "ours":
        return common.our_command(args.algorithm, seed=seed, eval_frequency=250)
    settings = {"env_id": "Pendulum-v1", "steps": args.solve_steps, "eval_frequency": 250}
    return common.peer_command(name, args.algorithm, seed=seed, **settings)


def solved(args: Args, libraries: list[str]) -> Rows:
    def contestant(name: str) -> Callable[[int], dict[str, float]]:
        def once(number: int) -> dict[str, float]:
            def enough(line: str) -> bool:
                found = common.evaluation(0, line)
                return found is not None and (
                    found.mean >= args.solve_return or found.step >= args.solve_steps
                )

            ran = common.run(solve_command(args, name, seed=number + 1), enough)
            last = common.evaluations(ran)[-1]
            done = last.mean >= args.solve_return
            print(f"{name}: {last.mean} at step {last.step}, {last.seconds:.1f} s", flush=True)
            return {
                "solved (s)": last.seconds if done else math.inf,
                "solved (steps)": last.step if done else math.inf,
            }

        return once

    return race({name: contestant(name) for name in libraries}, args.solve_seeds)


# === 5. The floor: the matrix products of one update ==============================================
OBS, ACTION, HIDDEN, BATCH = 17, 6, 256, 256  # HalfCheetah, and the defaults


def sac_products() -> list[tuple[Any, Any, Any]]:
    """(left, right, room for the product) of all that one update of SAC has to multiply."""
    import torch

    def layers(*sizes: int) -> list[tuple]:
        """Of each layer: inputs, weights, gradient of the outputs."""
        shapes = [((BATCH, i), (o, i), (BATCH, o)) for i, o in pairwise(sizes)]
        return [tuple(torch.randn(shape) for shape in layer) for layer in shapes]

    def forward(net: list[tuple]) -> list[tuple]:
        return [(x, w.t()) for x, w, _ in net]

    def to_weights(net: list[tuple]) -> list[tuple]:
        return [(g.t(), x) for x, _, g in net]

    def to_inputs(net: list[tuple]) -> list[tuple]:
        return [(g, w) for _, w, g in net]

    actor = layers(OBS, HIDDEN, HIDDEN, 2 * ACTION)
    q1, q2, q1_target, q2_target = (layers(OBS + ACTION, HIDDEN, HIDDEN, 1) for _ in range(4))
    # y: a' from the actor, and the target critics there.
    pairs = forward(actor) + forward(q1_target) + forward(q2_target)
    # The critics' step: gradients of all weights and hidden layers, not of the inputs.
    for q in (q1, q2):
        pairs += forward(q) + to_weights(q) + to_inputs(q[1:])
    # The actor's step: through the critics to the action, and on to the actor's weights.
    for q in (q1, q2):
        pairs += forward(q) + to_inputs(q)
    pairs += forward(actor) + to_weights(actor) + to_inputs(actor[1:])
    return [(left, right, left @ right) for left, right in pairs]


def sac_update(sac: Any, tick: Callable[[str], None] | None = None) -> Callable[[], None]:
    """One update of train() in sac_continuous.py on random data; tick() ends each section."""
    import numpy as np
    import torch

    args = sac.Args()
    actor = sac.Actor(OBS, ACTION, HIDDEN)
    q1, q2 = sac.Critic(OBS, ACTION, HIDDEN), sac.Critic(OBS, ACTION, HIDDEN)
    q1_target, q2_target = copy.deepcopy(q1), copy.deepcopy(q2)
    temperature = sac.Temperature(args.alpha, trainable=True)
    q_params = [*q1.parameters(), *q2.parameters()]
    target_params = [*q1_target.parameters(), *q2_target.parameters()]
    q_optimizer = torch.optim.Adam(q_params, args.q_lr, fused=True)
    actor_optimizer = torch.optim.Adam(actor.parameters(), args.policy_lr, fused=True)
    alpha_optimizer = torch.optim.Adam(temperature.parameters(), args.alpha_lr, fused=True)
    replay = sac.ReplayBuffer(100_000, OBS, ACTION)
    replay.table[:] = np.random.default_rng(1).standard_normal(replay.table.shape, np.float32)
    replay.columns[1][:] = np.tanh(replay.columns[1])
    replay.columns[4][:] = 0
    replay.added = len(replay.table)
    if tick:
        q_optimizer.register_step_pre_hook(lambda *_: tick("critics, gradients"))
        actor_optimizer.register_step_pre_hook(lambda *_: tick("actor, gradients"))
    else:
        tick = len  # anything that takes a string and does nothing

    def update() -> None:
        batch = replay.sample(BATCH)
        alpha = temperature().detach()
        tick("replay, sample")
        with torch.no_grad():
            next_action, next_log_prob = actor.sample(batch.next_obs)
            tick("actor at s'")
            next_q1 = q1_target(batch.next_obs, next_action)
            next_q2 = q2_target(batch.next_obs, next_action)
            tick("target critics")
            next_value = sac.soft_value(next_q1, next_q2, next_log_prob, alpha)
            y = sac.bellman_target(batch.reward, batch.terminated, next_value, args.gamma)
            tick("y")
        q1_value, q2_value = q1(batch.obs, batch.action), q2(batch.obs, batch.action)
        tick("critics, forward")
        q_loss = sac.critic_loss(q1_value, y) + sac.critic_loss(q2_value, y)
        tick("critics, loss")
        sac.gradient_step(q_optimizer, q_loss, args.max_grad_norm)
        tick("critics, Adam")
        new_action, log_prob = actor.sample(batch.obs)
        tick("actor, forward")
        new_q1, new_q2 = q1(batch.obs, new_action), q2(batch.obs, new_action)
        tick("critics at the new action")
        pi_loss = sac.actor_loss(log_prob, new_q1, new_q2, alpha)
        tick("actor, loss")
        sac.gradient_step(actor_optimizer, pi_loss, args.max_grad_norm)
        tick("actor, Adam")
        alpha_loss = sac.temperature_loss(temperature(), log_prob.detach(), -ACTION)
        sac.gradient_step(alpha_optimizer, alpha_loss, args.max_grad_norm)
        tick("temperature")
        sac.update_targets(target_params, q_params, args.tau)
        tick("targets")

    return update


FLOORS = {"sac": (sac_update, sac_products)}


class Stopwatch:
    """Seconds per section, added up."""

    def __init__(self) -> None:
        self.sections: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, section: str) -> None:
        now = time.perf_counter()
        self.sections[section] = self.sections.get(section, 0.0) + now - self.last
        self.last = now


def timed(call: Callable[[], None], repeats: int = 20) -> Callable[[int], dict[str, float]]:
    def once(_: int) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return {"one update (ms)": 1000 * (time.perf_counter() - start) / repeats}

    return once


def floor(args: Args) -> tuple[Rows, dict[str, float]]:
    """The update and the floor in turns; then the microseconds of each section of the update."""
    import torch

    sys.path.append(str(common.ROOT))
    script = importlib.import_module(common.ALGORITHMS[args.algorithm].script.removesuffix(".py"))
    torch.set_num_threads(args.threads)
    make_update, make_products = FLOORS[args.algorithm]
    update, products, watch = make_update(script), make_products(), Stopwatch()
    watched = make_update(script, watch)

    def multiply() -> None:
        with torch.inference_mode():
            for left, right, out in products:
                torch.mm(left, right, out=out)

    calls = {"update": timed(update), "floor": timed(multiply)}
    race(calls, 2)  # to warm up
    rows = race(calls, args.floor_rounds)
    for updates in (20, 20 * args.floor_rounds):  # the first few to warm up
        watch.sections.clear()
        for _ in range(updates):
            watch.last = time.perf_counter()
            watched()
    return rows, {name: 1e6 * sum_ / updates for name, sum_ in watch.sections.items()}


def breakdown(sections: dict[str, float]) -> str:
    total = sum(sections.values())
    lines = [[k, f"{v:.0f}", f"{v / total:.1%}"] for k, v in (sections | {"all": total}).items()]
    return common.table(["section of one update", "mean us", "share"], lines)


# === Everything ===================================================================================
def listed(commands: dict[str, list[str]]) -> str:
    lines = (f"- {common.TITLES[k]}: `{common.shown(line)}`" for k, line in commands.items())
    return "\n".join(lines)


def measure(args: Args, report: common.Report, rows: Rows) -> None:
    """Each part that is asked for: into the rows and a section of the report."""
    libraries = common.installed(args.libraries)
    titles = {name: common.TITLES[name] for name in LIBRARIES if name in libraries}
    if {"throughput", "memory"} & set(args.parts):
        commands = training_commands(args, libraries)
        with common.one_core(args.threads == 1):
            rows += training(args, commands)
    if "throughput" in args.parts:
        first = args.learning_starts + args.settle_steps
        about = (
            f"{args.env_id}, from step {first} to {first + args.measured_steps}, one update at "
            "each: no start-up, compilation or evaluation. More is better."
        )
        found = summary(rows, "steps per second", titles)
        report.section("Training", about, found, listed(commands))
    if "memory" in args.parts:
        about = "The same runs, whole: resident memory at its largest. Less is better."
        found = summary(rows, "peak memory (MiB)", titles)
        report.section("Memory", about, found, listed(commands))
    if "startup" in args.parts:
        commands = startup_commands(args, libraries)
        rows += startup(args, commands)
        about = "From the start of the process to the end of the first step. Less is better."
        found = summary(rows, "start-up (s)", titles)
        report.section("Start-up", about, found, listed(commands))
    if "solved" in args.parts:
        rows += solved(args, libraries)
        about = (
            f"From the start of the process to an evaluation of {args.solve_return:g} or more on "
            "Pendulum-v1: mean return of the deterministic policy from the same 10 starts for "
            "all, every 250 steps. Each with its own defaults, threads included. Less is better."
        )
        found = [summary(rows, f"solved ({unit})", titles) for unit in ("s", "steps")]
        commands = {name: solve_command(args, name, seed=1) for name in libraries}
        report.section("Time to a solved Pendulum", about, *found, listed(commands))
    if "floor" in args.parts and args.algorithm in FLOORS:
        with common.one_core(args.threads == 1):
            times, sections = floor(args)
        rows += times
        for name, value in sections.items():
            row = {"metric": f"{name} (us)", "contestant": "update", "round": "", "value": value}
            rows.append(row)
        about = (
            "One update beside the matrix products in it, at their shapes "
            f"(observation {OBS}, action {ACTION}, hidden {HIDDEN}, batch {BATCH}), in turns. "
            "The floor is that of PyTorch's products; another library's may take less."
        )
        found = summary(rows, "one update (ms)", {"update": "the update", "floor": "its products"})
        report.section("The floor", about, found, breakdown(sections))


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
        f"{args.threads} for training, memory and floor (with 1, everybody on one core; otherwise "
        "JAX takes what it finds); each library's default for start-up and Pendulum"
    )
    report = common.Report(f"Speed of {args.algorithm} and its peers", note)
    rows: Rows = []
    try:
        measure(args, report, rows)
    finally:
        if rows:
            stem = free_stem(args.results_dir, f"speed_{time.strftime('%Y-%m-%d')}")
            common.write_csv(stem.with_suffix(".csv"), rows)
            report.write(stem.with_suffix(".md"))


if __name__ == "__main__":
    main(tyro.cli(Args))
