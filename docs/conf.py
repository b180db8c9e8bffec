"""How Sphinx builds the site: sphinx-build -W -b html docs docs/_build/html"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Marginalia"
author = "the authors of Marginalia"
copyright = "MIT licence"  # noqa: A001  Sphinx's name
extensions = [
    "myst_parser",
    "sphinx.ext.githubpages",
    "katex_math",
    "beside",
    "questions",
    "script_diff",
    "slips",
    "reference",
    "lecture_map",
    "project_pages",
]
exclude_patterns = ["_build", "_cache"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 5
suppress_warnings = ["myst.header"]  # pages of benchmarks/ begin where they like
nitpicky = True
highlight_language = "none"
language = "en"
smartquotes = False  # s' is not a quotation, and --seed has two hyphens

html_title = "Marginalia"
html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navbar_align": "left",
    "navbar_center": ["navbar-nav"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": [],
    "show_prev_next": True,
    "use_edit_page_button": False,
    "footer_start": [],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
html_sidebars = {"**": []}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # it would ask for pages, which file:// refuses


def drop_maps(app, error):
    """Three megabytes of the theme that only its own developers need."""
    for path in Path(app.outdir).rglob("*.map"):
        path.unlink()


def setup(app):
    inside = Path(app.outdir) / ".doctrees"
    if Path(app.doctreedir) == inside:  # beside the site, which is then only what is published
        app.doctreedir = type(app.doctreedir)(inside.parent.parent / "doctrees")
    app.connect("build-finished", drop_maps)
