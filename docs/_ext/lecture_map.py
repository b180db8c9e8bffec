"""{lecture_map} NAME: the rows of one lecture in docs/lecture_map.toml; each opens its line.

A row has `slide`, `there` (the formula in the lecture's symbols), `where` ("file.py:Object.method";
without an object, the docstring of the file), `line` (a text that exactly one line of the object
has) and, where the notes have something differently, `says`.
"""

import ast
import tomllib
from pathlib import Path

from beside import root_of, simple_table
from docutils import nodes
from docutils.statemachine import StringList
from script_text import script
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)


def find(root: Path, where: str, line: str) -> int:
    """The number of the one line of file.py:Object.method that has this text. LookupError else."""
    file, _, name = where.partition(":")
    if not (root / file).is_file():
        raise LookupError(f"{where}: no such file")
    source = (root / file).read_text(encoding="utf-8")
    lines = source.splitlines()
    node = ast.parse(source)
    first, last = node.body[0].lineno, node.body[0].end_lineno
    for part in name.split(".") if name else ():
        inside = [n for n in node.body if getattr(n, "name", None) == part]
        if not inside:
            raise LookupError(f"{where}: no such object")
        node = inside[0]
        first, last = node.lineno, node.end_lineno
    hits = [number for number in range(first, last + 1) if line in lines[number - 1]]
    if len(hits) != 1:
        raise LookupError(f"{where}: {len(hits)} lines have {line!r}, not one")
    return hits[0]


class LectureMap(SphinxDirective):
    required_arguments = 1

    def run(self):
        root, name = root_of(self.env), self.arguments[0]
        path = root / "docs" / "lecture_map.toml"
        self.env.note_dependency(str(path))
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        if name not in table:
            log.warning("%s has no lecture %s", path.name, name, location=self.get_location())
            return []
        cells = []
        for row in table[name]:
            self.env.note_dependency(str(root / row["where"].partition(":")[0]))
            try:
                number = find(root, row["where"], row["line"])
            except LookupError as error:
                message = "lecture map, %s, %s: %s"
                location = self.get_location()
                log.warning(message, name, row["slide"], error, location=location)
                continue
            formula = nodes.paragraph()
            if row["there"]:
                formula += nodes.math(row["there"], row["there"])
            here = self.link(root, row["where"], number)
            cells.append([self.parsed(row["slide"]), formula, here, self.parsed(row.get("says"))])
        heads = ["in the notes", "formula there", "here", "mind"]
        return [nodes.container("", simple_table(heads, cells, [2, 4, 2, 3]), classes=["map"])]

    def link(self, root: Path, where: str, number: int) -> nodes.Node:
        file, _, name = where.partition(":")
        label = [nodes.literal(file, file), nodes.Text(" ")]
        if name:
            label += [nodes.literal(name, name), nodes.Text(f" line\u00a0{number}")]
        else:
            label += [nodes.Text(f"line\u00a0{number}")]
        if number > script(root / file).end:  # room 7 is not drawn
            return nodes.paragraph("", "", *label)
        page = self.env.app.builder.get_relative_uri(self.env.docname, file.removesuffix(".py"))
        uri = f"{page}#L-{number}"
        return nodes.paragraph("", "", nodes.reference("", "", *label, refuri=uri, internal=True))

    def parsed(self, text: str | None) -> nodes.Node:
        box = nodes.container()
        if text:
            self.state.nested_parse(StringList([text], "lecture_map"), self.content_offset, box)
        return box


def setup(app):
    app.add_directive("lecture_map", LectureMap)
    return {"version": "1", "parallel_read_safe": True}
