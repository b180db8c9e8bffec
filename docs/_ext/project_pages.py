"""README, CONTRIBUTING, and the pages of benchmarks/ and policies/ are pages of the site, too.

They are copied into docs/project before the build. A link in any page leads to the page of the site
that its target has become; one to another file of the repository leads to its address on the web,
if the variable GITHUB_REPOSITORY tells it, as it does where GitHub builds the site, and is plain
text otherwise.
"""

import os
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)"
)


def copied(root: Path) -> list[Path]:
    """What is copied, relative to the repository."""
    files = [root / "README.md", root / "CONTRIBUTING.md"]
    files += [*root.glob("benchmarks/**/*.md"), *root.glob("benchmarks/**/*.png")]
    files += [*root.glob("policies/*.md"), *root.glob("policies/*.gif")]
    return sorted(file.relative_to(root) for file in files)


def copy(app):
    """Bring docs/project up to date, leaving unchanged files alone, so that they are not built."""
    root, target = Path(app.srcdir).resolve().parent, Path(app.srcdir) / "project"
    wanted = copied(root)
    for file in target.glob("**/*"):
        if file.is_file() and file.relative_to(target) not in wanted:
            file.unlink()
    for file in wanted:
        new = target / file
        if not new.exists() or new.read_bytes() != (root / file).read_bytes():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, new)


def place_in_repository(docname: str) -> str:
    """The folder of the page's own file, relative to the repository."""
    if docname.startswith("project/"):
        return posixpath.dirname(docname.removeprefix("project/"))
    return posixpath.dirname(f"docs/{docname}")


def place_on_site(root: Path, target: str) -> str | None:
    """The source file, relative to docs/, that stands for a file of the repository."""
    if target.startswith("docs/") and target.endswith((".md", ".png", ".py")):
        return target.removeprefix("docs/") if not target.endswith(".py") else None
    if target == "benchmarks":
        target = "benchmarks/README.md"
    if (root / "docs" / "project" / target).is_file():
        return f"project/{target}"
    page = target.removesuffix(".py") + ".md"
    return page if target.endswith(".py") and (root / "docs" / page).is_file() else None


def rewrite(root: Path, docname: str, text: str) -> str:
    repository = os.environ.get("GITHUB_REPOSITORY")
    here = posixpath.dirname(docname)

    def new(match: re.Match) -> str:
        picture, label, target, anchor = match.groups(default="")
        full = posixpath.normpath(posixpath.join(place_in_repository(docname), target))
        page = place_on_site(root, full)
        if page:
            if not page.endswith(".md") or not full.endswith(".md"):
                anchor = ""
            return f"{picture}[{label}]({posixpath.relpath(page, here or '.')}{anchor})"
        if repository:
            return f"[{label}](https://github.com/{repository}/blob/main/{full})"
        return label

    parts = re.split(r"(^ *(?:```|~~~).*?^ *(?:```|~~~) *$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(new, part) for part in parts[::2]]
    return "".join(parts)


def change_links(app, docname, source):
    source[0] = rewrite(Path(app.srcdir).resolve().parent, docname, source[0])


def setup(app):
    app.connect("builder-inited", copy)
    app.connect("source-read", change_links)
    return {"parallel_read_safe": True}
