"""The README and the pages in docs/ speak of what there is: flags, defaults, columns, files."""

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import helpers
import pytest
import tyro
from pages import COMMANDS, DOCS, PAGES, README, ROOT, TEXTS, blocks, commands

SCRIPTS = [*helpers.SCRIPTS, "sac_her_continuous"]
SETTINGS = {script: importlib.import_module(script).Args for script in SCRIPTS}
# Flags of pip, uv, tyro, Ray, Slurm and tests/check_slips.py.
FOREIGN_FLAGS = {"--file", "--head", "--help", "--index-url", "--mem", "--torch-backend"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
DOCS_AT = (ROOT / "docs").parts


def flags_of(settings: type) -> dict[str, object]:
    """The flags of an Args dataclass, with their defaults."""
    fields = dataclasses.fields(settings)
    return {"--" + field.name.replace("_", "-"): field.default for field in fields}


def load_tool(path: Path) -> ModuleType:
    """A tool as a module. Its file may have a library's name, so it is not simply imported."""
    spec = importlib.util.spec_from_file_location(f"tools_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


TOOLS = {f"tools/{path.stem}": load_tool(path).Args for path in ROOT.glob("tools/*.py")}
FLAGS = {name: flags_of(settings) for name, settings in (SETTINGS | TOOLS).items()}


# --- defaults -----------------------------------------------------------------------------------


def number_or_word(cell: str) -> object:
    """What a cell of the table of defaults stands for: 3e-4, on, clip."""
    if cell in ("on", "off"):
        return cell == "on"
    try:
        return float(cell)
    except ValueError:
        return cell


@pytest.mark.parametrize("script", SCRIPTS)
def test_table_of_defaults(script):
    """The table under the script's own heading."""
    text = TEXTS[ROOT / "docs" / "defaults.md"]
    pattern = rf"^#### .*`{script}.py`\n(.*?)(?=^##|\Z)"
    (section,) = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert len(rows) > 5
    for flag, cell in rows:
        assert number_or_word(cell) == FLAGS[script][flag], flag


# --- commands -----------------------------------------------------------------------------------


def test_commands_are_found():
    block = "```bash\nfor seed in 1 2; do python a.py --seed $seed; done\nX=1 python b/c.py\n```\n"
    block += "Type `python d.py --e` or `python -m pytest`."
    assert commands(block) == ["a.py --seed $seed", "b/c.py", "d.py --e"]
    assert len(COMMANDS) > 80


def test_pages_are_found():
    """All that stand in docs/; a new folder of pages must be named above."""
    built = {"_build", "_cache", "project"}
    every = {path for path in ROOT.glob("docs/**/*.md") if path.parts[len(DOCS_AT)] not in built}
    assert set(DOCS) == every


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    """A shell's variables stand for numbers here, as they do in the loops."""
    file, *words = shlex.split(re.sub(r"\$(seed|alpha)\b", "1", command))
    assert (ROOT / file).is_file()
    settings = SETTINGS | TOOLS
    if file.removesuffix(".py") in settings:
        words = [word for word in words if word != "--help"]
        args = tyro.cli(settings[file.removesuffix(".py")], args=words)
        assert dataclasses.is_dataclass(args)
    else:
        assert file.partition("/")[0] in ("docs", "tests", "benchmarks")


@each_page
def test_commands_can_be_pasted(page):
    """No <placeholder>, which a shell takes for a redirection."""
    for block in blocks(TEXTS[page], "bash"):
        assert not re.search(r"<[\w ]+>", block), block


@each_page
def test_what_is_installed_exists(page):
    for file in re.findall(r"-r ([\w./-]+\.txt)", TEXTS[page]):
        assert (ROOT / file).is_file(), file


@each_page
def test_no_unknown_flag(page):
    known = set().union(*FLAGS.values())
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", TEXTS[page]))
    positive = {re.sub("^--no-", "--", flag) for flag in mentioned}
    unknown = positive - known - FOREIGN_FLAGS
    assert not unknown, unknown


# --- links --------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    names = set()
    for heading in re.findall(r"^#+ +(.*)$", without_code, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(name)
    return names


def test_anchors():
    text = "# A `b_c.py`, d\n\n```\n# not a heading\n```\n## W & B's x\n"
    assert anchors(text) == {"a-b_cpy-d", "w--bs-x"}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


# --- the rest -----------------------------------------------------------------------------------


def test_readme_is_short():
    assert len(TEXTS[README].split()) <= 1800


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in blocks(TEXTS[page], "python"):
        ast.parse(block)


def test_torch_is_the_pinned_one():
    (pin,) = re.findall(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"torch==[\d.]+\d", TEXTS[README])) == {pin}
