"""The benchmarks: equal terms, sums and tables. What they measure is not tested here."""

import csv
import dataclasses
import importlib
import inspect
import json
import os
import re
import sys

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

PLACE = {"env_id": "Pendulum-v1", "steps": 90, "seed": 3, "threads": 1, "learning_starts": 40}
TINY = speed.Args(env_id="Pendulum-v1", threads=1, settle_steps=20, measured_steps=60)
WITH_PEERS = [name for name, row in common.ALGORITHMS.items() if row.peer]


def rows(**values: list[float]) -> speed.Rows:
    return [
        {"algorithm": "sac", "metric": "m", "contestant": name, "round": i, "value": value}
        for name, of in values.items()
        for i, value in enumerate(of)
    ]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_equal_terms_reach_our_script(algorithm):
    """Every value arrives in the field of Args that it is meant for."""
    row = common.ALGORITHMS[algorithm]
    script = importlib.import_module(row.script.removesuffix(".py"))
    command = common.equal_command("ours", algorithm, **PLACE, eval_frequency=30)
    args = tyro.cli(script.Args, args=command[2:])
    assert (args.env_id, args.total_timesteps, args.seed) == ("Pendulum-v1", 90, 3)
    assert (args.num_threads, args.eval_frequency) == (1, 30)
    assert getattr(args, "learning_starts", 40) == 40
    for term in row.terms:
        assert all(getattr(args, flag) == term.value for flag in term.ours.split()), term


@pytest.mark.parametrize("algorithm", WITH_PEERS)
def test_no_learning_rate_is_forgotten(algorithm):
    """A peer has one for all networks, so that each of ours is among the terms."""
    row = common.ALGORITHMS[algorithm]
    ours = {field.name for field in dataclasses.fields(speed.load(TINY, algorithm, 9).args)}
    (rate,) = (term for term in row.terms if term.theirs == "learning_rate")
    rates = {name for name in ours if re.search("_lr$|rate$", name)} - {"anneal_lr"}
    assert set(rate.ours.split()) == rates
    assert row.sbx.get("qf_learning_rate", rate.value) == rate.value


@pytest.mark.parametrize("library", ["sb3", "sbx"])
@pytest.mark.parametrize("algorithm", WITH_PEERS)
def test_equal_terms_reach_a_peer(algorithm, library):
    """A peer's arguments are ones that its class and peer.main have, with the shared values."""
    row = common.ALGORITHMS[algorithm]
    command = common.equal_command(library, algorithm, **PLACE, marks=[1])
    settings = json.loads(command[-1])
    inspect.signature(peer.main).bind(library, row.peer, **settings)
    model, hidden = settings["model"], [64 if algorithm == "ppo" else 256] * 2
    assert settings["threads"] == 1 and model["policy_kwargs"] == {"net_arch": hidden}
    assert model.get("learning_starts", 40) == 40 and command[3] == row.peer
    for term in row.terms:
        assert term.theirs in ("", "net_arch") or model[term.theirs] == term.value, term
    module = pytest.importorskip(common.MODULES["sb3"])  # SBX takes its arguments: JAX is slow
    mine = ("normalise", *(("qf_learning_rate",) if library == "sbx" else ()))
    model = {name: value for name, value in model.items() if name not in mine}
    inspect.signature(getattr(module, row.peer)).bind("MlpPolicy", "Pendulum-v1", **model)


def test_who_has_no_such_algorithm_is_left_out(capsys):
    """By name."""
    assert common.contestants("sac_v1", ("ours", "sb3")) == ["ours"]
    assert "Stable-Baselines3 has no sac_v1" in capsys.readouterr().out


def test_peers_are_evaluated_like_our_script():
    """The same policy gets the same returns, so the starts and the sums agree."""
    args = sac.Args(eval_episodes=3)
    ours = [sum(step[2] for step in t) for t in sac.evaluate(lambda obs: torch.zeros(1), args)]
    theirs = peer.evaluate(lambda obs: np.zeros(1, np.float32), args.env_id, 3)
    assert theirs == pytest.approx(np.mean(ours), abs=1e-6)


ROLLOUTS = {"n_steps": 8, "batch_size": 8, "gamma": 0.9, "normalise": True}
NOISE = {"learning_starts": 2, "action_noise": 0.3}


@pytest.mark.parametrize("name, model", [("PPO", ROLLOUTS), ("TD3", NOISE)])
def test_what_a_peer_gets_beyond_its_arguments(name, model, monkeypatch, capsys):
    """Noise, normalised observations, and evaluations that come after the update of their step."""
    peers = pytest.importorskip(common.MODULES["sb3"])
    seen = []

    class Spied(getattr(peers, name)):
        def train(self, *args, **kwargs):
            print("update", self.num_timesteps)

        def predict(self, obs, *args, deterministic=False, **kwargs):
            if deterministic:
                seen.append((self, obs))
            return np.zeros((*obs.shape[:-1], 1), np.float32), None

    monkeypatch.setattr(peers, name, Spied)
    settings = {"steps": 16, "seed": 1, "eval_frequency": 8, "eval_episodes": 1}
    peer.main("sb3", name, env_id="Pendulum-v1", **settings, model=dict(model))
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert "update 8,step 8," in ",".join(lines) and lines[-2:] == ["update 16", "step 16"]
    learner, first = seen[0]
    raw = sac.make_env("Pendulum-v1").reset(seed=peer.EVAL_SEED)[0]
    assert np.allclose(first, raw) == (name == "TD3")
    if name == "TD3":
        assert learner.action_noise._sigma == 0.3
    else:
        assert learner.get_vec_normalize_env().gamma == 0.9


@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_the_clock_starts_and_stops_between_rollouts(algorithm):
    """After the warm-up, at steps at which our script writes a row of metrics."""
    row = common.ALGORITHMS[algorithm]
    first, last = speed.clocked(speed.Args(), algorithm)
    assert (first % row.rollout, last % row.rollout) == (0, 0)
    assert first > (500 if row.rollout == 1 else 0) and last - first >= 1500
    args = dataclasses.replace(speed.Args(), settle_steps=100, measured_steps=100)
    first, last = speed.clocked(args, algorithm)
    assert last - first == max(100, row.rollout) and first % row.rollout == 0
    if row.rollout == 1:
        assert first % speed.load(TINY, algorithm, 9).args.log_frequency == 0


def test_race_lets_each_run_once_a_round_in_changing_order():
    """All contestants in every round; each of them begins some round."""
    field = [speed.Contestant("sac", name) for name in "abc"]
    ran = speed.race({who: lambda _: {"m": 1.0} for who in field}, rounds=12)
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
    assert speed.first_step(common.Ran([(2.0, "runs/x: replay")], 5, 1, metrics)) == 2.25
    assert speed.first_step(common.Ran([(1, "a"), (3.0, "step 1 at 77.0 s")], 5, 1, [])) == 3.0


@pytest.mark.parametrize("algorithm", speed.PRODUCTS)
def test_the_floor_is_the_products_of_the_updates(algorithm):
    """PyTorch counts the same floating-point operations in both."""
    update, names = speed.own_updates(speed.load(TINY, algorithm, steps=300))
    period = range(1, 1 + speed.PRODUCTS[algorithm].updates)
    with FlopCounterMode(display=False) as whole:
        update(period)
    triples = speed.products(algorithm, names)
    with FlopCounterMode(display=False) as floor:
        for left, right, out in triples:
            torch.mm(left, right, out=out)
    assert floor.get_total_flops() == whole.get_total_flops() > 0


@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_the_profile_has_the_lines_of_the_loop(algorithm):
    """Those that act, step, and learn; each with a time, and in the order of the script."""
    found = speed.profile(TINY, algorithm)
    assert [row["round"] for row in found] == sorted({row["round"] for row in found})
    assert all(row["value"] > 0 for row in found)
    code = "\n".join(row["metric"] for row in found)
    parts = ("action = ", ".step(action)", "batch", "gradient_step(", "run.after_step()")
    assert all(part in code for part in parts), code


def test_the_breakdown_has_every_microsecond():
    """Lines below a hundredth are added up."""
    found = [
        {"metric": m, "value": v} for m, v in (("a | b", 97.5), ("c", 0.8), ("d", 1.1), ("e", 0.6))
    ]
    assert cells(speed.breakdown(found).replace("\\|", "or"))[2:] == [
        ["`a or b`", "98", "97.5%"],
        ["`d`", "1", "1.1%"],
        ["all others", "1", "1.4%"],
        ["all", "100", ""],
    ]


def test_no_result_is_overwritten(tmp_path):
    """A second race on the same day gets a name of its own."""
    assert speed.free_stem(tmp_path, "speed").name == "speed"
    (tmp_path / "speed.csv").touch()
    assert speed.free_stem(tmp_path, "speed").name == "speed_2"


def test_earlier_rounds_count_too(tmp_path, monkeypatch):
    """Ratios stay within the rounds of one invocation; a profile is of its own invocation."""
    monkeypatch.setattr(common, "contestants", lambda algorithm, libraries: ["ours", "sb3"])
    for name, ours, sb3 in (("one", [100, 300], [50, 100]), ("two", [900], [100])):
        found = [row | {"metric": "steps per second"} for row in rows(ours=ours, sb3=sb3)]
        found.append(found[0] | {"metric": "some code", "contestant": "line"})
        common.write_csv(tmp_path / f"{name}.csv", found)
    also = tmp_path / "one.csv", tmp_path / "two.csv"
    speed.main(speed.Args(parts=("throughput",), rounds=0, also=also, results_dir=tmp_path / "new"))
    (page,) = (tmp_path / "new").glob("*.md")
    text = page.read_text()
    table = cells("\n".join(line for line in text.splitlines() if line.startswith("| ")))
    assert table[2:] == [
        ["Marginalia", "300", "100 to 900", "3", ""],
        ["Stable-Baselines3", "100", "50 to 100", "3", "3 (2 to 9)"],
    ]
    assert "some code" not in text
    with pytest.raises(SystemExit, match="there is no .*three.csv"):
        speed.earlier((tmp_path / "three.csv",))


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
    assert "Solved, with -200 or more: 1 of 3." in text
    assert "| 3 | -350.0 | 2.5 | 21.0 |" in text and "| median | -250.0 | 2.5 | 14.0 |" in text
    assert len(common.read_csv(tmp_path / "a.csv")) == 3


@pytest.fixture(scope="module")
def replay():
    """The benchmark, which takes Stable-Baselines3 along."""
    pytest.importorskip(common.MODULES["sb3"])
    return importlib.import_module("replay")


def test_draws_are_timed_in_turns_and_alike(tmp_path, replay):
    """Every kind, size and place; new priorities come on top of the draw."""
    args = replay.Args(sizes=(300, 700), batch_size=8, rounds=2, out=tmp_path / "r.csv")
    replay.main(args)
    found = {}
    for row in common.read_csv(args.out):
        assert float(row["quarter"]) <= float(row["median"]) <= float(row["three_quarters"])
        found.setdefault((row["place"], int(row["size"])), {})[row["kind"]] = float(row["median"])
    assert set(found) == {(place, size) for place in replay.PLACES for size in args.sizes}
    assert all(of.keys() == set(replay.KINDS) and min(of.values()) > 0 for of in found.values())
    assert all(of[replay.BOTH] > of[replay.DRAW] for of in found.values())
    assert args.out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = args.out.with_suffix(".md").read_text(encoding="utf-8")
    assert text.count("| 300 | ") == text.count("| 700 | ") == 2


def test_the_price_is_a_ratio_of_medians(replay):
    times = {replay.UNIFORM: 2, replay.PEER: 3, replay.DRAW: 5, replay.BOTH: 8}
    found = [
        {"place": "alone", "size": 1000, "kind": kind, "median": us} for kind, us in times.items()
    ]
    assert cells(replay.page(found, "alone"))[2] == ["1,000", "2", "3", "5", "8", "4.0"]


def test_the_buffers_that_are_timed_are_full(replay):
    """Of priorities of many sizes, lest every draw take the same way through the tree."""
    _, names = speed.own_updates(speed.load(TINY, "td3_per", steps=300))
    buffer = names["replay"]
    leaves = buffer.sum[buffer.leaf :]
    assert len(buffer) == 300 and np.count_nonzero(leaves) == len(set(leaves)) - 1 == 300
    assert buffer.columns[1].min() >= -1 and buffer.columns[4].max() == 0
    peer = replay.full_peer(300, names["env"])
    assert peer.size() == 300 and peer.sample(9).observations.shape == (9, 3)
    assert np.count_nonzero(peer.next_observations) == 900


@pytest.mark.slow
@pytest.mark.parametrize("library", ["sb3", "sbx"])
def test_a_peer_reports_like_our_script(library):
    """Marks and evaluations of a real run, across the first updates."""
    pytest.importorskip(common.MODULES[library])
    watch = {"marks": [50, 70], "eval_frequency": 45, "eval_episodes": 1}
    ran = common.run(common.equal_command(library, "sac", **PLACE, **watch))
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
