"""The companions in docs/lectures and the demonstrations: commands, links and tables."""

import re
import shlex
from pathlib import Path

import pytest
import tyro
from test_readme import SETTINGS, TOOLS, anchors, commands

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted([*DOCS.glob("lectures/*.md"), *DOCS.glob("demos/*.md")])
DECKS = "cs224r csce642 td3_sac robotics rl_notes".split()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@each_page
def test_commands_parse(page):
    for command in commands(page.read_text(encoding="utf-8")):
        script, *words = shlex.split(command)
        tyro.cli((SETTINGS | TOOLS)[script.removesuffix(".py")], args=words)


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("deck", DECKS)
def test_companion(deck):
    """Reading order, runs, the map, and errata whose rows are whole."""
    text = (DOCS / "lectures" / f"{deck}.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == ["Reading order", "In class", "From the formula to the line", "Errata"]
    assert commands(text)
    assert f"```{{lecture_map}} {deck}\n```" in text
    errata = text.partition("## Errata")[2]
    rows = [line for line in errata.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
