"""tools/exercise.py: what a student is given, and what is said of what comes back."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from exercise_probes import EXERCISES, difference, slips_of, verdict
from slip_tables import ROOT, on_the_page, read_tables, with_slip


def load(path: Path):
    """The tool under a name of its own."""
    spec = importlib.util.spec_from_file_location("exercise_tool", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load(ROOT / "tools" / "exercise.py")


def source_of(name: str) -> str:
    return (ROOT / EXERCISES[name].file).read_text(encoding="utf-8")


def run(folder: Path, *words: str, **settings) -> int:
    args = tool.Args(*words, folder=folder, **settings)
    return tool.main(args)


def with_body(name: str, body: str) -> str:
    """The script, with another body of the exercise's function."""
    blank = tool.without_body(source_of(name), EXERCISES[name])
    (line,) = re.findall(r"^ +raise NotImplementedError\(.* is yours to write\"\)$", blank, re.M)
    return blank.replace(line, line[: len(line) - len(line.lstrip())] + body)


# --- what is given ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_only_the_body_is_taken_out(name):
    source, blank = source_of(name), tool.without_body(source_of(name), EXERCISES[name])
    kept = blank.splitlines()
    (place,) = [number for number, line in enumerate(kept) if "is yours to write" in line]
    rest = len(kept) - place - 1
    assert source.splitlines()[:place] == kept[:place]
    assert rest == 0 or source.splitlines()[-rest:] == kept[place + 1 :]
    assert '"""' in kept[place - 1]  # the docstring stays
    taken = source.splitlines()[place : len(source.splitlines()) - rest]
    assert any("return" in line or "lerp" in line for line in taken)


def test_a_copy_is_made_once_and_never_written_over(tmp_path, capsys):
    assert run(tmp_path, "start", "bellman-target") == 0
    path = tmp_path / "bellman-target" / "sac_continuous.py"
    assert path.read_text() == tool.without_body(
        source_of("bellman-target"), EXERCISES["bellman-target"]
    )
    path.write_text("mine")
    capsys.readouterr()
    assert run(tmp_path, "start", "bellman-target") == 2
    assert "delete it to begin anew" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_slip_has_a_code_that_does_not_tell(tmp_path, capsys):
    slips = read_tables()
    codes = [tool.code_of(slip) for slip in slips]
    assert len(set(codes)) == len(codes)
    slip = next(slip for slip in slips if slip.name == "nothing-ends")
    assert run(tmp_path, "start", f"{slip.name}:{slip.file}") == 0
    (path,) = tmp_path.glob("*/*.py")
    assert path.parent.name == tool.code_of(slip)
    assert path.read_text() == with_slip(slip, (ROOT / slip.file).read_text(encoding="utf-8"))
    assert slip.name not in capsys.readouterr().out


def test_lists(tmp_path, capsys):
    assert run(tmp_path, "list") == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in EXERCISES)
    assert run(tmp_path, "list", slips=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(on_the_page(read_tables()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("start", "nothing"), "there is no exercise 'nothing'"),
        (("start",), "needs the name of an exercise"),
        (("check", "soft-value"), "exercise.py start soft-value"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, capsys, words, message):
    assert run(tmp_path, *words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_file_that_is_no_python(tmp_path, capsys):
    run(tmp_path, "start", "soft-value")
    (tmp_path / "soft-value" / "sac_continuous.py").write_text("def f(:\n")
    assert run(tmp_path, "check", "soft-value") == 2
    assert "sac_continuous.py, line 1: " in capsys.readouterr().err


def test_the_page_has_each_exercise_and_the_code_is_one():
    page = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| \{fn\}`(\w+)\.([\w.]+)`", page, re.MULTILINE)
    assert rows == [(n, Path(e.file).stem, e.where) for n, e in EXERCISES.items()]
    codes = {tool.code_of(slip) for slip in on_the_page(read_tables())}
    found = re.findall(r"exercise.py (?:start|check) ([0-9a-f]{6})", page)
    assert found and set(found) <= codes


# --- what is said -------------------------------------------------------------------------------


def assert_slips_are_known(name):
    """The right one is accepted; each slip is not, and it is named."""
    exercise, source = EXERCISES[name], source_of(name)
    assert verdict(exercise, source) == {"right": True, "slips": [], "says": ""}
    slips = slips_of(exercise)
    whys = {}
    for slip in slips:
        found = verdict(exercise, with_slip(slip, source))
        assert not found["right"] and slip.name in found["slips"] and found["says"], slip.name
        for other in found["slips"]:
            whys.setdefault(other, set()).add(slip.name)
    assert len(slips) >= 2 and whys.keys() == {slip.name for slip in slips}


def test_slips_of_an_easy_one_are_known():
    assert_slips_are_known("slow-copy")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_slips_are_known(name):
    assert_slips_are_known(name)


BODIES = {  # of a student: exercise, body, what is said
    "another way": ("soft-value", "return q1.minimum(q2) + alpha * -log_prob", ""),
    "not written": ("soft-value", 'raise NotImplementedError("is yours")', "is yours"),
    "a column": ("soft-value", "return (q1 - log_prob)[:, None]", "the shape is (7, 1), exp"),
    "one number": ("soft-value", "return (q1 - log_prob).mean()", "the shape is (), expected (7,)"),
    "no tensor": ("soft-value", "return 3", "AttributeError"),
    "a name": ("soft-value", "return q3", "NameError: name 'q3' is not defined"),
    "numbers": ("soft-value", "return q1 * q2", "expected"),
    "no slope": (
        "actor-loss",
        "return (alpha * log_prob - torch.minimum(q1, q2).detach()).mean()",
        "slope in q1, draw 1: 0, expected -0.142857",
    ),
}


@pytest.mark.parametrize("case", ["another way", "a column"])
def test_what_is_said_of_a_body(case):
    name, body, says = BODIES[case]
    found = verdict(EXERCISES[name], with_body(name, body))
    assert found["right"] == (not says) and says in found["says"] and not found["slips"]


@pytest.mark.slow
@pytest.mark.parametrize("case", BODIES)
def test_what_is_said_of_every_body(case):
    test_what_is_said_of_a_body(case)


def test_what_is_not_a_number_is_said(monkeypatch):
    torch = importlib.import_module("torch")
    right, nan = {"value": torch.ones(2)}, {"value": torch.tensor([1.0, float("nan")])}
    assert difference(nan, right, 1e-5) == "value: not a number"
    assert difference(right, right, 1e-5) == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["slow-copy", "hindsight"])
def test_a_check_from_beginning_to_end(name, tmp_path, capsys):
    exercise = EXERCISES[name]
    path = tmp_path / name / exercise.file
    run(tmp_path, "start", name)
    assert run(tmp_path, "check", name) == 1
    assert "is yours to write" in capsys.readouterr().out
    path.write_text(source_of(name), encoding="utf-8")
    assert run(tmp_path, "check", name) == 0
    assert "FAILED" not in capsys.readouterr().out
    slip = slips_of(exercise)[0]
    path.write_text(with_slip(slip, source_of(name)), encoding="utf-8")
    report = tmp_path / "results.json"
    assert run(tmp_path, "check", name, json=report) == 1
    printed = capsys.readouterr().out
    assert f"hint: {slip.why}" in printed and "FAILED  test_" in printed
    points = json.loads(report.read_text())["tests"]
    assert len(points) >= 2 and {point["max_score"] for point in points} == {1}
    assert sum(point["score"] for point in points) < len(points)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_line_is_found(tmp_path, capsys):
    slip = next(slip for slip in read_tables() if slip.name == "weights-divided-by-their-sum")
    code = tool.code_of(slip)
    run(tmp_path, "start", code)
    assert run(tmp_path, "check", code) == 1
    printed = capsys.readouterr().out
    assert f"look at {slip.where}; --hint says more" in printed and slip.why not in printed
    assert run(tmp_path, "check", code, hint=True) == 1
    assert slip.why in capsys.readouterr().out
    path = tmp_path / code / slip.file
    path.write_text(path.read_text().replace("weight.sum()", "weight.mean()"))
    assert run(tmp_path, "check", code) == 1
    path.write_text(path.read_text().replace("weight.mean()", "weight.amax()"))
    assert run(tmp_path, "check", code) == 0


@pytest.mark.slow
def test_a_function_that_never_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "SECONDS", 20)
    run(tmp_path, "start", "slow-copy")
    path = tmp_path / "slow-copy" / "sac_continuous.py"
    path.write_text(with_body("slow-copy", "while True: pass"))
    assert run(tmp_path, "check", "slow-copy") == 1
    assert "does not come to an end" in capsys.readouterr().out
