"""The tables in tests/slips: read, checked, and put into a script's text.

An entry is a line that somebody could have written wrong:

    [[slip]]
    name = "one-critic-in-the-target"   # one name, one slip
    files = ["sac_continuous.py"]       # each gets a slip of its own
    where = "soft_value"                # the function, method or class that holds the line
    right = "torch.minimum(q1, q2)"     # this text stands in it exactly once
    wrong = "q1"
    why = "The larger of two estimates is where the error is: the target grows without end."
    tests = ["tests/test_formulas.py::test_soft_value"]   # of these one fails at least

    [slip.page]                         # only where docs/slips.md shows it
    title = "Only one critic in the target"
    subject = "Targets"                 # the part of the page that it is in
    seen = "Code for one critic to which a second was added, for the actor only."
    measures = ["plane"]                # functions of docs/slips/measure.py

In `tests`, {script} becomes the file's name without .py. The first file is the one that the page
shows and that is measured; `file` in [slip.page] names another.
"""

import ast
import dataclasses
import functools
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tests" / "slips"
KEYS = {"name", "files", "where", "right", "wrong", "why", "tests"}
PAGE_KEYS = {"title", "subject", "seen", "measures"}


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page of slips says of an entry."""

    title: str
    subject: str
    seen: str
    measures: tuple[str, ...]
    file: str  # in which of the files it is shown and measured
    files: tuple[str, ...]  # in which it could happen
    curve: str = ""  # what the learning curves show


@dataclasses.dataclass(frozen=True)
class Slip:
    """One wrong line in one file."""

    name: str
    file: str
    where: str
    right: str
    wrong: str
    why: str
    tests: tuple[str, ...]
    page: Page | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.file}"


class SlipError(ValueError):
    """An entry of a table that cannot be used."""


def compare_keys(where: str, keys: set[str], expected: set[str], optional: set[str]) -> None:
    different = sorted((expected - keys) | (keys - expected - optional))
    if different:
        raise SlipError(f"{where}: {different}")


def page_of(entry: dict[str, Any], where: str) -> Page | None:
    """The part of an entry that only the page needs. Raises SlipError."""
    if "page" not in entry:
        return None
    page = dict(entry["page"])
    compare_keys(f"{where}: page", set(page), PAGE_KEYS, {"file", "curve"})
    page.setdefault("file", entry["files"][0])
    if page["file"] not in entry["files"]:
        raise SlipError(f"{where}: page: {page['file']} is not among the files")
    page["measures"] = tuple(page["measures"])
    if ("curve" in page["measures"]) != ("curve" in page):
        raise SlipError(f"{where}: page: curves come with words on what they show")
    return Page(files=tuple(entry["files"]), **page)


def read_tables(folder: Path = TABLES) -> list[Slip]:
    """All slips, one for each file that an entry names. Raises SlipError."""
    slips = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["slip"]:
            where = f"{path.name}: {entry.get('name')}"
            compare_keys(where, set(entry), KEYS, {"page"})
            page = page_of(entry, where)
            for file in entry["files"]:
                script = Path(file).stem
                tests = tuple(test.replace("{script}", script) for test in entry["tests"])
                texts = {key: entry[key] for key in ("name", "where", "right", "wrong", "why")}
                slips.append(Slip(file=file, tests=tests, page=page, **texts))
    names = [(slip.name, slip.file) for slip in slips]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SlipError(f"more than once: {sorted(twice)}")
    return slips


def on_the_page(slips: list[Slip]) -> list[Slip]:
    """Those that the page shows, each in the file in which it is shown."""
    return [slip for slip in slips if slip.page and slip.page.file == slip.file]


@functools.cache
def parsed(source: str) -> ast.Module:
    """Of a whole script, which many slips have in common."""
    return ast.parse(source)


def lines_of(where: str, source: str) -> tuple[int, int]:
    """First and last line, from 0 and exclusive, of a definition: "update", "Run.load", "Args".

    An empty name is the whole file. Raises SlipError.
    """
    body = parsed(source).body
    if not where:
        return 0, len(source.splitlines())
    for name in where.split("."):
        kinds = ast.FunctionDef | ast.ClassDef
        found = [node for node in body if isinstance(node, kinds) and node.name == name]
        if len(found) != 1:
            raise SlipError(f"there is no {where}")
        body = found[0].body
    return found[0].lineno - 1, found[0].end_lineno


def with_slip(slip: Slip, source: str) -> str:
    """The source with the wrong line in it. Raises SlipError if the right one is not there once."""
    lines = source.splitlines(keepends=True)
    first, last = lines_of(slip.where, source)
    text = "".join(lines[first:last])
    if text.count(slip.right) != 1:
        raise SlipError(f"{slip}: the right text is there {text.count(slip.right)} times")
    changed = "".join(lines[:first]) + text.replace(slip.right, slip.wrong) + "".join(lines[last:])
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise SlipError(f"{slip}: {error}") from error
    return changed
