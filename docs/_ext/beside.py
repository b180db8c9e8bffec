r"""Prose on the left, an object's own lines on the right.

    :::{script} sac_continuous.py
    :::

    :::{beside} bellman_target
    $$ y = r + \gamma \at{(1 - terminated)}{(1 - d)} V(s') $$

    A sentence about {line}`gamma`.
    :::

The argument of `beside` names a block: `header`, `imports`, a definition, or Class.method. The
options :start-at: and :end-before: hold a text of the lines at which a part of it begins and before
which it ends; :fold: hides the lines until they are asked for; :home: names the page that explains
the same object. `\at{code}{formula}` in a formula and {line}`code` in a sentence point at the one
line of the block that has this text.

A first formula has to say what the equation says that opens the docstring. Where it is written so
differently that this cannot be seen, :says: repeats the docstring's words, which are then compared.
Without a formula the docstring's equation is typeset.

Every line before room 7 must be drawn once, in the order of the file. What is amiss is a warning,
and `sphinx-build -W` makes an error of it.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from equations import displayed, equation, essence, replace_terms, typeset
from script_text import PAPER, Script, script
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

log = logging.getLogger(__name__)
PAGES = "sac_continuous td3_continuous ddpg_continuous ppo_continuous sac_v1_value_net".split()
PAGES += "td3_per_continuous sac_her_continuous her_utils".split()  # homes are looked for in order


class home_link(nodes.General, nodes.Element):  # noqa: N801  docutils' way
    """Becomes a link to the page that explains the object."""


def root_of(env) -> Path:
    """The folder of the scripts."""
    return Path(env.srcdir).resolve().parent


def pages_of(env) -> dict:
    """What each script's page draws and explains: {page: {"script": ..., "drawn": [...], ...}}"""
    if not hasattr(env, "script_pages"):
        env.script_pages = {}
    return env.script_pages


def code_html(source: Script, lines: range, linked: dict[int, str]) -> str:
    """The lines, each with an anchor; the number of a line leads to the term that points at it."""
    out = []
    for number in lines:
        link = f'class="number" tabindex="-1" href="#L-{number}"'
        if number in linked:
            link = f'class="number to-term" href="#{linked[number]}"'
        text = source.coloured[number - 1]
        anchor = f"<a {link}>{number}</a>"
        out.append(f'<span class="line" id="L-{number}">{anchor}{text}\n</span>')
    return f'<div class="highlight"><pre>{"".join(out)}</pre></div>'


def light_up(linked: dict[int, str]) -> str:
    """A style that lights a line while the pointer is on its term, and the term on its line."""
    rules = []
    for number in linked:
        term, line = f'.prose [href="#L-{number}"]', f"#L-{number}"
        rules.append(f".beside:has({term}:is(:hover, :focus)) {line}")
        rules.append(f".beside:has({line}:hover) {term}")
    if not rules:
        return ""
    return f"<style>{', '.join(rules)} {{ background: var(--lit); }}</style>"


class ScriptHead(SphinxDirective):
    """What page this is, and its contents room by room."""

    required_arguments = 1

    def run(self):
        path = root_of(self.env) / self.arguments[0]
        self.env.note_dependency(str(path))
        page = {"script": self.arguments[0], "drawn": [], "prose": {}, "anchors": {}}
        pages_of(self.env)[self.env.docname] = page
        source = script(path)
        rooms = {first: title for title, first in source.rooms.items()}
        label = nodes.literal(path.name, path.name)
        download = addnodes.download_reference("", "", label, reftarget=f"../{path.name}")
        download["refdoc"] = self.env.docname
        groups = [nodes.paragraph("", "", download, nodes.Text(f", lines 1 to {source.end}; all "))]
        reference = nodes.inline("", "arguments and docstrings")
        reference = addnodes.pending_xref("", reference, reftype="anchor", refdomain="")
        reference["refdoc"] = self.env.docname
        reference["reftarget"] = f"reference/{path.stem} "
        groups[0] += [reference, nodes.Text(". In the order of the file:")]
        for name in source.blocks:
            if name in rooms:
                groups.append(nodes.paragraph("", "", nodes.strong("", rooms[name])))
            if "." not in name:
                code = nodes.literal(name, name)
                link = nodes.reference("", "", code, refuri=f"#def-{name}", internal=True)
                groups[-1] += [nodes.Text(" "), link]
        return [nodes.container("", *groups, classes=["rooms"])]


class Beside(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec = {
        "start-at": directives.unchanged_required,
        "end-before": directives.unchanged_required,
        "says": directives.unchanged_required,
        "home": directives.unchanged_required,
        "fold": directives.flag,
    }

    def warn(self, message: str, *args):
        log.warning(message, *args, location=self.get_location())

    def run(self):
        page = pages_of(self.env).get(self.env.docname)
        name = self.arguments[0]
        if page is None:
            self.warn("beside %s: the page does not say {script} first", name)
            return []
        self.source = script(root_of(self.env) / page["script"])
        if name not in self.source.blocks:
            self.warn("%s has no %s", page["script"], name)
            return []
        narrow = self.options.get("start-at"), self.options.get("end-before")
        try:
            self.lines = self.source.narrowed(name, *narrow)
        except LookupError as error:
            self.warn("%s", error)
            return []
        self.lines = self.source.trimmed(self.lines)
        page["drawn"].append((self.lines.start, self.lines.stop))
        part = page["anchors"][name] = page["anchors"].get(name, 0) + 1
        anchor = f"def-{name}" if part == 1 else f"def-{name}-{part}"
        if self.content:
            page["prose"].setdefault(name, self.source.plain(self.source.blocks[name]))

        self.name = name
        self.linked = {}  # number of a line: the anchor of the first term that points at it
        left = nodes.container(classes=["prose"])
        label = nodes.literal(name, name)
        label = nodes.reference("", "", label, refuri=f"#{anchor}", internal=True)
        left += nodes.paragraph("", "", label, classes=["name"])
        text = self.with_terms(self.prose(whole=not any(narrow)))
        self.env.current_document["beside"] = self
        content = StringList(text.splitlines(), self.get_source_info()[0])
        self.state.nested_parse(content, self.content_offset, left)
        if not self.content or "home" in self.options:
            left += home_link(script_name=name, home=self.options.get("home", ""))
        del self.env.current_document["beside"]

        code = code_html(self.source, self.lines, self.linked)
        if "fold" in self.options:
            summary = f"{name}: lines {self.lines[0]} to {self.lines[-1]}"
            code = f'<details class="fold"><summary>{summary}</summary>{code}</details>'
        code = f'<div class="script">{code}</div>{light_up(self.linked)}'
        right = nodes.raw("", code, format="html")
        return [nodes.container("", left, right, classes=["beside"], ids=[anchor])]

    def prose(self, whole: bool) -> str:
        """What was written, with the docstring's equation where it has no formula of its own."""
        text = "\n".join(self.content)
        formula = re.search(r"\$\$(.*?)\$\$", text, re.DOTALL)
        docstring = self.source.docstrings.get(self.name, "")
        plain = equation(docstring)
        says = self.options.get("says")
        if says:
            if says not in " ".join(docstring.split()):
                self.warn("%s: its docstring does not say %r any more", self.name, says)
        elif plain and formula:
            written = essence(replace_terms(formula[1], lambda code, term: term))
            meant = essence(typeset(plain))
            if written != meant:
                message = "%s: the page's formula\n  %s\nand the docstring's\n  %s\ndiffer"
                self.warn(message, self.name, written, meant)
        elif plain and whole:
            return f"$$\n{displayed(plain)}\n$$\n\n{text}"
        return text

    def with_terms(self, text: str) -> str:
        """The links of formulas: from a term to its line."""
        seen = {}

        def link(code: str, term: str) -> str:
            number = self.number(code)
            seen[number] = seen.get(number, 0) + 1
            anchor = f"at-{number}" if seen[number] == 1 else f"at-{number}-{seen[number]}"
            self.linked.setdefault(number, anchor)
            return rf"\htmlId{{{anchor}}}{{\href{{#L-{number}}}{{{term}}}}}"

        try:
            return replace_terms(text, link)
        except ValueError as error:
            self.warn("%s: %s", self.name, error)
            return ""

    def number(self, code: str) -> int:
        try:
            return self.source.line(code, self.lines, self.name)
        except LookupError as error:
            self.warn("%s", error)
            return 0


class LineRole(SphinxRole):
    """{line}`code` or {line}`words <code>`: a link to the one line of the block with this code."""

    def run(self):
        block = self.env.current_document.get("beside")
        text, shown = self.text, self.text.strip(" =")
        if shown.count("(") > shown.count(")"):
            shown = shown[: shown.rindex("(")]  # the name of what is called
        if match := re.fullmatch(r"(\w+): \w+", shown):
            shown = match[1]  # a field without its type
        label = nodes.literal(shown, shown)
        if match := re.fullmatch(r"(.+?) <(.+)>", self.text, re.DOTALL):
            label, text = nodes.inline("", match[1]), match[2]
        if block is None:
            log.warning("{line}`%s` stands outside of a block", self.text)
            return [label], []
        number = block.number(text)
        ids = []
        if number not in block.linked:
            block.linked[number] = f"at-{number}"
            ids = [f"at-{number}"]
        link = nodes.reference("", "", label, refuri=f"#L-{number}", internal=True, classes=["at"])
        return [nodes.inline("", "", link, ids=ids)], []


class ObjectRole(SphinxRole):
    """{fn}`td3_continuous.smooth`, or of the same page {fn}`smooth`: a link to that block."""

    def run(self):
        page, _, name = self.text.partition(".")
        if page not in PAGES:
            page, name = self.env.docname, self.text
        return [object_link(self.env.docname, page, name)], []


def object_link(docname: str, page: str, name: str) -> addnodes.pending_xref:
    code = nodes.literal(name, name)
    xref = addnodes.pending_xref("", code, reftype="fn", refdomain="", refwarn=True)
    xref["refdoc"], xref["reftarget"] = docname, f"{page} {name}"
    return xref


def resolve_object(app, env, node, content):
    if node.get("reftype") != "fn":
        return None
    page, name = node["reftarget"].split(" ")
    anchors = pages_of(env).get(page, {"anchors": {}})["anchors"]
    if name not in anchors:
        name = name.partition(".")[0]  # a class that is drawn in one piece
    if name not in anchors:
        log.warning("%s does not draw %s", page, name, location=node)
        return content
    return make_refnode(app.builder, node["refdoc"], page, f"def-{name}", content)


def resolve_homes(app, doctree, docname):
    """Put links where a block has no prose and another page has, for the same text."""
    pages = pages_of(app.env)
    for node in list(doctree.findall(home_link)):
        name, home = node["script_name"], node["home"]
        here = pages[docname]
        source = script(root_of(app.env) / here["script"])
        plain = source.plain(source.blocks[name])
        homes = [p for p in PAGES if p in pages and pages[p]["prose"].get(name) == plain]
        if home and home not in homes:
            log.warning("%s of %s is not that of %s", name, docname, home, location=docname)
        homes = [home] if home in homes else [p for p in homes if p != docname]
        paragraph = []
        if homes and homes[0] != docname:
            file = nodes.literal("", pages[homes[0]]["script"])
            link = make_refnode(app.builder, docname, homes[0], f"def-{name}", file)
            words = [nodes.Text("As in "), link, nodes.Text(", and explained there.")]
            paragraph = [nodes.paragraph("", "", *words, classes=["home"])]
        node.replace_self(paragraph)


def check(app, env):
    """Every script has a page, and every line before room 7 is drawn once, in order."""
    shown = {page["script"] for page in pages_of(env).values()}
    for path in sorted(root_of(env).glob("*.py")):
        if path.name not in shown:
            log.warning("%s has no page", path.name)
    for docname, page in pages_of(env).items():
        source = script(root_of(env) / page["script"])
        expected = 1
        for start, stop in [*page["drawn"], (source.end + 1, source.end + 1)]:
            missing = [n for n in range(expected, start) if source.lines[n - 1].strip()]
            names = dict.fromkeys(source.owner(n) for n in missing)
            if missing:
                message = "%s: lines %d to %d (%s) are drawn nowhere"
                numbers = missing[0], missing[-1]
                log.warning(message, page["script"], *numbers, ", ".join(names), location=docname)
            if start < expected:
                message = "%s: line %d (%s) is drawn twice or out of order"
                owner = source.owner(start)
                log.warning(message, page["script"], start, owner, location=docname)
            expected = stop


class Formulas(SphinxDirective):
    """A table of room 5 of a script: name, equation, line."""

    required_arguments = 1

    def run(self):
        path = root_of(self.env) / self.arguments[0]
        self.env.note_dependency(str(path))
        source = script(path)
        room = source.blocks[source.rooms["The algorithm"]].start
        stop = source.blocks[source.rooms["Training loop"]].start
        rows = []
        for name, docstring in source.docstrings.items():
            if room <= source.blocks[name].start < stop and not name.endswith("__init__"):
                link = nodes.paragraph("", "", object_link(self.env.docname, path.stem, name))
                rows.append([link, self.meaning(docstring)])
        return [simple_table(["function", "what it computes"], rows, [1, 3])]

    def meaning(self, docstring: str) -> nodes.paragraph:
        plain = equation(docstring)
        if plain:
            return nodes.paragraph("", "", nodes.math(plain, typeset(plain)))
        sentence = docstring.split("\n\n")[0].split("  ")[0].replace("\n", " ")
        parts = PAPER.sub("", " " + sentence).strip().split("`")
        words = [nodes.literal(x, x) if i % 2 else nodes.Text(x) for i, x in enumerate(parts)]
        return nodes.paragraph("", "", *words)


def simple_table(heads: list[str], rows: list[list[nodes.Node]], widths: list[int]) -> nodes.table:
    """A table of ready-made cells."""
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in widths]
    head = nodes.row()
    for text in heads:
        head += nodes.entry("", nodes.paragraph("", text))
    group += nodes.thead("", head)
    body = nodes.tbody()
    for row in rows:
        body += nodes.row("", *(nodes.entry("", cell) for cell in row))
    group += body
    return nodes.table("", group, classes=["colwidths-auto"])


def purge(app, env, docname):
    pages_of(env).pop(docname, None)


def setup(app):
    app.add_node(home_link)
    app.add_directive("script", ScriptHead)
    app.add_directive("beside", Beside)
    app.add_directive("formulas", Formulas)
    app.add_role("line", LineRole())
    app.add_role("fn", ObjectRole())
    app.connect("env-purge-doc", purge)
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", resolve_object)
    app.connect("doctree-resolved", resolve_homes)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
