"""A script as the site draws it: named blocks of lines up to room 7, and every line in colour."""

import ast
import functools
import re
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOM_7 = "# === 7."  # the pages end here
PAPER = re.compile(r"  ?\[[^\[\]]*(?:\d{4}|CleanRL|slides)[^\[\]]*\]")


class Script:
    """The lines of a script; its blocks: `header`, `imports`, each definition and each method."""

    def __init__(self, path: Path):
        self.name = path.name
        text = path.read_text(encoding="utf-8")
        self.lines = text.splitlines()
        self.end = len(self.lines)  # the last line that a page draws
        for number, line in enumerate(self.lines, 1):
            if line.startswith(ROOM_7):
                self.end = number - 1
        self.docstrings = {}
        self.rooms = {}  # the title of a room: the name of its first block
        self.blocks = self.find_blocks(ast.parse(text))
        lexer = PythonLexer(stripnl=False)
        coloured = highlight(text, lexer, HtmlFormatter(nowrap=True))
        self.coloured = coloured.splitlines()

    def find_blocks(self, tree: ast.Module) -> dict[str, range]:
        """Line numbers by name. What stands above a definition, as a banner does, is part of it."""
        first, *rest = [node for node in tree.body if node.lineno <= self.end]
        blocks = {"header": range(1, first.end_lineno + 1)}
        before = first.end_lineno
        room_2 = 0
        for number, line in enumerate(self.lines, 1):
            if line.startswith("# === 2."):
                room_2 = number
        kinds = ast.Import | ast.ImportFrom | ast.If
        while rest and (isinstance(rest[0], kinds) or rest[0].lineno < room_2):
            blocks["imports"] = range(before + 1, rest[0].end_lineno + 1)
            rest.pop(0)
        before = max(lines.stop for lines in blocks.values()) - 1
        name = "imports"
        for node in rest:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name
                blocks[name] = range(before + 1, node.end_lineno + 1)
                self.docstrings[name] = ast.get_docstring(node) or ""
                for line in self.lines[before : node.lineno]:
                    if banner := re.match(r"# === \d\. (.*?) ===", line):
                        self.rooms[banner[1]] = name
                if isinstance(node, ast.ClassDef):
                    blocks |= self.find_methods(node)
                before = node.end_lineno
        blocks[name] = range(blocks[name].start, self.end + 1)  # with what follows the last one
        return blocks

    def find_methods(self, node: ast.ClassDef) -> dict[str, range]:
        found = {}
        before = node.lineno
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                name = f"{node.name}.{part.name}"
                found[name] = range(before + 1, part.end_lineno + 1)
                self.docstrings[name] = ast.get_docstring(part) or ""
            before = part.end_lineno
        return found

    def narrowed(self, name: str, start_at: str | None, end_before: str | None) -> range:
        """The block, from the line with one text to the line before that with another."""
        lines = self.blocks[name]
        if start_at:
            lines = range(self.line(start_at, lines, name), lines.stop)
        if end_before:
            lines = range(lines.start, self.line(end_before, lines, name))
        return lines

    def line(self, text: str, lines: range, name: str) -> int:
        """The number of the one line of these that has the text. Raises LookupError."""
        hits = [number for number in lines if text in self.lines[number - 1]]
        if len(hits) != 1:
            raise LookupError(f"{self.name}: {len(hits)} lines of {name} have {text!r}, not one")
        return hits[0]

    def owner(self, number: int) -> str:
        """The name of the smallest block that holds this line; '' beyond them."""
        names = [name for name, lines in self.blocks.items() if number in lines]
        return min(names, key=lambda name: len(self.blocks[name]), default="")

    def plain(self, lines: range) -> str:
        """These lines without the papers that they cite, which differ between the scripts."""
        text = "\n".join(self.lines[number - 1] for number in lines)
        return PAPER.sub("", text).strip()

    def trimmed(self, lines: range) -> range:
        """Without blank lines at both ends."""
        while lines and not self.lines[lines[0] - 1].strip():
            lines = lines[1:]
        while lines and not self.lines[lines[-1] - 1].strip():
            lines = lines[:-1]
        return lines


@functools.cache
def read(path: Path, changed: float) -> Script:
    return Script(path)


def script(path: Path) -> Script:
    """The script, read again where the file has changed."""
    return read(path, path.stat().st_mtime)
