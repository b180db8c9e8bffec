"""The benchmarks: equal terms, sums and tables. What they measure is not tested here."""

import csv
import inspect
import json
import os
import sys
from types import SimpleNamespace

import common
import learning
import numpy as np
import peer
import pytest
import speed
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

import sac_continuous as sac

SHARED = common.Shared(threads=1, learning_starts=40, learning_rate=2e-4, hidden_dim=32)
PLACE = {"env_id": "Pendulum-v1", "steps": 90, "seed": 3}


def rows(**values: list[float]) -> speed.Rows:
    return [
        {"metric": "m", "contestant": name, "round": i, "value": value}
        for name, of in values.items()
        for i, value in enumerate(of)
    ]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_equal_terms_reach_our_script():
    """Every shared value arrives in the field of Args that it is meant for."""
    command = common.equal_command("ours", "sac", SHARED, **PLACE, eval_frequency=30)
    args = tyro.cli(sac.Args, args=command[2:])
    assert (args.env_id, args.total_timesteps, args.seed) == ("Pendulum-v1", 90, 3)
    assert (args.num_threads, args.learning_starts, args.hidden_dim) == (1, 40, 32)
    assert (args.policy_lr, args.q_lr, args.alpha_lr) == (2e-4, 2e-4, 2e-4)
    assert (args.batch_size, args.buffer_size, args.eval_frequency) == (256, 1_000_000, 30)


@pytest.mark.parametrize("library", ["sb3", "sbx"])
def test_equal_terms_reach_a_peer(library):
    """A peer's arguments are ones that its class and peer.main have, with the shared values."""
    settings = json.loads(common.equal_command(library, "sac", SHARED, **PLACE, marks=[1])[-1])
    inspect.signature(peer.main).bind(library, "SAC", **settings)
    model = settings["model"]
    assert (settings["threads"], model["learning_starts"], model["batch_size"]) == (1, 40, 256)
    assert (model["learning_rate"], model["policy_kwargs"]) == (2e-4, {"net_arch": [32, 32]})
    assert (model["train_freq"], model["gradient_steps"]) == (1, 1)
    module = pytest.importorskip(common.MODULES["sb3"])  # SBX takes its arguments: JAX is slow
    inspect.signature(module.SAC).bind("MlpPolicy", "Pendulum-v1", device="cpu", **model)


def test_peers_are_evaluated_like_our_script():
    """The same policy gets the same returns, so the starts and the sums agree."""
    args = sac.Args(eval_episodes=3)
    ours = [sum(step[2] for step in t) for t in sac.evaluate(lambda obs: torch.zeros(1), args)]
    model = SimpleNamespace(predict=lambda obs, deterministic: (np.zeros(1, np.float32), None))
    assert peer.evaluate(model, args.env_id, 3) == pytest.approx(np.mean(ours), abs=1e-6)


def test_race_lets_each_run_once_a_round_in_changing_order():
    """All contestants in every round; each of them begins some round."""
    ran = speed.race({name: lambda _: {"m": 1.0} for name in "abc"}, rounds=12)
    rounds = [[row["contestant"] for row in ran if row["round"] == i] for i in range(12)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert {order[0] for order in rounds} == {"a", "b", "c"}


def test_ratios_are_formed_within_rounds():
    """The median of the ratios, where the ratio of the medians would be another number."""
    table = cells(speed.summary(rows(a=[1, 20, 3], b=[2, 10, 12]), "m", {"a": "A", "b": "B"}))
    assert table[2] == ["A", "3", "1 to 20", "3", ""]
    assert table[3] == ["B", "10", "2 to 12", "3", "0.5 (0.25 to 2)"]


def test_what_never_happened_is_no_number():
    """Unsolved runs count in the medians, unless both are; what is unknown is left out."""
    never, unknown = float("inf"), float("nan")
    values = rows(a=[1, 2, 3, never], b=[4, never, never, never], c=[unknown])
    found = speed.summary(values, "m", {name: name for name in "abc"})
    assert cells(found)[3:] == [["b", "never", "4 to never", "4", "0 (0 to 0.25)"]]


def test_the_clock_is_the_contestants_own():
    """Steps per second from the marks of a peer and from the rows of our script."""
    lines = [(9.0, "step 10 at 2.000000 s"), (9.0, "step 30 at 6.500000 s"), (9.0, "step 4: no")]
    theirs = common.Ran(lines, 9.0, None, [])
    ours = common.Ran([], 9.0, None, [{"global_step": s, "seconds": s / 5} for s in (10, 20, 30)])
    assert speed.steps_per_second(common.clock(theirs), 10, 30) == pytest.approx(20 / 4.5)
    assert speed.steps_per_second(common.clock(ours), 10, 30) == pytest.approx(5)
    assert common.clock(theirs).keys() == {10, 30}


def test_start_up_ends_with_the_first_step():
    """Ours: the line that starts the clock plus the clock at step 1. A peer: its mark."""
    metrics = [{"global_step": "1", "seconds": "0.25"}]
    assert speed.first_step(common.Ran([(2.0, "x: replay takes up to 9 B")], 5, 1, metrics)) == 2.25
    assert speed.first_step(common.Ran([(1, "a"), (3.0, "step 1 at 77.0 s")], 5, 1, [])) == 3.0


def test_the_floor_is_the_products_of_the_update():
    """PyTorch counts the same floating-point operations in both."""
    update = speed.sac_update(sac)
    with FlopCounterMode(display=False) as whole:
        update()
    products = speed.sac_products()
    with FlopCounterMode(display=False) as floor:
        for left, right, out in products:
            torch.mm(left, right, out=out)
    assert floor.get_total_flops() == whole.get_total_flops() > 0


def test_sections_cover_the_update():
    """The stopwatch meets every section once per update, the optimizers' two halves among them."""
    seen = []
    update = speed.sac_update(sac, seen.append)
    update()
    assert len(seen) == len(set(seen)) == 15
    assert seen.index("critics, gradients") + 1 == seen.index("critics, Adam")
    assert seen.index("actor, gradients") + 1 == seen.index("actor, Adam")


def test_no_result_is_overwritten(tmp_path):
    """A second race on the same day gets a name of its own."""
    assert speed.free_stem(tmp_path, "speed").name == "speed"
    (tmp_path / "speed.csv").touch()
    assert speed.free_stem(tmp_path, "speed").name == "speed_2"


def test_curves_are_means_over_seeds():
    """One line per step, an empty cell where a library has no evaluation."""
    curve = {("ours", 1, 10): 1.0, ("ours", 2, 10): 4.0, ("sb3", 1, 10): 7.0, ("sb3", 1, 20): 8.0}
    table = cells(learning.curve_table(curve, ("ours", "sb3")))
    assert table[2:] == [["10", "2 (1 to 4)", "7"], ["20", "", "8"]]


def test_a_failing_contestant_stops_the_race():
    """The message has its output and no path of this machine."""
    command = [sys.executable, "-c", "print('why'); raise SystemExit(3)", str(common.ROOT / "x.py")]
    with pytest.raises(SystemExit, match="failed: python -c .* x.py\nwhy"):
        common.run(command)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no cores to choose here")
def test_one_core_is_given_back():
    """One core inside, for children too; all of them again afterwards, whatever happened."""
    count = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), common.one_core(True):
        assert common.run(count).lines[0][1] == "1"
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
    with common.one_core(False):
        assert os.sched_getaffinity(0) == before


def test_enough_ends_the_process():
    """The parent does not wait for what follows the line that it was waiting for."""
    code = "print('a', flush=True); print('b', flush=True); import time; time.sleep(20)"
    ran = common.run([sys.executable, "-c", code], enough=lambda line: line == "b\n")
    assert [line for _, line in ran.lines] == ["a", "b"] and ran.seconds < 10


def test_pendulum_takes_the_last_line(tmp_path, monkeypatch):
    """No flag but --seed; the evaluation and the seconds of each seed, and their medians."""
    asked = []

    def run(command: list[str]) -> common.Ran:
        asked.append(command[2:])
        line = f"final eval_return_mean=-{len(asked)}50.0 eval_return_std=2.5 global_step=3"
        return common.Ran([(1.0, "before"), (2.0, line)], 7.0 * len(asked), None, [])

    monkeypatch.setattr(common, "run", run)
    learning.pendulum(seeds=3, out=tmp_path / "a.csv")
    assert asked == [["--seed", "1"], ["--seed", "2"], ["--seed", "3"]]
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "| 3 | -350.0 | 2.5 | 21.0 |" in text and "| median | -250.0 | 2.5 | 14.0 |" in text
    assert len(common.read_csv(tmp_path / "a.csv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("library", ["sb3", "sbx"])
def test_a_peer_reports_like_our_script(library):
    """Marks and evaluations of a real run, across the first updates."""
    pytest.importorskip(common.MODULES[library])
    watch = {"marks": [50, 70], "eval_frequency": 45, "eval_episodes": 1}
    ran = common.run(common.equal_command(library, "sac", SHARED, **PLACE, **watch))
    assert speed.steps_per_second(common.clock(ran), 50, 70) > 0
    assert [found.step for found in common.evaluations(ran)] == [45, 90]
    assert all(-2000 < found.mean < 0 for found in common.evaluations(ran))


def test_compare_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    """Our script's evaluations arrive in CSV and table; what is done is not run again."""
    out, also = tmp_path / "a.csv", tmp_path / "b.csv"
    few = {"env_id": "Pendulum-v1", "steps": 20, "seeds": 1, "eval_every": 10}
    few |= {"eval_episodes": 1, "learning_starts": 15, "only": ("ours",)}
    learning.compare(**few, out=out)
    with open(out, newline="") as file:
        steps = [(row["library"], row["seed"], row["step"]) for row in csv.DictReader(file)]
    assert steps == [("ours", "1", "10"), ("ours", "1", "20")]
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| 20 | -" in text and "`python sac_continuous.py --env-id Pendulum-v1" in text
    monkeypatch.setattr(common, "run", lambda command: pytest.fail("it was run again"))
    learning.compare(**few, out=also, also=(out,))
    assert "done before" in capsys.readouterr().out
    assert also.with_suffix(".md").read_text(encoding="utf-8").count("| 20 | -") == 1
