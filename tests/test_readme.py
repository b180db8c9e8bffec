"""The README speaks of the flags and defaults that the scripts have."""

import dataclasses
import importlib
import re
import shlex

import enjoy
import pytest
import tyro
from helpers import SCRIPTS, TESTS

README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
ALL = [*SCRIPTS, "sac_her_continuous"]
SETTINGS = {script: importlib.import_module(script).Args for script in ALL}
FLAGS = {
    script: {
        "--" + field.name.replace("_", "-"): field.default for field in dataclasses.fields(args)
    }
    for script, args in SETTINGS.items()
}


@pytest.mark.parametrize("script", ALL)
def test_table_of_defaults(script):
    """The table under the script's own heading."""
    (section,) = re.findall(rf"^#### .*`{script}.py`\n(.*?)^##", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert len(rows) > 5
    for flag, value in rows:
        default = FLAGS[script][flag]
        assert (value if isinstance(default, str) else float(value)) == default, flag


def test_every_flag_is_in_the_readme_and_no_other():
    known = set().union(*FLAGS.values())
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", README))
    positive = {re.sub("^--no-", "--", flag) for flag in mentioned}
    # Of the tools and benchmarks.
    others = {"--help", "--rounds", "--algorithm", "--parts", "--threads", "--metric"}
    others |= {"--" + field.name for field in dataclasses.fields(enjoy.Args)}
    assert known <= mentioned, known - mentioned
    assert positive - others <= known, positive - others - known


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python (\w+\.py --.*)$", README, re.M))))
def test_commands_parse(line):
    script, *words = shlex.split(line, comments=True)
    args = tyro.cli(SETTINGS[script.removesuffix(".py")], args=words)
    assert dataclasses.is_dataclass(args)


def test_links_lead_somewhere():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (TESTS.parent / path).exists(), path
