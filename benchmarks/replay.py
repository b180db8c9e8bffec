"""What a prioritised draw costs beside a uniform one, by the size of the buffer.

    python benchmarks/replay.py [--quick]

The two buffers of td3_per_continuous.py, full of transitions of HalfCheetah-v5's size, draw batches
in turns: once as fast as they can, so that a processor's cache holds what they touch, and once with
gradient updates of the script before each call, as in training. All sizes take turns too, and so
does Stable-Baselines3's uniform buffer. Quartiles go to benchmarks/results/replay/replay.csv,
medians to a page and a picture beside it.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import speed
import tyro
from matplotlib.figure import Figure  # pyplot would look for a display
from stable_baselines3.common.buffers import ReplayBuffer

UNIFORM, DRAW, BOTH = "uniform draw", "prioritised draw", "draw and new priorities"
PEER = "uniform draw of SB3"
KINDS = UNIFORM, PEER, DRAW, BOTH
PLACES = {"alone": "One after the other", "training": "Updates in between"}


@dataclasses.dataclass
class Args:
    sizes: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    """transitions in the buffer, all of it filled"""
    batch_size: int = 256
    """transitions drawn at a time"""
    rounds: int = 400
    """draws of each kind, size and place; ten times as many without updates"""
    threads: int = 1
    """PyTorch's CPU threads"""
    out: Path | None = None
    """CSV file; page and picture go beside it; not given: in benchmarks/results/replay"""
    quick: bool = False
    """tiny numbers, to see that everything works; they go to quick.csv"""


Once = Callable[[str], dict[str, float]]  # place -> {kind: microseconds}


def full_peer(size: int, env: Any) -> ReplayBuffer:
    """Stable-Baselines3's buffer with random transitions in every row."""
    peer = ReplayBuffer(size, env.observation_space, env.action_space)
    for array in (peer.observations, peer.actions, peer.rewards, peer.next_observations):
        array[:] = np.random.default_rng(1).standard_normal(array.shape, np.float32)
    peer.full = True
    return peer


def draws(args: Args, size: int) -> Once:
    """A draw of each kind from buffers of this size."""
    ready = speed.prepare(speed.Args(threads=args.threads), "td3_per", size)
    update, replay, dice = speed.updater(ready, 2), ready.replay, np.random.default_rng(1)
    uniform = partial(ready.script.ReplayBuffer.sample, replay)
    peer = full_peer(size, ready.env)

    def clocked(place: str, call: Callable, *of: object) -> tuple[float, tuple]:
        """Microseconds that a call takes, and what it returns."""
        if place == "training":
            update()
        start = time.perf_counter()
        result = call(*of)
        return 1e6 * (time.perf_counter() - start), result

    def once(place: str) -> dict[str, float]:
        times = {UNIFORM: clocked(place, uniform, args.batch_size)[0]}
        times[PEER], _ = clocked(place, peer.sample, args.batch_size)
        times[DRAW], (_, rows, _) = clocked(place, replay.sample, args.batch_size)
        priority = dice.random(args.batch_size) + 0.1
        us, _ = clocked(place, replay.update_priorities, rows, priority)
        return times | {BOTH: times[DRAW] + us}

    return once


def measure(args: Args) -> speed.Rows:
    """Quartiles of the times by place, kind and size."""
    field, times = {size: draws(args, size) for size in args.sizes}, {}
    for place in PLACES:
        for _ in range(args.rounds * (1 if place == "training" else 10)):
            for size, once in field.items():
                for kind, us in once(place).items():
                    times.setdefault((place, kind, size), []).append(us)
    names = "quarter", "median", "three_quarters"
    return [
        dict(zip(("place", "kind", "size"), key, strict=True))
        | dict(zip(names, np.quantile(found, (0.25, 0.5, 0.75)).round(2).tolist(), strict=True))
        for key, found in times.items()
    ]


def medians(rows: speed.Rows, place: str) -> dict[str, dict[int, float]]:
    """{kind: {size: microseconds}}"""
    found: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
    for row in rows:
        if row["place"] == place:
            found[row["kind"]][row["size"]] = row["median"]
    return found


def page(rows: speed.Rows, place: str) -> str:
    found = medians(rows, place)
    lines = []
    for size, base in found[UNIFORM].items():
        times = [found[kind][size] for kind in KINDS]
        lines.append([f"{size:,}", *(f"{us:.0f}" for us in times), f"{times[-1] / base:.1f}"])
    return common.table(["transitions", *KINDS, "the last / the first"], lines)


def picture(rows: speed.Rows, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="tight")
    axes = figure.subplots(1, len(PLACES), sharey=True)
    for axis, (place, title) in zip(axes, PLACES.items(), strict=True):
        for kind, of in medians(rows, place).items():
            axis.plot(list(of), list(of.values()), "o-", label=kind)
        axis.set(title=title, xscale="log", xlabel="transitions in the buffer")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="microseconds, median", ylim=(0, None))
    axes[0].legend()
    figure.savefig(path, dpi=100)


def main(args: Args) -> None:
    if args.quick:
        args = dataclasses.replace(args, sizes=(1_000, 4_000), rounds=3)
    out = args.out or common.RESULTS / "replay" / ("quick.csv" if args.quick else "replay.csv")
    report = common.Report("The price of a prioritised draw", str(args.threads))
    script, _ = speed.load(speed.Args(), "td3_per", steps=1)
    with script.processor_settings(args.threads):
        rows = measure(args)
    common.write_csv(out, rows)
    for place, title in PLACES.items():
        about = f"Microseconds, medians; batches of {args.batch_size}."
        report.section(title, about, page(rows, place))
    picture(rows, out.with_suffix(".png"))
    report.write(out.with_suffix(".md"))


if __name__ == "__main__":
    main(tyro.cli(Args))
