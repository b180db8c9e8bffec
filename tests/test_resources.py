"""Memory, threads and files: nothing piles up, and all is closed."""

import gc
import os
import threading
import tracemalloc

import pytest
import torch
from helpers import (
    after_each_step,
    each_kind,
)


def held(run=None):
    """How much of everything that could pile up there is now."""
    gc.collect()
    counts = {"bytes": tracemalloc.get_traced_memory()[0], "threads": threading.active_count()}
    counts["tensors"] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    if os.path.isdir("/dev/fd"):  # not on Windows
        counts["files"] = len(os.listdir("/dev/fd"))
    state = vars(run) if run else {}
    lists = {name: len(x) for name, x in state.items() if isinstance(x, (list, dict))}
    lists.pop("rows", 0)  # of metrics.csv: they are kept, in case that it cannot be written
    return counts | lists


@each_kind
@pytest.mark.slow
def test_thousands_of_short_episodes_leave_nothing(tiny_run, module, monkeypatch):
    """Memory, threads, open files and the lists of the run are as after the first thousand."""
    samples = []

    def watch(run):
        if run.step in (1000, 3000):
            samples.append(held(run))

    after_each_step(module, monkeypatch, watch)
    settings = {"log_frequency": 1000, "eval_frequency": 1000, "checkpoint_frequency": 500}
    tracemalloc.start()
    try:
        rare = {"updates_per_step": 0.02} if hasattr(module.Args, "updates_per_step") else {}
        tiny_run(env_id="worlds:OneStep-v0", total_timesteps=3100, **rare, **settings)
    finally:
        tracemalloc.stop()
    before, after = samples
    assert after.pop("bytes") - before.pop("bytes") < 16 * 2000, "16 bytes per episode"
    assert after == before


@each_kind
@pytest.mark.slow
def test_runs_close_what_they_opened(tiny_run):
    def both():
        tiny_run(eval_frequency=20)
        with pytest.raises(ZeroDivisionError):
            tiny_run(eval_frequency=20, env_id="worlds:Poisoned-exception-v0")
        return held()

    both()
    assert both() == both()
