"""Slips: what somebody could have written instead of a line, from the tables in tests/slips.

    ```{slip_table}
    ```

    ```{slips} Target networks
    ```

`slip_table` lists the slips that have a [slip.page], by subject; `slips` draws those of one
subject: wrong and right lines, why, where it was seen, what was measured. Numbers come from
slips/numbers.csv and curves from slips/NAME.png, which the programs in docs/slips make.

On a script's page the block that holds the right line gets a link to each of its slips. It is a
warning if the right line is not there once any more, if a subject has no directive, or if a number
was never measured. Numbers that were measured before a script changed are shown with that remark.
"""

import csv
import difflib
import re
import sys
from pathlib import Path

from beside import pages_of, root_of, simple_table
from docutils import nodes
from docutils.statemachine import StringList
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from script_text import script
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)
PAGE = "slips"  # the page with the sections


def tables_of(env):
    """The module that reads the tables: of the project that is built, which may be a copy."""
    folder = str(root_of(env) / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import slip_tables

    return slip_tables


def is_stale(env, slip, row: dict[str, str]) -> bool:
    """Whether the script or the slip has changed since this number was measured."""
    folder = str(root_of(env) / "docs" / "slips")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import slipped

    return row["mark"] != slipped.mark_of(slip, row["measure"])


def slips_of(env, docname: str, location=None) -> list:
    """All slips. The page is built anew where a table changes."""
    tables = tables_of(env)
    folder = root_of(env) / "tests" / "slips"
    for path in [*sorted(folder.glob("*.toml")), Path(tables.__file__)]:
        env.note_dependency(str(path), docname=docname)
    try:
        return [slip for slip in tables.read_tables(folder) if slip.page]
    except tables.SlipError as error:
        log.warning("slips: %s", error, location=location)
        return []


def shown(slips: list) -> list:
    return [slip for slip in slips if slip.page.file == slip.file]


def subjects(slips: list) -> dict[str, list]:
    found = {}
    for slip in shown(slips):
        found.setdefault(slip.page.subject, []).append(slip)
    return found


def order(env, slips: list) -> list:
    """The slips as the page has them: by the places of their subjects' directives."""
    text = (Path(env.srcdir) / f"{PAGE}.md").read_text(encoding="utf-8")
    names = re.findall(r"^```\{slips\} (.+)$", text, re.MULTILINE)
    by_subject = subjects(slips)
    return [slip for name in names for slip in by_subject.get(name, [])]


def coloured(line: str) -> str:
    return highlight(line, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).rstrip("\n")


def difference(old: list[str], new: list[str]) -> list[tuple[str, int]]:
    """(sign, index): "-" a line of the wrong text, "+" one of the right text, " " one around."""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    rows = []
    first, last = changes[0][3], changes[-1][4]
    done = max(0, first - 1)
    for _, i, j, k, m in changes:
        rows += [(" ", number) for number in range(done, k)]
        rows += [("-", number) for number in range(i, j)]
        rows += [("+", number) for number in range(k, m)]
        done = m
    rows += [(" ", number) for number in range(done, min(len(new), last + 1))]
    return [(sign, i) for sign, i in rows if sign != " " or new[i].strip()]


class Drawn:
    """A slip beside the script's text: what is wrong, what is right, and where. SlipError."""

    def __init__(self, env, slip):
        path = root_of(env) / slip.file
        self.slip, self.script = slip, script(path)
        text = path.read_text(encoding="utf-8")
        changed = tables_of(env).with_slip(slip, text)
        self.right, self.wrong = text.splitlines(), changed.splitlines()
        self.rows = difference(self.wrong, self.right)

    def line(self) -> int:
        """The number of the first right line; where all that is right is missing, of the next."""
        first = next(index for sign, index in self.rows if sign in "+-" or index)
        numbers = [index for sign, index in self.rows if sign == "+"] or [first]
        blank = [n for n in numbers if self.right[n].strip()] or numbers
        return blank[0] + 1

    def wrong_line(self, index: int) -> str:
        """Without its comment, which is about the right one."""
        return coloured(re.sub(r"  # .*", "", self.wrong[index]))

    def html(self) -> str:
        kinds = {" ": ("both", ""), "-": ("removed", "wrong"), "+": ("added", "right")}
        out = []
        for sign, index in self.rows:
            kind, word = kinds[sign]
            text = self.script.coloured[index] if sign != "-" else self.wrong_line(index)
            number = f'<span class="number">{index + 1 if sign != "-" else ""}</span>'
            if sign != "-" and index < self.script.end and self.right[index].strip():
                link = f"{Path(self.script.name).stem}.html#L-{index + 1}"
                number = f'<a class="number" href="{link}">{index + 1}</a>'
            label = f"<i>{word}</i>"
            out.append(f'<span class="line {kind}">{number}{label}{text}\n</span>')
        body = "".join(out)
        return (
            f'<div class="script slip-lines"><div class="highlight"><pre>{body}</pre></div></div>'
        )


def numbers_of(env, docname: str) -> list[dict[str, str]]:
    path = root_of(env) / "docs" / "slips" / "numbers.csv"
    env.note_dependency(str(path), docname=docname)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def first_difference(rows: list[dict[str, str]]) -> dict[str, str] | None:
    """The number that shows it: the first in which right and wrong differ clearly."""
    for row in rows:
        right, wrong = float(row["right"]), float(row["wrong"])
        if not abs(wrong - right) <= 0.05 * max(abs(right), abs(wrong)):
            return row
    return None


class SlipTable(SphinxDirective):
    """All of them, with a link each, and one number."""

    def run(self):
        slips = slips_of(self.env, self.env.docname, self.get_location())
        numbers = numbers_of(self.env, self.env.docname)
        rows = []
        for slip in order(self.env, slips):
            own = [row for row in numbers if row["slip"] == slip.name]
            row = first_difference(own)
            link = nodes.reference("", slip.page.title, refuri=f"#{slip.name}", internal=True)
            files = nodes.literal("", Path(slip.file).stem)
            cells = [nodes.paragraph("", "", link), nodes.paragraph("", "", files)]
            cells += [self.parsed(row["what"] if row else "")]
            cells += [nodes.paragraph("", row[key] if row else "") for key in ("right", "wrong")]
            rows.append(cells)
        heads = ["slip", "script", "what was measured", "right", "wrong"]
        table = simple_table(heads, rows, [4, 2, 4, 1, 1])
        return [nodes.container("", table, classes=["map", "slip-table"])]

    def parsed(self, text: str) -> nodes.Node:
        box = nodes.container()
        self.state.nested_parse(StringList([text], "numbers.csv"), self.content_offset, box)
        return box


class Slips(SphinxDirective):
    """A section for each slip of one subject."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        location = self.get_location()
        slips = slips_of(self.env, self.env.docname, location)
        subject = self.arguments[0]
        if subject not in subjects(slips):
            log.warning("slips: there is no subject %r", subject, location=location)
            return []
        if not hasattr(self.env, "drawn_subjects"):
            self.env.drawn_subjects = set()
        self.env.drawn_subjects.add(subject)
        self.numbers = numbers_of(self.env, self.env.docname)
        return [self.section(slip) for slip in subjects(slips)[subject]]

    def section(self, slip) -> nodes.Node:
        for file in (slip.file, "her_utils.py"):
            self.env.note_dependency(str(root_of(self.env) / file))
        tables = tables_of(self.env)
        section = nodes.section(ids=[slip.name], names=[slip.name])
        section += nodes.title("", slip.page.title)
        try:
            drawn = Drawn(self.env, slip)
        except tables.SlipError as error:
            log.warning("slips: %s", error, location=self.get_location())
            return section
        left = nodes.container(classes=["prose"])
        left += self.place(slip, drawn)
        text = [slip.why, "", f"**Seen.** {slip.page.seen}"]
        content = StringList("\n".join(text).splitlines(), "slips")
        self.state.nested_parse(content, self.content_offset, left)
        left += self.measured(slip)
        right = nodes.container("", nodes.raw("", drawn.html(), format="html"))
        right += self.picture(slip)
        section += nodes.container("", left, right, classes=["beside", "slip"])
        return section

    def place(self, slip, drawn: Drawn) -> nodes.Node:
        """Which function of which script, and in which others it could happen."""
        page = self.env.app.builder.get_relative_uri(self.env.docname, Path(slip.file).stem)
        where = nodes.literal("", slip.where)
        link = nodes.reference("", "", where, refuri=f"{page}#L-{drawn.line()}", internal=True)
        if drawn.line() > drawn.script.end:
            link = where
        words = [link, nodes.Text(" of "), nodes.literal("", slip.file)]
        return nodes.paragraph("", "", *words, classes=["name"])

    def measured(self, slip) -> list[nodes.Node]:
        """A table of numbers, with a remark where the text has changed since."""
        wanted = [name for name in slip.page.measures if name != "curve"]
        own = [row for row in self.numbers if row["slip"] == slip.name]
        lacking = sorted(set(wanted) - {row["measure"] for row in own})
        if lacking:
            message = "slips: %s was never measured: %s; run docs/slips/measure.py"
            log.warning(message, slip.name, ", ".join(lacking), location=self.get_location())
        if not own:
            return []
        rows = []
        for row in own:
            what = nodes.container()
            content = StringList([row["what"]], "numbers.csv")
            self.state.nested_parse(content, self.content_offset, what)
            values = [row[key] or "" for key in ("exact", "right", "wrong")]
            rows.append([what, *(nodes.paragraph("", value) for value in values)])
        heads = ["measured", "exact", "right", "wrong"]
        table = simple_table(heads, rows, [6, 2, 2, 2])
        if any(is_stale(self.env, slip, row) for row in own):
            remark = "Measured before the last change of the script."
            return [table, nodes.paragraph("", remark, classes=["stale"])]
        return [table]

    def picture(self, slip) -> list[nodes.Node]:
        name = f"slips/{slip.name}.png"
        path = root_of(self.env) / "docs" / name
        self.env.note_dependency(str(path))
        if "curve" not in slip.page.measures or not path.is_file():
            return []
        alt = f"Learning curves with and without the slip: {slip.page.title}"
        caption = "Three runs of each on the script's own task, and their mean. " + slip.page.curve
        words = nodes.paragraph("", caption, classes=["stale"])
        return [nodes.image("", uri=name, alt=alt, classes=["curve"]), words]


def margin_links(app, doctree):
    """On a script's page: each block gets links to the slips whose right line it draws."""
    env = app.env
    page = pages_of(env).get(env.docname)
    if page is None:
        return
    here = [slip for slip in slips_of(env, env.docname) if slip.file == page["script"]]
    tables = tables_of(env)
    found = {}  # line: slips
    for slip in here:
        try:
            found.setdefault(Drawn(env, slip).line(), []).append(slip)
        except tables.SlipError as error:
            log.warning("slips: %s", error, location=env.docname)
    for block in doctree.findall(nodes.container):
        if "beside" not in block["classes"]:
            continue
        code = "".join(node.astext() for node in block.findall(nodes.raw))
        drawn = {int(number) for number in re.findall(r'id="L-(\d+)"', code)}
        own = [slip for line in sorted(drawn & found.keys()) for slip in found[line]]
        if own:
            block[0] += links_to(app, env.docname, own)


def links_to(app, docname: str, slips: list) -> nodes.Node:
    uri = app.builder.get_relative_uri(docname, PAGE)
    paragraph = nodes.paragraph("", "", nodes.Text("Slips: "), classes=["slips"])
    for number, slip in enumerate(slips):
        if number:
            paragraph += nodes.Text("; ")
        title = slip.page.title
        paragraph += nodes.reference("", title, refuri=f"{uri}#{slip.name}", internal=True)
    return paragraph


def check(app, env):
    """Every subject of the tables is drawn on the page of slips, once the page is there."""
    if PAGE not in env.all_docs:
        return
    drawn = getattr(env, "drawn_subjects", set())
    for subject in subjects(slips_of(env, PAGE)):
        if subject not in drawn:
            log.warning("slips: no directive draws %r", subject, location=PAGE)


def purge(app, env, docname):
    if docname == PAGE:
        env.drawn_subjects = set()


def setup(app):
    app.add_directive("slip_table", SlipTable)
    app.add_directive("slips", Slips)
    app.connect("env-purge-doc", purge)
    app.connect("doctree-read", margin_links)
    app.connect("env-check-consistency", check)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
