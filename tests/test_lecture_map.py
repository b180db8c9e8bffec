"""docs/lecture_map.toml: each row leads from a formula of the lectures to one line of a script."""

import ast
import copy
import functools
import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = tomllib.loads((ROOT / "docs" / "lecture_map.toml").read_text(encoding="utf-8"))
WITHOUT = MAP.pop("without_lecture")
TEXTS = {
    "cs224r": "cs224r_off_policy_actor_critic.txt",
    "csce642": "csce642_soft_actor_critic.txt",
    "td3_sac": "td3_and_sac_slides.txt",
    "robotics": "robotics_off_policy_guide.txt",
    "rl_notes": "rl_intro_notes.txt",
}
ROWS = [row for rows in MAP.values() for row in rows]
FIELDS = {"slide", "there", "where", "line", "says"}
DEFINITION = ast.FunctionDef | ast.ClassDef


def lectures() -> Path | None:
    """The texts of the lectures, which are not a part of the project: near it, or in LECTURES."""
    places = [folder / "shared" / "lectures" for folder in ROOT.parents]
    places += [Path(os.environ["LECTURES"])] if "LECTURES" in os.environ else []
    return next((place for place in places if place.is_dir()), None)


@functools.cache
def lines_of(file: str) -> list[str]:
    return (ROOT / file).read_text(encoding="utf-8").splitlines()


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse("\n".join(lines_of(file)))


def find(where: str) -> ast.AST:
    """The object that file.py:Object.method names; of file.py: the docstring."""
    file, _, name = where.partition(":")
    node = tree_of(file)
    if not name:
        return node.body[0]
    for part in name.split("."):
        named = [n for n in node.body if isinstance(n, DEFINITION) and n.name == part]
        assert len(named) == 1, f"{where}: {len(named)} definitions of {part}"
        node = named[0]
    return node


def room_5(file: str) -> list[str]:
    """The names of its definitions, in order; none where there is no such room."""
    banners = [n for n, line in enumerate(lines_of(file), 1) if re.match("# === [56]", line)]
    first, last = banners or (0, 0)
    body = [node for node in tree_of(file).body if isinstance(node, DEFINITION)]
    return [node.name for node in body if first < node.lineno < last]


def code_of(where: str) -> str:
    """The code of a definition, without docstrings and comments."""
    node = copy.deepcopy(find(where))
    for part in ast.walk(node):
        if isinstance(part, DEFINITION) and ast.get_docstring(part) is not None:
            part.body = part.body[1:]
    return ast.dump(node)


def plain(text: str) -> str:
    """Without the marks of Markdown, and with single spaces."""
    return " ".join(re.sub(r"[*#`\\]", "", text).split())


def faults_in(formula: str) -> list[str]:
    """What can be seen without KaTeX: the build of the site sees the rest."""
    faults, depth = [], 0
    for brace in re.findall(r"(?<!\\)[{}]", formula):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            faults.append("a brace closes too early")
    if depth != 0:
        faults.append("braces do not match")
    if len(re.findall(r"\\left\b", formula)) != len(re.findall(r"\\right\b", formula)):
        faults.append("a \\left without \\right")
    if re.search(r"[|$]", formula):
        faults.append("write \\mid or \\Vert, and no dollars")
    return faults


def test_size():
    assert list(MAP) == list(TEXTS)
    assert all(len(rows) >= 20 for rows in MAP.values())
    assert len(ROWS) >= 110
    for row in ROWS:
        assert set(row) == FIELDS and all(row[name] for name in FIELDS - {"says"}), row


@pytest.mark.parametrize("deck", TEXTS)
def test_each_row_leads_to_one_line(deck):
    for row in MAP[deck]:
        where, text = row["where"], row["line"]
        node = find(where)
        lines = lines_of(where.partition(":")[0])[node.lineno - 1 : node.end_lineno]
        hits = sum(text in line for line in lines)
        assert hits == 1, f"{hits} lines of {where} have {text!r}"


@pytest.mark.parametrize("deck", TEXTS)
def test_formulas(deck):
    for row in MAP[deck]:
        assert not faults_in(row["there"]), row["there"]


def test_faults_are_found():
    assert not faults_in(r"\left(\frac{a}{b}\right) \leftarrow \{c\}")
    for wrong in r"\frac{a}{b", "a}{", r"\left(a", "|", "$a$":
        assert faults_in(wrong), wrong


@pytest.mark.skipif(lectures() is None, reason="the texts of the lectures are not here")
@pytest.mark.parametrize("deck", TEXTS)
def test_slides_are_in_the_lecture(deck):
    text = plain((lectures() / TEXTS[deck]).read_text(encoding="utf-8"))
    for row in MAP[deck]:
        assert plain(row["slide"]) in text, row["slide"]


def test_no_two_rows_are_the_same():
    """One formula of a slide has one line."""
    for deck, rows in MAP.items():
        times = Counter((row["slide"], row["there"]) for row in rows)
        twice = [formula for formula, number in times.items() if number > 1]
        assert not twice, (deck, twice)


def test_every_function_of_room_5_is_covered():
    """It is in a row, or in the list of those without a lecture, and not in both."""
    mapped = set()
    for row in ROWS:
        file, _, name = row["where"].partition(":")
        mapped.add(f"{file}:{name.partition('.')[0]}")
    listed = [where for entry in WITHOUT for where in entry["where"]]
    there = [f"{path.name}:{name}" for path in ROOT.glob("*.py") for name in room_5(path.name)]
    assert len(there) > 60
    assert len(set(listed)) == len(listed) and set(listed) <= set(there)
    assert not mapped & set(listed), mapped & set(listed)
    missing = set(there) - mapped - set(listed)
    assert not missing, missing


def test_reasons():
    """`like` names a file whose function is in a row and has the same code."""
    mapped = {row["where"] for row in ROWS}
    for entry in WITHOUT:
        assert entry["reason"]
        for where in entry["where"]:
            if "like" in entry:
                other = f"{entry['like']}:{where.partition(':')[2]}"
                assert other in mapped, other
                assert code_of(where) == code_of(other), where
