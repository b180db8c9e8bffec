"""The tables of slips: what an entry may have, that each applies, and that its numbers are true."""

import ast
import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import slip_tables
from slip_tables import ROOT, SlipError, lines_of, on_the_page, read_tables, with_slip

DOCS = ROOT / "docs" / "slips"
SLIPS = read_tables()
SHOWN = on_the_page(SLIPS)
# Slips that do nothing in the world in which they were measured; their pages show that.
HARMLESS = {"temperature-from-the-next-states", "target-by-the-critic-itself"}

ENTRY = """
[[slip]]
name = "a"
files = ["sac_continuous.py", "td3_continuous.py"]
where = "bellman_target"
right = "reward +"
wrong = "reward -"
why = "A sign."
tests = ["tests/test_{script}.py"]
"""
CURVE = 'curve = "It sinks."\n'
PAGE = """
[slip.page]
title = "A sign"
subject = "Signs"
seen = "Here."
measures = ["plane", "curve"]
"""
PAGE += CURVE


def read(tmp_path: Path, text: str) -> list:
    (tmp_path / "table.toml").write_text(text, encoding="utf-8")
    return read_tables(tmp_path)


def test_an_entry_is_a_slip_in_each_of_its_files(tmp_path):
    slips = read(tmp_path, ENTRY)
    assert [slip.file for slip in slips] == ["sac_continuous.py", "td3_continuous.py"]
    assert slips[1].tests == ("tests/test_td3_continuous.py",)
    assert slips[0].page is None and on_the_page(slips) == []


def test_the_page_shows_a_slip_in_one_file(tmp_path):
    (shown,) = on_the_page(read(tmp_path, ENTRY + PAGE))
    assert (shown.file, shown.page.title) == ("sac_continuous.py", "A sign")
    assert shown.page.measures == ("plane", "curve") and shown.page.curve == "It sinks."
    (shown,) = on_the_page(read(tmp_path, ENTRY + PAGE + 'file = "td3_continuous.py"\n'))
    assert shown.file == "td3_continuous.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY.replace("why", "because"), r"table.toml: a: \['because', 'why'\]"),
        (ENTRY + PAGE.replace("seen", "saw"), r"a: page: \['saw', 'seen'\]"),
        (ENTRY + PAGE + 'file = "ppo_continuous.py"\n', "ppo_continuous.py is not among the files"),
        (ENTRY + PAGE.replace(CURVE, ""), "a: page: curves come with words"),
        (ENTRY + PAGE.replace(', "curve"', ""), "a: page: curves come with words"),
        (ENTRY + ENTRY, "more than once"),
    ],
)
def test_an_entry_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(SlipError, match=message):
        read(tmp_path, text)


def test_a_slip_is_put_in(tmp_path):
    slip = read(tmp_path, ENTRY)[0]
    source = (
        'def other():\n    return "reward +"\n\n\ndef bellman_target():\n    return reward + 1\n'
    )
    assert with_slip(slip, source) == source.replace("reward + 1", "reward - 1")
    for text, message in (("reward", "0 times"), ("reward + reward + 1", "2 times")):
        with pytest.raises(SlipError, match=message):
            with_slip(slip, source.replace("reward + 1", text))


def test_every_slip_of_the_page_applies():
    assert 25 <= len(SHOWN) <= 45
    for slip in SHOWN:
        source = (ROOT / slip.file).read_text(encoding="utf-8")
        first, last = lines_of(slip.where, source)
        assert "\n".join(source.split("\n")[first:last] + [""]).count(slip.right) == 1, slip.name
    titles = [slip.page.title for slip in SHOWN]
    assert len(set(titles)) == len(titles)


def rows() -> list[dict[str, str]]:
    with open(DOCS / "numbers.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_measurement_exists_and_was_made():
    tree = ast.parse((DOCS / "measure.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted = {(s.name, m) for s in SHOWN for m in s.page.measures if m != "curve"}
    assert {measure for _, measure in wanted} <= functions
    assert {(row["slip"], row["measure"]) for row in rows()} == wanted


def test_the_numbers_show_the_slip():
    """Some number differs, and the right one is nowhere farther from the exact one."""
    seen = set()
    for row in rows():
        right, wrong = float(row["right"]), float(row["wrong"])
        scale = max(abs(right), abs(wrong))
        if not abs(right - wrong) <= 0.05 * scale:  # or it is not a number
            seen.add(row["slip"])
        if row["exact"]:
            exact = float(row["exact"])
            assert not abs(right - exact) > abs(wrong - exact) + 0.05 * scale, row
    assert {slip.name for slip in SHOWN} - seen == HARMLESS


# --- measured again -----------------------------------------------------------------------------

QUICK = "slow_copy smoothing fit_with_priorities hindsight_ends divergence".split()


@pytest.fixture(scope="module")
def measure():
    """docs/slips/measure.py, which finds its neighbours beside itself."""
    before = list(sys.path)
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("measure")
    sys.path[:] = before


def assert_measured_again(measure, slip, name):
    kept = [row for row in rows() if (row["slip"], row["measure"]) == (slip.name, name)]
    for old, new in zip(kept, measure.compare(slip, name), strict=True):
        assert old["what"] == new["what"]
        for key in ("exact", "right", "wrong"):
            if old[key] or new[key]:
                expected = pytest.approx(float(old[key]), rel=0.1, abs=0.05, nan_ok=True)
                assert float(new[key]) == expected, (old, key)


def pairs(quick: bool) -> list:
    found = [(s, m) for s in SHOWN for m in s.page.measures if m != "curve"]
    chosen = [(slip, name) for slip, name in found if (name in QUICK) == quick]
    return [pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}") for pair in chosen]


@pytest.mark.parametrize(("slip", "name"), pairs(quick=True))
def test_what_is_quickly_measured_again(measure, slip, name):
    assert_measured_again(measure, slip, name)


@pytest.mark.slow
@pytest.mark.parametrize(("slip", "name"), pairs(quick=False))
def test_what_is_slowly_measured_again(measure, slip, name):
    """Runs that diverge do so in their own way on every processor: only that they do counts."""
    if slip.name in ("exact-with-a-temperature-that-runs-away", "target-entropy-above-0"):
        numbers = measure.compare(slip, name)
        assert float(numbers[0]["wrong"]) > 100 * float(numbers[0]["right"])
        return
    assert_measured_again(measure, slip, name)


def test_a_mark_tells_what_was_run(measure, tmp_path, monkeypatch):
    """It changes with the slip and with the algorithm, not with comments or bookkeeping."""
    slipped = importlib.import_module("slipped")
    slip = next(slip for slip in SHOWN if slip.name == "nothing-ends")
    mark = slipped.mark_of(slip, "ending")
    assert mark in {row["mark"] for row in rows() if row["slip"] == slip.name}
    other = next(s for s in SHOWN if s.name == "one-critic-in-the-soft-value")
    assert slipped.mark_of(other, "ending") != mark
    text = (ROOT / slip.file).read_text(encoding="utf-8")
    for old, new, same in [
        ("# 3  Critics.", "# 3  The critics.", True),
        ("import contextlib", "import contextlib\nimport contextlib", True),
        ("q_loss = critic_loss(q1, y) +", "q_loss = critic_loss(q1, y) -", False),
    ]:
        assert old in text
        changed = text.replace(old, new)
        monkeypatch.setattr(slipped, "text_of", lambda file, changed=changed: changed)
        assert (slipped.mark_of(slip, "ending") == mark) == same, old


def test_the_tables_are_read_from_their_own_folder():
    assert slip_tables.TABLES == ROOT / "tests" / "slips"


# --- learning curves ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_made_once_and_drawn(measure, tmp_path, monkeypatch, capsys):
    """A run of a tenth of a second, right and wrong; what the table has is not run again."""
    curves = importlib.import_module("curves")
    tiny = {"total_timesteps": 60, "learning_starts": 20, "hidden_dim": 8, "batch_size": 8}
    tiny |= {"env_id": "worlds:Endless-v0", "eval_episodes": 1, "log_frequency": 10}
    course = curves.Course(tiny, 3, curves.WITH_BIAS)
    monkeypatch.setattr(curves, "COURSES", {"td3_continuous": course})
    monkeypatch.setattr(curves, "SEEDS", [1])
    monkeypatch.setattr(curves, "HERE", tmp_path)
    monkeypatch.setattr(curves, "TABLE", tmp_path / "curves.csv")
    (slip,) = [slip for slip in curves.with_curves() if slip.name == "one-slow-twin-twice"]
    monkeypatch.setattr(curves, "with_curves", lambda: [slip])
    assert [run[1:] for run in curves.runs_to_do([])] == [(None, 1), (slip, 1)]
    curves.measure()
    found = curves.read_rows()
    assert len(found) == 2 * 2 * 3 and curves.runs_to_do(found) == []
    assert {row["column"] for row in found} == set(curves.WITH_BIAS)
    bias = [row for row in found if row["column"] == "q_bias"]
    assert [row["step"] for row in bias] == ["20", "40", "60"] * 2
    right, wrong = ([r["value"] for r in bias if r["slip"] == name] for name in ("", slip.name))
    assert right != wrong
    curves.draw(slip, found)
    assert 1000 < (tmp_path / f"{slip.name}.png").stat().st_size < 60_000
    for row in found:
        row["mark"] = "older" if row["slip"] == "" else row["mark"]
    assert [run[1:] for run in curves.runs_to_do(found)] == [(None, 1)]


# --- the runner ---------------------------------------------------------------------------------
ALTERNATE = """
import check_slips
from pathlib import Path
place = Path.cwd()
check_slips.load_libraries()
for number in (1, 2, 1, 2, 1):
    (place / "number.py").write_text(f"N = {number}")
    print(check_slips.exit_code(place, ("test_it.py",)))
"""


TEST = "import number\n\n\ndef test():\n    assert number.N == 1\n"


@pytest.mark.slow
def test_what_is_run_is_what_is_written(tmp_path):
    """Also where a text is as long as the one before, and both are of the same second."""
    (tmp_path / "test_it.py").write_text(TEST)
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONDONTWRITEBYTECODE": ""}
    options: dict[str, Any] = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", ALTERNATE], timeout=120, **options)
    assert done.stdout.split() == ["0", "1", "0", "1", "0"], done.stdout + done.stderr
