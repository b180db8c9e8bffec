"""Look at every page of the built site in a browser: python docs/check_pages.py [FOLDER]

Each page is opened from the disk at 1280 and 390 pixels, light and dark. Reported are: errors on
the console, requests to the network, a page wider than its window, formulas that are cut off, code
that wraps at 1280, dead links and anchors, an id that comes twice. It needs Playwright and the
system's Chromium, and says so and ends with 0 where one of them is missing.
"""

import re
import shutil
import sys
import urllib.parse
from pathlib import Path

WIDTHS = 1280, 390
ARGUMENTS = "--no-sandbox --disable-gpu --disable-background-networking --no-first-run".split()
ARGUMENTS += "--disable-component-update --disable-sync --disable-quic".split()
PROBE = """() => {
  const faults = [];
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll('main *')].filter(
      (e) => e.getBoundingClientRect().right > innerWidth + 1);
    const first = wide.length ? wide[0].outerHTML.slice(0, 80) : '';
    faults.push('page wider than the window: ' + page.scrollWidth + ' ' + first);
  }
  for (const box of document.querySelectorAll('details')) box.open = true;
  for (const formula of document.querySelectorAll('div.math')) {
    if (formula.scrollWidth > formula.clientWidth + 1) {
      faults.push('formula cut off: ' + formula.scrollWidth + ' > ' + formula.clientWidth + ' '
        + formula.textContent.slice(0, 60));
    }
  }
  for (const line of document.querySelectorAll('.script .line')) {
    const height = parseFloat(getComputedStyle(line).lineHeight);
    if (innerWidth > 1200 && line.getBoundingClientRect().height > 1.5 * height) {
      faults.push('line wraps: ' + line.textContent.slice(0, 60));
    }
  }
  if (document.querySelector('.katex-error')) faults.push('a formula has an error');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  const twice = ids.filter((id, place) => ids.indexOf(id) !== place);
  if (twice.length) faults.push('ids that come twice: ' + twice.slice(0, 3));
  return faults;
}"""


def chromium() -> str | None:
    """Where the system's Chromium is."""
    for name in "chromium chromium-browser google-chrome".split():
        if path := shutil.which(name):
            return path
    return None


def missing() -> str:
    """What is not there that the check needs; '' if all is."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright is not installed: pip install -r docs/requirements.txt"
    return "" if chromium() else "there is no Chromium: apt-get install chromium"


def pages(root: Path) -> list[Path]:
    """The pages of the site; _static has a piece of the theme that is none."""
    return [path for path in sorted(root.rglob("*.html")) if "_static" not in path.parts]


def dead_links(root: Path) -> list[str]:
    """Links of the pages to files or anchors that do not exist. Needs no browser."""
    texts = {path: path.read_text(encoding="utf-8") for path in pages(root)}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    faults = []
    for path, text in texts.items():
        for link in sorted(set(re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text))):
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = urllib.parse.unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.is_file():
                faults.append(f"{path.name}: dead link {link}")
            elif anchor and target in ids and anchor not in ids[target]:
                faults.append(f"{path.name}: dead anchor {link}")
    return faults


def look(root: Path) -> list[str]:
    """What is amiss, one line each."""
    from playwright.sync_api import sync_playwright

    faults = dead_links(root)
    where = ""

    def report(text: str) -> None:
        faults.append(f"{where}: {text}")

    def on_request(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            report(f"asks the network for {request.url}")

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for width in WIDTHS:
            for scheme in "light", "dark":
                size = {"width": width, "height": 900}
                page = browser.new_page(viewport=size, color_scheme=scheme)
                page.set_default_timeout(240_000)  # a busy machine takes its time for a page
                page.on("request", on_request)
                page.on("requestfailed", lambda request: report(f"cannot load {request.url}"))
                page.on("pageerror", lambda error: report(str(error)))
                page.on(
                    "console",
                    lambda said: said.type in ("error", "warning") and report(said.text),
                )
                for file in pages(root):
                    where = f"{file.relative_to(root)} {width} {scheme}"
                    page.goto(file.as_uri())
                    for fault in page.evaluate(PROBE):
                        report(fault)
                page.close()
        browser.close()
    return faults


def main(words: list[str]) -> int:
    root = Path(words[0] if words else Path(__file__).parent / "_build/html").resolve()
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    if not (root / "index.html").is_file():
        sys.exit(f"error: {root} has no site: sphinx-build -W -b html docs docs/_build/html")
    faults = look(root)
    print(*faults, f"{len(faults)} faults", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
