"""On a script's page a heading that ends in a question mark becomes a box that opens on a click.

The box ends where the next lines of the script begin. A link to the question opens it.
"""

from beside import pages_of
from docutils import nodes


class question(nodes.section):  # noqa: N801  docutils' way
    pass


class question_title(nodes.title):  # noqa: N801
    pass


def is_block(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and "beside" in node["classes"]


def make_boxes(app, doctree):
    if app.env.docname not in pages_of(app.env):
        return
    for section in list(doctree.findall(nodes.section)):
        title = section.next_node(nodes.title)
        if isinstance(section, question) or not title.astext().strip().endswith("?"):
            continue
        place = next((i for i, node in enumerate(section) if is_block(node)), len(section))
        after = list(section[place:])
        box = question("", *section[:place], ids=section["ids"], names=section["names"])
        box.source, box.line = section.source, section.line
        new = question_title("", "", *title.children)
        new.source, new.line = title.source, title.line
        box.replace(box[0], new)
        parent, number = section.parent, section.parent.index(section)
        parent[number : number + 1] = [box, *after]


def visit_question(self, node):
    self.section_level += 1
    self.body.append('<details class="question">')


def depart_question(self, node):
    self.section_level -= 1
    self.body.append("</div></details>\n")


def visit_title(self, node):
    self.body.append("<summary>")


def depart_title(self, node):
    # The anchor is inside, so that a link to it opens the box.
    anchors = "".join(f'<span class="anchor" id="{name}"></span>' for name in node.parent["ids"])
    link = node.parent["ids"][0]
    link = f' <a class="headerlink" href="#{link}" title="Link to this question">#</a>'
    self.body.append(f'{link}</summary><div class="answer">{anchors}')


def setup(app):
    app.add_node(question, html=(visit_question, depart_question))
    app.add_node(question_title, html=(visit_title, depart_title))
    app.connect("doctree-read", make_boxes, priority=900)
    return {"parallel_read_safe": True}
