"""The reference: every function and class of a script with its docstring.

    :::{reference} sac_continuous.py
    :::

The text is read from the script, which is not imported. A definition that an earlier script of the
list `definitions.ORDER` has to the letter is a link to that script's reference. What stands before
room 7 is linked to its line on the script's page; of room 7, which has no page, the lines are here.
"""

import re

from beside import code_html, root_of, simple_table
from definitions import SHAPES, Definition, definitions, home
from docutils import nodes
from equations import displayed, equation
from script_text import script
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

log = logging.getLogger(__name__)
CITATION = r"\[(?:\d{4}|Kingma|Algorithm|CleanRL)[^\[\]]*\]"
PIECES = re.compile(rf"(`[^`]+`)|({SHAPES.pattern})|({CITATION})")


def xref(docname: str, page: str, anchor: str, content: nodes.Node) -> addnodes.pending_xref:
    """A link to an anchor of another page."""
    node = addnodes.pending_xref("", content, reftype="anchor", refdomain="", refwarn=True)
    node["refdoc"], node["reftarget"] = docname, f"{page} {anchor}"
    return node


def resolve(app, env, node, content):
    if node.get("reftype") != "anchor":
        return None
    page, anchor = node["reftarget"].split(" ")
    return make_refnode(app.builder, node["refdoc"], page, anchor, content)


class Reference(SphinxDirective):
    required_arguments = 1

    def run(self):
        self.path = root_of(self.env) / self.arguments[0]
        self.name = self.path.stem
        self.env.note_dependency(str(self.path))
        self.source = script(self.path)
        self.known = definitions(self.path)
        rooms = list(dict.fromkeys(one.room for one in self.known.found))
        found: list[nodes.Node] = [nodes.paragraph("", self.known.summary), self.contents(rooms)]
        for room in rooms:
            members = [one for one in self.known.found if one.room == room]
            found += self.room(room, members)
        pages = self.env.__dict__.setdefault("reference_pages", {})
        pages[self.env.docname] = self.path.name
        return found

    def contents(self, rooms: list[str]) -> nodes.container:
        """All names, room by room, as on the script's page."""
        box = nodes.container(classes=["rooms"])
        for room in rooms:
            line = nodes.paragraph("", "", nodes.strong("", re.sub(r"^\d\. | \(.*", "", room)))
            for one in self.known.found:
                if one.room == room:
                    code = nodes.literal("", one.name)
                    link = nodes.reference("", "", code, refuri=f"#ref-{one.name}", internal=True)
                    line += [nodes.Text(" "), link]
            box += line
        return box

    def room(self, room: str, members: list[Definition]) -> list[nodes.Node]:
        """A section with an entry for each definition of one room."""
        parts: list[nodes.Node] = []
        elsewhere: dict[str, list[str]] = {}
        for one in members:
            first = home(root_of(self.env), self.name, one.name)
            if first == self.name:
                parts.append(self.entry(one))
            else:
                elsewhere.setdefault(first, []).append(one.name)
        for first, names in elsewhere.items():
            parts.append(self.links(first, names))
        if not room:
            return parts
        number = re.sub(r"\W+", "-", room.lower()).strip("-")
        section = nodes.section("", nodes.title("", room), *parts, ids=[f"room-{number}"])
        return [section]

    def links(self, first: str, names: list[str]) -> nodes.paragraph:
        """The names whose text is that of another script."""
        file = xref(self.env.docname, f"reference/{first}", "", nodes.literal("", f"{first}.py"))
        words: list[nodes.Node] = [nodes.Text("As in "), file, nodes.Text(": ")]
        for place, name in enumerate(names):
            if place > 0:
                words.append(nodes.Text(", "))
            label = nodes.literal("", name)
            link = xref(self.env.docname, f"reference/{first}", f"ref-{name}", label)
            words.append(nodes.inline("", "", link, ids=[f"ref-{name}"]))
        words.append(nodes.Text("."))
        return nodes.paragraph("", "", *words, classes=["elsewhere"])

    def entry(self, one: Definition) -> nodes.section:
        anchor = f"ref-{one.name}"
        title = nodes.title("", "", nodes.literal("", one.name))
        section = nodes.section("", title, ids=[anchor], classes=["entry"])
        entries = [("single", f"{one.name} ({self.path.name})", anchor, "", None)]
        section += addnodes.index(entries=entries)
        code = nodes.literal_block(one.signature, one.signature, language="python")
        code["classes"].append("signature")
        section += code
        section += self.text(one.docstring)
        if one.fields:
            section += self.fields(one)
        section += self.methods(one)
        section += self.place(one)
        return section

    def place(self, one: Definition) -> nodes.Node:
        """Where its lines are: on the script's page, or here, folded."""
        number = one.lines[0]
        if number <= self.source.end:
            link = xref(self.env.docname, self.name, f"L-{number}", nodes.Text(f"line {number}"))
            file = f" of {self.path.name}, beside its formulas"
            return nodes.paragraph("", "", link, nodes.Text(file), classes=["place"])
        code = code_html(self.source, one.lines, {})
        summary = f"Lines {one.lines[0]} to {one.lines[-1]} of {self.path.name}"
        fold = f'<details class="fold"><summary>{summary}</summary>{code}</details>'
        return nodes.raw("", f'<div class="script">{fold}</div>', format="html")

    def text(self, docstring: str) -> list[nodes.Node]:
        """A docstring with its first equation typeset, as on the script's page."""
        found: list[nodes.Node] = []
        plain = equation(docstring)
        for place, paragraph in enumerate(docstring.split("\n\n")):
            if place == 0 and plain:
                latex = displayed(plain)
                found.append(nodes.math_block(latex, latex, number=None, label=None))
                joined = " ".join(paragraph.split("\n"))
                paragraph = joined.removeprefix(plain).strip(" ,.;:")
                if re.match("[a-z]{2,} ", paragraph):
                    paragraph = paragraph[0].upper() + paragraph[1:]
                paragraph += "." if paragraph.endswith(("]", "constant")) else ""
            found += self.paragraph(paragraph)
        return found

    def paragraph(self, text: str) -> list[nodes.Node]:
        """A paragraph; lines that begin with a hyphen are a list."""
        found: list[nodes.Node] = []
        words: list[str] = []

        def flush() -> None:
            if words:
                found.append(nodes.paragraph("", "", *self.inline(" ".join(words))))
                words.clear()

        for line in text.splitlines():
            if line.startswith("- "):
                flush()
                item = nodes.list_item("", nodes.paragraph("", "", *self.inline(line[2:])))
                if not found or not isinstance(found[-1], nodes.bullet_list):
                    found.append(nodes.bullet_list(bullet="-"))
                found[-1] += item
            else:
                words.append(line.strip())
        flush()
        return found

    def inline(self, text: str) -> list[nodes.Node]:
        """Words; code, shapes and papers are marked as what they are."""
        found: list[nodes.Node] = []
        for piece in PIECES.split(re.sub(r" +", " ", text)):
            if not piece:
                continue
            if piece.startswith("`"):
                found.append(nodes.literal("", piece.strip("`")))
            elif SHAPES.fullmatch(piece):
                found.append(nodes.literal("", piece))
            elif re.fullmatch(CITATION, piece):
                found.append(xref(self.env.docname, self.name, "def-header", nodes.Text(piece)))
            else:
                found.append(nodes.Text(piece))
        return found

    def fields(self, one: Definition) -> nodes.table:
        rows = []
        for field in one.fields:
            about = nodes.paragraph("", "", *self.inline(field.about))
            if one.name == "Args":
                flag = "--" + field.name.replace("_", "-")
                default = {"True": "on", "False": "off"}.get(field.default, field.default)
                name = nodes.paragraph("", "", nodes.literal("", flag))
                kind = nodes.paragraph("", self.known.limits(field.kind))
                rows.append([name, nodes.paragraph("", "", nodes.literal("", default)), kind])
            else:
                name = nodes.paragraph("", "", nodes.literal("", field.name))
                rows.append([name, nodes.paragraph("", "", nodes.literal("", field.kind))])
            rows[-1].append(about)
        if one.name == "Args":
            return simple_table(["flag", "default", "may be", "what"], rows, [2, 1, 2, 5])
        return simple_table(["field", "type", "what"], rows, [1, 1, 4])

    def methods(self, one: Definition) -> list[nodes.Node]:
        """Those of its own, then those that another script has to the letter."""
        own = nodes.definition_list(classes=["methods"])
        elsewhere: dict[str, list[str]] = {}
        for method in one.methods:
            first = home(root_of(self.env), self.name, method.name)
            if first != self.name:
                elsewhere.setdefault(first, []).append(method.name)
                continue
            name = nodes.inline("", "", nodes.literal("", method.signature))
            name["ids"] = [f"ref-{method.name}"]
            name["classes"] = ["signature"]
            meaning = nodes.definition("", *self.text(method.docstring))
            own += nodes.definition_list_item("", nodes.term("", "", name), meaning)
        found: list[nodes.Node] = [own] if len(own) else []
        return found + [self.links(first, names) for first, names in elsewhere.items()]


def check(app, env):
    """Every script has its page."""
    shown = set(env.__dict__.get("reference_pages", {}).values())
    for path in sorted(root_of(env).glob("*.py")):
        if path.name not in shown:
            log.warning("%s has no page of the reference", path.name)


def purge(app, env, docname):
    env.__dict__.get("reference_pages", {}).pop(docname, None)


def setup(app):
    app.add_directive("reference", Reference)
    app.connect("missing-reference", resolve)
    app.connect("env-purge-doc", purge)
    app.connect("env-check-consistency", check)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
