"""What one script has and its sibling has not, hunk by hunk, each with a sentence.

    :::{diff} ddpg_continuous.py td3_continuous.py
    :::

    :::{hunk} def smooth
    The third trick.
    :::

Each `hunk` draws the next one, and its argument is a text that one of the changed lines has. All
hunks must come. Lines that differ only in the paper that they cite do not count as different.
"""

import difflib
from pathlib import Path

from beside import object_link, root_of
from docutils import nodes
from script_text import PAPER, Script, script
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)
GAP = 2  # so many equal lines at most between two changes of one hunk


def hunks(old: Script, new: Script) -> list[list[tuple[str, int, int, int, int]]]:
    """Groups of difflib's operations that lie close together in one definition."""
    texts = [[PAPER.sub("", line) for line in source.lines] for source in (old, new)]
    matcher = difflib.SequenceMatcher(None, *texts, autojunk=False)
    groups = []
    for operation in matcher.get_opcodes():
        if operation[0] == "equal":
            continue
        near = False
        if groups:
            last = groups[-1][-1]
            same = new.owner(last[4]) == new.owner(operation[3] + 1)
            near = operation[3] - last[4] <= GAP and same
        if near:
            groups[-1].append(operation)
        else:
            groups.append([operation])
    return groups


def rows(old: Script, new: Script, group: list) -> list[tuple[str, int | None, int | None]]:
    """(sign, number in the old script, number in the new one) of each line of a hunk."""
    out, done = [], group[0][3]
    for _, old_from, old_to, new_from, new_to in group:
        for number in range(done, new_from):
            out.append((" ", old_from - new_from + number + 1, number + 1))
        out += [("-", number + 1, None) for number in range(old_from, old_to)]
        out += [("+", None, number + 1) for number in range(new_from, new_to)]
        done = new_to
    while len(out) > 1 and not text_of(old, new, out[-1]).strip():
        out.pop()
    while len(out) > 1 and not text_of(old, new, out[0]).strip():
        out.pop(0)
    return out


class Diff(SphinxDirective):
    required_arguments = 2

    def run(self):
        paths = [root_of(self.env) / name for name in self.arguments]
        for path in paths:
            self.env.note_dependency(str(path))
        old, new = map(script, paths)
        self.env.current_document["diff"] = page = {"old": old, "new": new, "drawn": []}
        page["hunks"] = hunks(old, new)
        text = f"{len(page['hunks'])} places differ. "
        text += "Lines that differ only in the paper that they cite are left out. "
        text += f"Left of a line is its number in {old.name}, then that in {new.name}."
        if not hasattr(self.env, "diff_pages"):
            self.env.diff_pages = {}
        self.env.diff_pages[self.env.docname] = [*self.arguments, page["drawn"]]
        return [nodes.paragraph("", text)]


class Hunk(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        page = self.env.current_document.get("diff")
        old, new, key = page["old"], page["new"], self.arguments[0]
        place = len(page["drawn"])
        if place == len(page["hunks"]):
            self.warn("%s and %s have no more hunks, so none with %r", old.name, new.name, key)
            return []
        page["drawn"].append(place)
        lines = rows(old, new, page["hunks"][place])
        texts = [text_of(old, new, row) for row in lines if row[0] != " "]
        if not any(key in text for text in texts):
            message = "the next hunk of %s and %s begins with %r and has no %r"
            self.warn(message, old.name, new.name, texts[0].strip(), key)
        left = nodes.container(classes=["prose"])
        left += nodes.paragraph("", "", self.place_of(old, new, lines), classes=["name"])
        self.state.nested_parse(self.content, self.content_offset, left)
        code = nodes.raw("", hunk_html(old, new, lines), format="html")
        return [nodes.container("", left, code, classes=["beside"], ids=[f"hunk-{place + 1}"])]

    def warn(self, message: str, *args):
        log.warning(message, *args, location=self.get_location())

    def place_of(self, old: Script, new: Script, lines: list) -> nodes.Node:
        """A link to the definition in which the last changed line is."""
        source, column = (new, 2) if any(row[2] for row in lines if row[0] == "+") else (old, 1)
        changed = [row for row in lines if row[0] != " " and text_of(old, new, row).strip()]
        number = [row[column] for row in changed if row[column]][-1]
        name = source.owner(number)
        if not name:
            return nodes.Text("room 7")
        name = name.partition(".")[0]
        return object_link(self.env.docname, Path(source.name).stem, name)


def text_of(old: Script, new: Script, row: tuple) -> str:
    _, left, right = row
    return new.lines[right - 1] if right else old.lines[left - 1]


def hunk_html(old: Script, new: Script, lines: list) -> str:
    kinds = {" ": "both", "-": "removed", "+": "added"}
    out = []
    for sign, left, right in lines:
        text = new.coloured[right - 1] if right else old.coloured[left - 1]
        numbers = f'<span class="number">{left or ""}</span>'
        number = right or ""
        if right and right <= new.end and text.strip():
            number = f'<a href="{Path(new.name).stem}.html#L-{right}">{right}</a>'
        numbers += f'<span class="number">{number}</span>'
        out.append(f'<span class="line {kinds[sign]}">{numbers}<i>{sign}</i>{text}\n</span>')
    return f'<div class="script diff"><div class="highlight"><pre>{"".join(out)}</pre></div></div>'


def check(app, env):
    for docname, (old, new, drawn) in getattr(env, "diff_pages", {}).items():
        old, new = (script(root_of(env) / name) for name in (old, new))
        groups = hunks(old, new)
        for group in groups[len(drawn) :]:
            text = text_of(old, new, rows(old, new, group)[0]).strip()
            message = "%s and %s: the hunk that begins with %r has no sentence"
            log.warning(message, old.name, new.name, text, location=docname)


def purge(app, env, docname):
    getattr(env, "diff_pages", {}).pop(docname, None)


def setup(app):
    app.add_directive("diff", Diff)
    app.add_directive("hunk", Hunk)
    app.connect("env-purge-doc", purge)
    app.connect("env-check-consistency", check)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
