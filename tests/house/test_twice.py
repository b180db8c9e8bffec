"""No sentence stands twice: a fact has one home, and other places link to it."""

import ast
import re
from pathlib import Path

import pages
import pytest

ROOT = pages.ROOT
WORDS = 9  # a shorter sentence may be the same by chance


def sentences(text: str) -> list[str]:
    """Of prose: without code, tables' bars, formulas, links' targets."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1 *$", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^:::.*$|^#+ ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    found = []
    for part in re.split(r"\n\s*\n|\n *[-*] |\n *\d+\. |\||\n(?=\|)", text):
        part = " ".join(part.split())
        found += re.split(r"(?<=[.?!:;]) (?=[A-Z`*\[])", part)
    return found


def plain(sentence: str) -> str:
    """Without marks, so that emphasis makes no difference."""
    return " ".join(re.findall(r"[\w'.-]*\w", sentence.lower()))


def docstrings(path: Path) -> list[str]:
    """Those of a file, and the comments on lines of their own.

    The help of a flag is left out: it stands in every program that has the flag.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    flags = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    helps = [part for node in flags for part in node.body]
    found = []
    for node in ast.walk(tree):
        alone = node.value if isinstance(node, ast.Expr) and node not in helps else None
        if isinstance(alone, ast.Constant) and isinstance(alone.value, str):
            found.append(alone.value)
    comments = re.findall(r"(?:^ *# .*\n)+", text, re.MULTILINE)
    return found + [re.sub(r"^ *# ", "", comment, flags=re.MULTILINE) for comment in comments]


def places() -> dict[str, set[str]]:
    """Every sentence that is long enough, and where it stands. The scripts are one place."""
    found = {}
    texts = [(page.relative_to(ROOT).as_posix(), [text]) for page, text in pages.TEXTS.items()]
    texts += [("the scripts", docstrings(path)) for path in ROOT.glob("*.py")]
    texts += [(f"tools/{path.name}", docstrings(path)) for path in ROOT.glob("tools/*.py")]
    path = ROOT / "benchmarks" / "README.md"
    texts.append(("benchmarks/README.md", [path.read_text(encoding="utf-8")]))
    for place, parts in texts:
        for number, text in enumerate(parts):
            # A question is the title of its answer, and the text of the guide's link to it.
            here = [plain(one) for one in sentences(text) if not one.rstrip("]* ").endswith("?")]
            for sentence in here:
                if len(sentence.split()) >= WORDS:
                    again = here.count(sentence) > 1 and place != "the scripts"
                    found.setdefault(sentence, set()).add(place)
                    if again:
                        found[sentence].add(f"{place}, twice ({number})")
    return found


def test_no_sentence_stands_twice():
    twice = {}
    for sentence, where in places().items():
        if len(where) > 1:
            twice[sentence] = sorted(where)
    assert not twice, "\n".join(f"{where}: {sentence}" for sentence, where in twice.items())


def test_sentences_are_found():
    text = "# T\n\nOne *is* `here`. Two [is](x.md#y) there:\n\n- three\n  more\n\n"
    text += "```bash\nfour. Five.\n```\n| a | b c |\n|---|---|\n| Who? | $$ x $$ |\n"
    words = [plain(sentence) for sentence in sentences(text)]
    assert [word for word in words if word] == [
        *("t", "one is here", "two is there", "three more", "a", "b c", "who"),
    ]


@pytest.mark.slow
def test_what_stands_twice_is_seen(tmp_path, monkeypatch):
    """In two pages, twice in one, and in a docstring and a page."""
    words = "Here is a sentence of more words than may stand twice"
    script = tmp_path / "script.py"
    flags = 'class Args:\n    out: str\n    """where a very long sentence may stand many times"""\n'
    script.write_text(f'def f():\n    """{words}, and so on."""\n\n{flags}')
    assert docstrings(script) == [f"{words}, and so on."]
    page = pages.ROOT / "docs" / "other.md"
    for text in (f"{words}.\n\n*{words}*.", f"{pages.TEXTS[pages.README]}"):
        monkeypatch.setitem(pages.TEXTS, page, text)
        assert any("docs/other.md" in " ".join(w) for w in places().values() if len(w) > 1)
