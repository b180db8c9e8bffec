"""The reading site: what its formulas have in common with docstrings, and what stops its build."""

import dataclasses
import html
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def load(path: Path) -> ModuleType:
    """A file of docs/ as a module, without making its folder a place to import from."""
    spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


equations = load(DOCS / "_ext" / "equations.py")
check_pages = load(DOCS / "check_pages.py")


# --- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "after"),
    [
        ("y = r + gamma (1 - d) V(s')", ", nothing after it  [2019, eq. 2].  (B,)"),
        ("p_i = (max_k |delta_k| + epsilon)^alpha", "  [2016b, sec. 3.3]"),
        ("mean 1/2 (V(s) - R)^2", " [2017, eq. 9]; with a limit, the larger."),
        ("", "One step of the optimizer down the loss."),
        ("", "Q(s, a): (B, O), (B, A) -> (B,)."),
    ],
)
def test_the_equation_of_a_docstring(found, after):
    assert equations.equation(found + after) == found


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("theta_bar <- tau theta", r"\bar{\theta} \leftarrow \tau \theta"),
        ("A_t+1 + G_t-1", r"A_{t+1} + G_{t-1}"),
        ("log pi_phi(a~|s)", r"\log \pi _{\phi}(\tilde{a}\mid s)"),
        ("p - lr m_hat / (sqrt(v_hat) + eps)", r"p - \eta \hat{m} / (\sqrt{\hat{v}} + \epsilon )"),
        ("(N P(i))^-beta", r"(N P(i))^{-\beta}"),
        ("max_k |delta_k|", r"\max _{k} \lvert \delta _{k}\rvert"),
    ],
)
def test_typeset(plain, latex):
    assert equations.typeset(plain) == latex


def test_unknown_words_are_no_equation():
    with pytest.raises(equations.NotAnEquationError):
        equations.typeset("mean of mu(s)^2")


def test_shapes_are_no_equation():
    assert equations.equation("(B, O) -> (B, A), without exploration.") == ""


SAME = r"J_Q(\theta) = \operatorname{mean}\,\tfrac12\,\bigl(Q_\theta(s,a) - y\bigr)^2"


@pytest.mark.parametrize(
    ("formula", "same"),
    [
        (SAME, True),
        (SAME + r",\quad y = r", True),
        (SAME.replace("- y", "+ y"), False),
        (SAME.replace(r"\tfrac12", ""), False),
        (SAME.replace("^2", ""), False),
        (SAME.replace(r"Q_\theta", r"Q_\phi"), False),
    ],
)
def test_a_page_and_a_docstring_agree_or_not(formula, same):
    docstring = equations.typeset("J_Q(theta) = mean 1/2 (Q_theta(s, a) - y)^2")
    assert (equations.essence(formula) == equations.essence(docstring)) == same


def test_terms():
    text = r"y = \at{(1 - d)}{(1-d)} + \at{f({x})}{\tfrac{1}{2}}"
    changed = equations.replace_terms(text, lambda code, term: f"<{code}|{term}>")
    assert changed == r"y = <(1 - d)|(1-d)> + <f({x})|\tfrac{1}{2}>"
    with pytest.raises(ValueError):
        equations.replace_terms(r"\at{x} y", lambda code, term: "")


def test_every_question_of_the_guide_has_its_box():
    """The guide's links are the questions of the scripts' pages, each once."""
    guide = (DOCS / "reading_guide.md").read_text(encoding="utf-8")
    linked = re.findall(r"^- \[(.*\?)\]\((\w+)\.md#", guide, re.MULTILINE)
    asked = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if ":::{script}" in text:
            asked += [(q, page.stem) for q in re.findall(r"^### (.*\?)$", text, re.MULTILINE)]
    assert sorted(linked) == sorted(asked)


# --- the reference ------------------------------------------------------------------------------

ALL_SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.fixture
def definitions(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module("definitions")


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_reference_has_every_definition(script, definitions):
    """Under its name, with its docstring, its first line and its home."""
    module = importlib.import_module(script)
    known = definitions.definitions(ROOT / f"{script}.py").by_name
    own = {}
    for name, value in vars(module).items():
        defined = inspect.isroutine(value) or inspect.isclass(value)
        if defined and getattr(value, "__module__", "") == script:
            own[name] = value
    for name, value in list(own.items()):
        for part, method in vars(value).items() if inspect.isclass(value) else ():
            function = inspect.unwrap(getattr(method, "fget", None) or method)
            written = getattr(function, "__code__", None)  # and not made by dataclass
            if written and written.co_filename == module.__file__ and part != "__init__":
                own.setdefault(f"{name}.{part}", function)
    assert known.keys() == own.keys()
    for name, value in own.items():
        unwrapped = inspect.unwrap(value)
        docstring = unwrapped.__doc__ or ""
        if not docstring.startswith(f"{name}("):  # which dataclass writes
            assert known[name].docstring == inspect.cleandoc(docstring), name
        if inspect.isfunction(unwrapped):
            assert known[name].lines[0] == unwrapped.__code__.co_firstlineno, name
        home = definitions.home(ROOT, script, name)
        assert definitions.ORDER.index(home) <= definitions.ORDER.index(script)
        there = definitions.definitions(ROOT / f"{home}.py").by_name[name]
        assert there.plain == known[name].plain


def test_what_is_alike_has_one_home(definitions):
    assert definitions.home(ROOT, "ppo_continuous", "gradient_step") == "sac_continuous"
    assert definitions.home(ROOT, "td3_per_continuous", "Actor") == "td3_continuous"
    assert definitions.home(ROOT, "ppo_continuous", "Run.save") == "ppo_continuous"
    assert definitions.home(ROOT, "ppo_continuous", "Run.finish") == "sac_continuous"


@pytest.mark.parametrize("script", [name for name in ALL_SCRIPTS if name != "her_utils"])
def test_the_reference_has_every_flag(script, definitions):
    """With the default and the limits that the program has."""
    args = importlib.import_module(script).Args
    known = definitions.definitions(ROOT / f"{script}.py")
    kinds = get_type_hints(args, include_extras=True)
    fields = {field.name: field for field in known.by_name["Args"].fields}
    assert list(fields) == [field.name for field in dataclasses.fields(args)]
    for field in dataclasses.fields(args):
        shown, kind = fields[field.name], kinds[field.name]
        assert eval(shown.default) == field.default
        words = known.limits(shown.kind)
        if get_origin(kind) is Annotated:
            number, (low, high) = get_args(kind)
            name, limits = words.split(", ", 1)
            assert name == {int: "whole number", float: "number"}[number]
            numbers = [x.replace(",", "").replace("^", "**") for x in limits.split(" to ")]
            assert [eval(x) for x in numbers] == [low, high], field.name
        elif get_origin(kind) is Literal:
            assert tuple(words.split(", ")) == get_args(kind)
        else:
            assert words == {str: "text", bool: "on or off"}[kind]
        assert shown.about


# --- builds -------------------------------------------------------------------------------------


class Site:
    """A copy of the project, whose site is built again after each change."""

    def __init__(self, folder: Path):
        self.folder = folder
        for file in [*ROOT.glob("*.py"), *ROOT.glob("*.md")]:
            shutil.copy(file, folder)
        unwanted = ["_build", "_cache", "project", "__pycache__"]
        for name in ("docs", "benchmarks", "policies", "tests/slips"):
            leave_out = shutil.ignore_patterns(*unwanted, *(["*.csv"] * (name == "benchmarks")))
            shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
        shutil.copy(ROOT / "tests" / "slip_tables.py", folder / "tests")
        self.html = folder / "docs" / "_build" / "html"
        self.clean = folder / "clean"  # the pages before any change

    def build(self) -> subprocess.CompletedProcess:
        cache = os.environ.get("MARGINALIA_CACHE", str(DOCS / "_cache"))
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "docs", str(self.html)]
        options: dict[str, Any] = {
            "cwd": self.folder,
            "env": os.environ | {"MARGINALIA_CACHE": cache},
        }
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Site:
    pytest.importorskip("sphinx", reason="Sphinx is missing: pip install -r docs/requirements.txt")
    pytest.importorskip("py_mini_racer", reason="pip install -r docs/requirements.txt")
    site = Site(tmp_path_factory.mktemp("site"))
    done = site.build()
    for reason in ("npm is missing", "npm cannot fetch KaTeX"):
        if reason in done.stderr:
            pytest.skip(reason)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shutil.copytree(site.html, site.clean, ignore=shutil.ignore_patterns(".doctrees"))
    return site


@pytest.fixture
def site(built) -> Iterator[Site]:
    """The same copy for each test, put back afterwards."""
    names = [*built.folder.glob("*.py"), *built.folder.glob("docs/*.*")]
    names += built.folder.glob("docs/slips/*.csv")
    names += built.folder.glob("docs/reference/*.md")
    before = {path: path.read_bytes() for path in names}
    yield built
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def in_one_process(test):
    """Slow, and all in the same process: the site is built once."""
    return pytest.mark.slow(pytest.mark.xdist_group("site")(test))


PATIENCE = 240_000  # milliseconds: a busy machine takes its time for a page
# What is changed: file, text, new text, and what the build then says.
SAC, SAC_PAGE, DDPG_PAGE = "sac_continuous.py", "docs/sac_continuous.md", "docs/ddpg_continuous.md"
BLOCK = ":::{beside} critic_loss\n:::\n\n"
NEW = "def surprise(x):\n    return x\n\n\nclass Adam("
CHANGES = {
    "a function is renamed": (
        *(SAC, "def soft_value(", "def soft_worth("),
        "sac_continuous.py has no soft_value",
        "(soft_worth) are drawn nowhere",
    ),
    "a line that a term points at is rewritten": (
        *(SAC, "log_slope = 2", "slope = 2"),
        "sac_continuous.py: 0 lines of squashed_log_prob have 'log_slope = '",
    ),
    "a docstring's equation changes": (
        *(SAC, "y = r + gamma (1 - d) V(s'), n", "y = r + gamma V(s'), n"),
        "bellman_target: the page's formula",
        "differ",
    ),
    "words that a page repeats change in a docstring": (
        *("td3_continuous.py", "clip(N(0, std^2), -bound, bound)", "clip(N(0, 1), -bound, bound)"),
        "smooth: its docstring does not say",
    ),
    "a function is added": (*(SAC, "class Adam(", NEW), "(surprise) are drawn nowhere"),
    "a page's formula changes": (
        *(SAC_PAGE, r"{r + \gamma\,(1-d)\,V(s')}", r"{r + \gamma\,V(s')}"),
        "bellman_target: the page's formula",
    ),
    "LaTeX is bad": (
        *(SAC_PAGE, r"\max_\pi \min", r"\mxa_\pi \min"),
        r"Undefined control sequence: \mxa",
    ),
    "a block is left out": (*(DDPG_PAGE, BLOCK, ""), "(critic_loss) are drawn nowhere"),
    "a block comes twice": (*(DDPG_PAGE, BLOCK, 2 * BLOCK), "(critic_loss) is drawn twice"),
    "siblings differ in one more place": (
        *("td3_continuous.py", "self.added += 1", "self.added += 1  # more"),
        "the next hunk of ddpg_continuous.py and td3_continuous.py",
    ),
    "the right line of a slip is rewritten": (
        *(SAC, "(q1, q2) - alpha * log_prob", "(q1, q2) + -alpha * log_prob"),
        "a-soft-value-that-likes-certainty in sac_continuous.py: the right text is there 0 times",
    ),
    "a slip was never measured": (
        *("docs/slips/numbers.csv", "two_estimates,value of", "two_guesses,value of"),
        "one-critic-in-the-soft-value was never measured: two_estimates",
    ),
    "the slips of a subject are not drawn": (
        *("docs/slips.md", "{slips} PPO", "{slips} POP"),
        "there is no subject 'POP'",
        "no directive draws 'PPO'",
    ),
    "a page of the reference is missing": (
        *("docs/reference/her_utils.md", ":::{reference} her_utils.py\n:::", "Nothing."),
        "her_utils.py has no page of the reference",
    ),
    "a link between pages is dead": (
        *("docs/reading_guide.md", "#which-kl", "#which-ql"),
        "which-ql",
    ),
}


# A build reports all that it finds, so one is enough for many changes. These hide another, or are
# hidden by one, and have builds of their own.
SECOND = ["a docstring's equation changes", "the right line of a slip is rewritten"]
SECOND += ["a slip was never measured"]
THIRD, FOURTH = ["a page's formula changes"], ["a block comes twice"]
FIRST = [name for name in CHANGES if name not in SECOND + THIRD + FOURTH]


@in_one_process
@pytest.mark.parametrize("names", [FIRST, SECOND, THIRD, FOURTH])
def test_the_build_fails_and_names_it(site, names):
    for name in names:
        site.replace(*CHANGES[name][:3])
    done = site.build()
    assert done.returncode != 0
    for name in names:
        for message in CHANGES[name][3:]:
            assert message in done.stderr, name


@in_one_process
def test_a_script_needs_a_page(site):
    script = site.folder / "another_continuous.py"
    script.write_text('"""Another algorithm."""\n')
    site.replace("docs/index.md", "# Marginalia", "# Marginalia ")
    done = site.build()
    script.unlink()
    assert done.returncode != 0 and "another_continuous.py has no page" in done.stderr


def anchors(folder: Path, page: str) -> dict[str, str]:
    """Text of the line that each anchor of a script's page marks."""
    text = (folder / f"{page}.html").read_text(encoding="utf-8")
    lines = re.findall(r'<span class="line" id="(L-\d+)"><a[^>]*>\d+</a>(.*?)\n</span>', text)
    return {name: html.unescape(re.sub("<[^>]+>", "", line)) for name, line in lines}


@in_one_process
def test_lines_that_move_are_followed(site):
    old = anchors(site.clean, "sac_continuous")
    banner = "# A number's type says what it may be: its smallest and its largest value."
    site.replace("sac_continuous.py", banner, "# Another line.\n" + banner)
    site.replace("sac_v1_value_net.py", banner, "# Another line.\n" + banner)
    site.replace("sac_her_continuous.py", banner, "# Another line.\n" + banner)
    done = site.build()
    assert done.returncode == 0, done.stderr
    new = anchors(site.html, "sac_continuous")
    (place,) = [name for name, line in old.items() if "log_slope = 2" in line]
    moved = f"L-{int(place[2:]) + 1}"
    assert new[moved] == old[place]
    text = (site.html / "sac_continuous.html").read_text(encoding="utf-8")
    assert re.search(rf'href="#{moved}"', text) and f'id="at-{moved[2:]}"' in text


@in_one_process
def test_slips_are_shown_beside_their_lines(built):
    """On their page with a link to the right line, and a link back from the block that has it."""
    page = (built.clean / "slips.html").read_text(encoding="utf-8")
    drawn = anchors(built.clean, "sac_continuous")
    (place,) = [name for name, line in drawn.items() if "return torch.minimum(q1, q2)" in line]
    name = "one-critic-in-the-soft-value"
    (section,) = re.findall(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert f'href="sac_continuous.html#{place}"' in section
    assert "1.536" in section and "Measured before" not in page
    text = (built.clean / "sac_continuous.html").read_text(encoding="utf-8")
    (block,) = re.findall(r'id="def-soft_value">(.*?)id="def-', text, re.DOTALL)
    assert f'href="slips.html#{name}"' in block


@in_one_process
def test_numbers_of_an_older_script_say_so(site):
    site.replace("her_utils.py", "self.strategy = strategy", "self.strategy = str(strategy)")
    done = site.build()
    assert done.returncode == 0, done.stderr
    page = (site.html / "slips.html").read_text(encoding="utf-8")
    assert page.count("Measured before the last change of the script.") == 4


@in_one_process
def test_the_pages_hold_every_line_once(built):
    for script in sorted(ROOT.glob("*.py")):
        lines = script.read_text(encoding="utf-8").partition("# === 7.")[0].splitlines()
        drawn = anchors(built.clean, script.stem)
        for number, line in enumerate(lines, 1):
            if line.strip():
                assert drawn.pop(f"L-{number}") == line
        assert not any(line.strip() for line in drawn.values())


def letters(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


@in_one_process
@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_reference_page_has_every_docstring(built, definitions, script):
    """A place for each name, and the words of each docstring whose home this script is."""
    page = (built.clean / "reference" / f"{script}.html").read_text(encoding="utf-8")
    text = letters(html.unescape(re.sub("<[^>]+>", "", page)))
    own = 0
    for name, one in definitions.definitions(ROOT / f"{script}.py").by_name.items():
        parent = definitions.home(ROOT, script, name.partition(".")[0])
        if "." not in name or parent == script:
            assert f'id="ref-{name}"' in page, name
        if parent == definitions.home(ROOT, script, name) == script:
            docstring = " ".join(one.docstring.split())
            words = docstring.removeprefix(equations.equation(one.docstring))
            assert letters(words) in text, (name, words)
            own += 1
    assert own > 0


def links(page: Path) -> set[tuple[Path, str]]:
    """Where the links of a page lead: file and anchor."""
    found = set()
    for link in re.findall(r'<a\b[^>]*?\bhref="([^":]+)"', page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = os.path.normpath(page.parent / file) if file else page
        found.add((Path(target), anchor))
    return found


def two_clicks(site: Site) -> set[tuple[Path, str]]:
    """What can be reached from the front page."""
    front = links(site.clean / "index.html")
    reached = set(front)
    for page, _ in front:
        if page.suffix == ".html":
            reached |= links(page)
    return reached


@in_one_process
def test_two_clicks_from_the_front_page_to_any_row_of_the_lecture_map(built, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    lecture_map = importlib.import_module("lecture_map")
    reached = two_clicks(built)
    table = tomllib.loads((DOCS / "lecture_map.toml").read_text(encoding="utf-8"))
    table.pop("without_lecture")
    rows = [row for lecture in table.values() for row in lecture]
    ends = {path.name: lecture_map.script(path).end for path in ROOT.glob("*.py")}
    drawn = 0
    for row in rows:
        script = row["where"].partition(":")[0]
        number = lecture_map.find(ROOT, row["where"], row["line"])
        if number <= ends[script]:
            page = (built.clean / script).with_suffix(".html")
            assert (page, f"L-{number}") in reached, row
            drawn += 1
    assert drawn >= 110


@in_one_process
def test_two_clicks_from_the_front_page_to_any_function_of_room_5(built):
    reached = two_clicks(built)
    for script in sorted(ROOT.glob("*_continuous.py")):
        room = re.findall(r"# === 5(.*?)# === 6", script.read_text(encoding="utf-8"), re.DOTALL)
        page = built.clean / f"{script.stem}.html"
        for name in re.findall(r"^(?:def|class) (\w+)", room[0], re.MULTILINE):
            assert (page, f"def-{name}") in reached, (script.stem, name)


@in_one_process
def test_the_site_is_small_and_asks_for_nothing(built):
    files = [path for path in built.clean.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    for path in built.clean.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text), path
    assert not check_pages.dead_links(built.clean)


@in_one_process
def test_a_term_and_its_line_show_each_other_without_javascript(built):
    if reason := check_pages.missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    def colour(place) -> str:
        return place.evaluate("place => getComputedStyle(place).backgroundColor")

    with sync_playwright() as play:
        path = check_pages.chromium()
        browser = play.chromium.launch(executable_path=path, args=check_pages.ARGUMENTS)
        page = browser.new_page(java_script_enabled=False)
        page.set_default_timeout(PATIENCE)
        page.goto((built.clean / "sac_continuous.html").as_uri())
        term = page.locator("#def-soft_value .prose .katex-html a").first
        name = term.get_attribute("href")
        line = page.locator(name)
        plain = colour(line)
        term.hover()
        lit = colour(line)
        assert lit != plain
        line.hover()
        assert colour(term) == lit
        page.mouse.move(0, 0)
        assert colour(line) == plain
        term.click()
        assert page.url.endswith(name) and colour(line) == lit
        line.locator("a").click()
        assert page.url.endswith(name.replace("#L", "#at")) and colour(term) == lit
        box = page.locator("details.question").first
        assert box.get_attribute("open") is None
        question = box.locator(".anchor").get_attribute("id")
        page.goto((built.clean / "sac_continuous.html").as_uri() + f"#{question}")
        assert box.locator(".answer").is_visible()
        browser.close()


@in_one_process
@pytest.mark.timeout(1800)
def test_every_page_in_a_browser(built):
    if reason := check_pages.missing():
        pytest.skip(reason)
    assert check_pages.look(built.clean) == []
