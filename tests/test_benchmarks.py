"""The benchmarks: equal terms, sums and tables. What they measure is not tested here."""

import csv
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from unittest import mock

import common
import learning
import numpy as np
import peer
import pytest
import results_pages
import speed
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

import sac_continuous as sac

PLACE = {"env_id": "Pendulum-v1", "steps": 90, "seed": 3, "threads": 1, "learning_starts": 40}
TINY = speed.Args(env_id="Pendulum-v1", threads=1, quick=True)
REPLAYING = [name for name, row in common.ALGORITHMS.items() if row.rollout == 1]
SIDES = ("update", "products")
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
    script, _ = speed.load(TINY, algorithm, steps=9)
    ours = {field.name for field in dataclasses.fields(script.Args)}
    (rate,) = (term for term in row.terms if term.theirs == "learning_rate")
    rates = {name for name in ours if re.search("_lr$|rate$", name)} - {"anneal_lr"}
    assert set(rate.ours.split()) == rates
    assert row.sbx.get("qf_learning_rate", rate.value) == rate.value


def test_equal_terms_weigh_the_critic_equally():
    """Ours multiplies 1/2 of the mean squared error of V by its weight, theirs the whole of it."""
    script, ours = speed.load(TINY, "ppo", steps=9)
    command = common.equal_command("sb3", "ppo", **PLACE)
    theirs = json.loads(command[-1])["model"]
    value, returns = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
    loss = ours.vf_coef * script.value_loss(value, returns, value, math.inf)
    assert loss == theirs["vf_coef"] * (value - returns).square().mean()
    assert ours.norm_obs and ours.norm_reward and theirs["normalise"]


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
    env = sac.make_env(args.env_id)
    ours = [sum(step[2] for step in t) for t in sac.evaluate(lambda obs: torch.zeros(1), env, args)]
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
    first, last = speed.clocked(speed.Args(quick=True), algorithm)
    assert last - first == max(100, row.rollout) and first % row.rollout == 0
    if row.rollout == 1:
        assert first % speed.load(TINY, algorithm, steps=9)[1].log_frequency == 0


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


@pytest.mark.parametrize("algorithm", REPLAYING)
def test_the_floor_is_the_products_of_the_updates(algorithm):
    """PyTorch counts the same floating-point operations in both."""
    update = speed.updater(speed.prepare(TINY, algorithm, size=300), updates=2)
    multiply = speed.multiplier(update)
    with FlopCounterMode(display=False) as whole:
        update()
    with FlopCounterMode(display=False) as floor:
        multiply()
    assert floor.get_total_flops() == whole.get_total_flops() > 0


def test_products_are_hot():
    """Equal ones come in a row, on the same memory, as often as they are in the updates."""
    a, b, c, d = (torch.ones(shape) for shape in ((2, 3), (3, 4), (5, 3), (4, 3)))

    def products() -> None:
        for left, right in ((a, b), (c, b), (a.clone(), b), (a, d.T)):
            left @ right

    multiply = speed.multiplier(products)
    made = []
    with mock.patch.object(torch, "mm", lambda *factors, out: made.append((*factors, out))):
        multiply()
    assert [left.shape[0] for left, _, _ in made] == [2, 2, 5, 2]
    assert made[0][0] is made[1][0] and made[0][2] is made[1][2]
    assert [right.is_contiguous() for _, right, _ in made] == [True, True, True, False]


@pytest.mark.parametrize("algorithm", REPLAYING)
def test_updates_are_those_of_the_script(algorithm):
    """They learn, and their numbers count from 1: TD3's actor learns from the second one only."""
    ready = speed.prepare(TINY, algorithm, size=300)
    before = ready.agent.actor.net[0].weight.clone()
    speed.updater(ready, updates=1)()
    assert torch.equal(before, ready.agent.actor.net[0].weight) == algorithm.startswith("td3")
    speed.updater(ready, updates=2)()
    assert not torch.equal(before, ready.agent.actor.net[0].weight)


def test_the_floor_is_raced(monkeypatch):
    """20 updates take 20 times as long as one; the settings of the processor are of this time."""
    seen = set()

    def update() -> None:
        seen.add(torch.get_num_threads())
        time.sleep(0.02)

    monkeypatch.setattr(speed, "updater", lambda ready, updates: update)
    monkeypatch.setattr(speed, "multiplier", lambda update: lambda: time.sleep(0.01))
    threads = torch.get_num_threads()
    found = speed.floor(dataclasses.replace(TINY, rounds=1, threads=threads + 1), ["ddpg"])
    assert (torch.get_num_threads(), seen) == (threads, {threads + 1}) and len(found) == 20
    times = {name: [r["value"] for r in found if r["contestant"] == name] for name in SIDES}
    assert 1 <= min(times["update"]) < 2 and 0.5 <= min(times["products"]) < 1


@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
@pytest.mark.slow
def test_the_profile_has_the_functions_of_the_loop(algorithm, capsys):
    """Those that step, store, draw and learn; each with a time, and all of it together."""
    row = common.ALGORITHMS[algorithm]
    short = row._replace(race=(0, max(60, 2 * row.rollout)))
    args = dataclasses.replace(TINY, quick=False, learning_starts=0)
    begun = time.perf_counter()
    with mock.patch.dict(common.ALGORITHMS, {algorithm: short}):
        found = speed.profile(args, algorithm)
    values = {metric["metric"].split(" ")[0]: metric["value"] for metric in found}
    assert {"update", "step", "record", "after_step"} <= set(values)
    if algorithm != "ppo":
        assert {"sample", "add", "updates_due"} <= set(values)
    assert values["update"] > max(values["step"], values["record"])
    assert all(value > 0 for value in values.values())
    seconds = float(re.findall(r"seconds=(\S+)", capsys.readouterr().out)[-1])
    total = sum(metric["value"] for metric in found) * short.race[1] / 1e6
    assert 0.9 * seconds < total < time.perf_counter() - begun  # the last row is before a save


def test_the_breakdown_has_every_microsecond():
    """What is below a hundredth is added up."""
    found = [
        {"metric": m, "value": v} for m, v in (("a", 97.5), ("c", 0.8), ("d", 1.1), ("e", 0.6))
    ]
    assert cells(speed.breakdown(found))[2:] == [
        ["a", "98", "97.5%"],
        ["d", "1", "1.1%"],
        ["all others", "1", "1.4%"],
        ["all", "100", ""],
    ]


def test_no_result_is_overwritten(tmp_path, monkeypatch):
    """Rows of a second invocation come after those of the first, its chapter too."""
    monkeypatch.setattr(common, "contestants", lambda algorithm, libraries: ["ours"])
    out = tmp_path / "a.csv"
    for value in (100, 300):
        found = [row | {"metric": "steps per second"} for row in rows(ours=[value])]
        monkeypatch.setattr(speed, "race", lambda contestants, rounds, found=found: found)
        speed.main(speed.Args(parts=("throughput",), out=out))
    written = [(row["invocation"], float(row["value"])) for row in common.read_csv(out)]
    assert written == [("1", 100), ("2", 300)]
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert re.findall("^##? .*", text, re.MULTILINE) == [
        "# Speed",
        "## Invocation 1: sac",
        "## Invocation 2: sac",
    ]
    assert re.findall(r"\| Marginalia \| (\d+) ", text) == ["100", "300"]


def test_results_lie_by_subject():
    """What is not comparable does not come into one file."""
    names = {
        "one_thread": {},
        "two_threads": {"threads": 2},
        "4_threads": {"threads": 4},
        "startup": {"parts": ("startup", "solved")},
        "quick": {"quick": True},
    }
    for name, settings in names.items():
        assert speed.subject(speed.Args(**settings)) == common.RESULTS / "speed" / f"{name}.csv"


def test_earlier_rounds_count_too(tmp_path, monkeypatch):
    """Ratios stay within the rounds of one invocation; a profile is of its own invocation."""
    monkeypatch.setattr(common, "contestants", lambda algorithm, libraries: ["ours", "sb3"])
    out = tmp_path / "a.csv"
    for number, ours, sb3 in ((1, [100, 300], [50, 100]), (2, [900], [100])):
        found = [row | {"metric": "steps per second"} for row in rows(ours=ours, sb3=sb3)]
        found += [found[0] | {"metric": "code", "contestant": name} for name in ("line", "part")]
        common.write_csv(out, [{"invocation": number} | row for row in found], append=True)
    before = out.read_bytes()
    speed.main(speed.Args(parts=("throughput",), rounds=0, pool=True, out=out))
    assert out.read_bytes() == before  # no row is written twice
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    table = cells("\n".join(line for line in text.splitlines() if line.startswith("| ")))
    assert table[2:] == [
        ["Marginalia", "300", "100 to 900", "3", ""],
        ["Stable-Baselines3", "100", "50 to 100", "3", "3 (2 to 9)"],
    ]
    assert "## All invocations: sac" in text and "code" not in text


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


def test_everybodys_defaults(tmp_path, monkeypatch):
    """Each contestant and seed runs once; the table has means and Student's intervals."""
    pytest.importorskip("scipy", reason="scipy comes with JAX, for benchmarks only")
    asked = []

    def run(command: list[str]) -> common.Ran:
        asked.append(command)
        value = 100 * len(asked) ** 2
        lines = [(1.0, f"step {step}: mean return {value}.0 in evaluation") for step in (50, 200)]
        return common.Ran(lines, 1.0, None, [])

    monkeypatch.setattr(common, "run", run)
    flags = {"algorithm": "td3", "steps": 200, "only": ("ours", "sbx"), "out": tmp_path / "a.csv"}
    learning.defaults(seeds=1, **flags)
    learning.defaults(seeds=2, **flags)
    learning.defaults(seeds=0, **flags)
    assert len(asked) == 4
    ours, sbx = asked[0], asked[1]
    assert ours[1].endswith("td3_continuous.py") and ours[-1] == "10000"
    assert (
        ours[ours.index("--seed") + 1] == "1" and ours[ours.index("--eval-frequency") + 1] == "50"
    )
    assert sbx[2:4] == ["sbx", "TD3"]
    assert json.loads(sbx[4])["model"] == {"action_noise": 0.1, "learning_starts": 10_000}
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "| ours | 2 | 500 | 5082 | 100, 900 |" in text  # 12.706 * 800 / 2
    assert "| sbx | 2 | 1000 | 7624 | 400, 1600 |" in text
    assert len(common.read_csv(tmp_path / "a.csv")) == 8


def evaluations(path, **returns):
    """A CSV file of `learning.py defaults`: each contestant's returns, of seeds 1, 2, ..."""
    common.write_csv(
        path,
        [
            {"contestant": name, "seed": seed, "step": step, "eval_return_mean": value - 200 + step}
            for name, values in returns.items()
            for seed, value in enumerate(values, 1)
            for step in (100, 200)
        ],
    )


def test_summary_of_the_defaults(tmp_path):
    """The last step of each, in the order of the algorithms; intervals from three seeds on."""
    evaluations(tmp_path / "td3_Hopper-v5.csv", ours=[500, 900, 1000], sbx=[400])
    evaluations(tmp_path / "sac_v1_Hopper-v5.csv", ours=[700, 800])
    normalised = {"ours, both": [1], "sb3, VecNormalize": [2], "sb3": [3], "ours, neither": [4]}
    evaluations(tmp_path / "ppo_Hopper-v5.csv", **normalised)
    both = "PPO, observations and rewards normalised"
    assert cells(results_pages.summary(tmp_path))[2:] == [
        ["SAC with a value network", "Hopper-v5", "200", "750 (2)", "", ""],
        ["TD3", "Hopper-v5", "200", "800 ± 657 (3)", "", "400 (1)"],  # 4.303 * 264.6 / sqrt(3)
        [both, "Hopper-v5", "200", "1 (1)", "2 (1)", ""],
        ["PPO, neither normalised", "Hopper-v5", "200", "4 (1)", "3 (1)", ""],
    ]
    results_pages.draw(tmp_path, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 10_000


def test_a_page_keeps_what_is_not_between_its_marks(tmp_path, monkeypatch):
    page, marks = tmp_path / "page.md", "".join(results_pages.MARKS)
    page.write_text(f"before\n{marks}after\n", encoding="utf-8")
    evaluations(tmp_path / "td3_Hopper-v5.csv", ours=[500])
    monkeypatch.setattr(results_pages, "PAGES", (page,))
    monkeypatch.setattr(results_pages, "DEFAULTS", tmp_path)
    monkeypatch.setattr(results_pages, "draw_aggregate", lambda: None)
    with pytest.raises(SystemExit, match="^not what the CSV files say: .*page.md$"):
        results_pages.main(check=True)
    assert page.read_text(encoding="utf-8") == f"before\n{marks}after\n"
    results_pages.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    assert "| TD3 | Hopper-v5 | 200 | 500 (1) |" in text
    results_pages.main(check=True)
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        results_pages.main()


def test_tables_are_those_of_the_csv_files():
    results_pages.main(check=True)


def test_the_contestants_for_ppo_differ_in_what_they_normalise():
    found = {who.name: who for who in learning.contestants("ppo")}
    assert len(found) == 6
    command = learning.default_command(found["ours, rewards"], "ppo", "Hopper-v5", 4096, 3, 2048)
    assert "--no-norm-obs" in command and "--no-norm-reward" not in command
    theirs = learning.default_command(found["sb3, VecNormalize"], "ppo", "Hopper-v5", 4096, 3, 2048)
    settings = json.loads(theirs[-1])
    assert settings["model"] == {"normalise": True, "gamma": 0.99} and settings["seed"] == 3


@pytest.mark.parametrize("quick", [True, False])
def test_quick_replaces_no_result(tmp_path, monkeypatch, quick):
    """learning.py pendulum and replay.py replace their file: --quick has one of its own."""
    replay = importlib.import_module("replay")
    line = "final eval_return_mean=-1.0 eval_return_std=2.5 global_step=3"
    monkeypatch.setattr(common, "run", lambda command: common.Ran([(1.0, line)], 7.0, None, []))
    monkeypatch.setattr(replay, "measure", lambda args: [])
    monkeypatch.setattr(replay, "page", lambda rows, place: "")
    monkeypatch.setattr(replay, "picture", lambda rows, path: path.touch())
    monkeypatch.setattr(common, "write_csv", lambda path, rows: path.parent.mkdir() or path.touch())
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    learning.pendulum(seeds=1, quick=quick)
    replay.main(replay.Args(quick=quick))
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.csv"))
    expected = ["pendulum/quick.csv", "replay/quick.csv"]
    if not quick:
        expected = ["pendulum/sac.csv", "replay/replay.csv"]
    assert names == [str(Path(name)) for name in expected]


@pytest.fixture(scope="module")
def replay():
    """The benchmark, which takes Stable-Baselines3 along."""
    pytest.importorskip(common.MODULES["sb3"])
    return importlib.import_module("replay")


@pytest.mark.slow
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
    """Of priorities of many sizes, so that draws take different ways through the tree."""
    ready = speed.prepare(TINY, "td3_per", size=300)
    buffer = ready.replay
    leaves = buffer.sum[buffer.leaf :]
    assert len(buffer) == 300 and np.count_nonzero(leaves) == len(set(leaves)) - 1 == 300
    assert buffer.columns[1].min() >= -1 and buffer.columns[4].max() == 0
    peer = replay.full_peer(300, ready.env)
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


@pytest.mark.slow
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
