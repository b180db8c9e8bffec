"""Formulas become HTML while the site is built; a formula that KaTeX refuses stops the build.

KaTeX is a pinned npm package. It is fetched once, by npm, into docs/_cache (or where the variable
MARGINALIA_CACHE says), and its checksum is compared. No page loads a script for its formulas.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from docutils import nodes
from py_mini_racer import MiniRacer
from sphinx.errors import ExtensionError
from sphinx.util import logging

log = logging.getLogger(__name__)
VERSION = "0.19.1"
SHA512 = "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA=="
CACHE = Path(__file__).parent.parent / "_cache"
MACROS = {r"\E": r"\mathbb{E}", r"\KL": r"\operatorname{KL}", r"\N": r"\mathcal{N}"}
OPTIONS = {"throwOnError": True, "trust": True, "strict": "ignore", "macros": MACROS}


def fetched() -> Path:
    """The folder of the unpacked package."""
    cache = Path(os.environ.get("MARGINALIA_CACHE", CACHE))
    folder = cache / f"katex-{VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"katex-{VERSION}.tgz"
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        if not archive.exists():
            pack(Path(unfinished), cache)
            os.replace(Path(unfinished, archive.name), archive)
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise ExtensionError(f"{archive} has the checksum {digest}, not {SHA512}")
        with tarfile.open(archive) as tar:
            tar.extractall(unfinished, filter="data")
        with contextlib.suppress(OSError):  # another build was faster
            os.replace(Path(unfinished, "package"), folder)
    return folder


def pack(target: Path, cache: Path) -> None:
    """Let npm fetch the package into a folder."""
    npm = shutil.which("npm")
    advice = f"put the file of `npm pack katex@{VERSION}` into {cache}"
    if npm is None:
        raise ExtensionError(f"npm is missing, which fetches KaTeX; or {advice}")
    command = [npm, "pack", f"katex@{VERSION}", "--silent", "--pack-destination", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cache)
    if done.returncode != 0:
        raise ExtensionError(f"npm cannot fetch KaTeX; {advice}: {done.stderr[-500:]}")


class Renderer:
    """KaTeX in V8, started with the first formula. What was typeset is kept."""

    def __init__(self):
        self.engine = None
        self.done = {}

    def render(self, formula: str, display: bool) -> str:
        """The formula's HTML. Raises ValueError with KaTeX's message."""
        key = formula, display
        if key not in self.done:
            if self.engine is None:
                self.engine = MiniRacer()
                self.engine.eval((fetched() / "dist/katex.min.js").read_text("utf-8"))
            options = json.dumps(OPTIONS | {"displayMode": display})
            try:
                html = self.engine.eval(f"katex.renderToString({json.dumps(formula)}, {options})")
            except Exception as error:
                raise ValueError(str(error).splitlines()[0]) from error
            self.done[key] = html
        return self.done[key]


renderer = Renderer()


def pieces(formula: str) -> list[str]:
    """The formulas that stand beside each other with a quad between, to be put below each other
    where a window is narrow. A formula with lines of its own is one piece.
    """
    found, depth, begin = [], 0, 0
    if r"\begin" in formula:
        return [formula]
    for match in re.finditer(r"\\[{}]|[{}]|\\q?quad(?![a-z])", formula):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if match[0].endswith("quad") and depth == 0:
            found.append(formula[begin : match.start()])
            begin = match.end()
    return [*found, formula[begin:]]


def html_of(formula: str, display: bool, node: nodes.Node) -> str:
    try:
        return renderer.render(formula, display)
    except ValueError as error:
        log.warning("formula %s: %s", formula.strip(), error, location=node)
        return ""


def visit_inline(self, node):
    self.body.append(html_of(node.astext(), False, node))
    raise nodes.SkipNode


def visit_block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    parts = pieces(node.astext())
    for part in parts:
        html = html_of(part, True, node)
        self.body.append(f'<div class="piece">{html}</div>' if len(parts) > 1 else html)
    self.body.append("</div>\n")
    raise nodes.SkipNode


def add_style(app, error):
    """KaTeX's style sheet and fonts, beside the pages."""
    if error is None:
        target = Path(app.outdir) / "_static" / "katex"
        (target / "fonts").mkdir(parents=True, exist_ok=True)
        for font in (fetched() / "dist").glob("fonts/*.woff2"):
            shutil.copy(font, target / "fonts")
        for name in "LICENSE", "dist/katex.min.css":
            shutil.copy(fetched() / name, target)


def setup(app):
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", add_style)
    app.add_css_file("katex/katex.min.css")
    return {"parallel_read_safe": True, "parallel_write_safe": False}
