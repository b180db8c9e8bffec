"""What each companion in docs/lectures has. Commands and links: house/test_readme.py."""

import re

import pytest
from pages import ROOT, commands

DECKS = "cs224r csce642 td3_sac robotics rl_notes".split()


@pytest.mark.parametrize("deck", DECKS)
def test_companion(deck):
    """Reading order, runs, the map, and errata whose rows are whole."""
    text = (ROOT / "docs" / "lectures" / f"{deck}.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == ["Reading order", "In class", "From the formula to the line", "Errata"]
    assert commands(text)
    assert f"```{{lecture_map}} {deck}\n```" in text
    errata = text.partition("## Errata")[2]
    rows = [line for line in errata.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
