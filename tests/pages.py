"""README, CONTRIBUTING and the pages of docs/ as tests read them: code, commands, tables."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FOLDERS = ["lectures", "demos", "reference"]
# Every page, but for the copies that a build of the site makes.
DOCS = sorted(ROOT.glob("docs/*.md"))
DOCS += sorted(path for name in FOLDERS for path in ROOT.glob(f"docs/{name}/*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Whatever a code block or code in a sentence gives to `python`: a file with its flags each."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(python [^`]+\.py[^`]*)`", sentences)
    found = []
    for line in lines:
        found += re.findall(r"\bpython ((?:\w+/)*\w+\.py.*?)(?=; done|$)", line)
    return found


COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its kind."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without their heads."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in block.splitlines()[2:]:
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found
