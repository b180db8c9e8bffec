"""The shape that every script keeps: its rooms, their order, their size and their style."""

import ast
import io
import re
import tokenize

import pytest
from helpers import SCRIPTS, TESTS

ROOT = TESTS.parent
PER, PPO, HER = "td3_per_continuous", "ppo_continuous", "sac_her_continuous"
ALL = [*SCRIPTS, HER]
ROOMS = [
    "2. Arguments",
    "3. Networks",
    "4. Replay buffer",
    "5. The algorithm",
    "6. Training loop",
    "7. Bookkeeping (skip on first reading)",
]

# A code line is one that is not blank, comment or docstring. An exception stands with its reason.
READ = 416  # lines before the bookkeeping, all of them: what a student reads in one sitting
READ_MORE = {
    HER: 425,  # two flags, and what the loop tells the replay of goals
    PER: 520,  # a second buffer, a tree, and what it needs of formulas
    PPO: 510,  # three surrogates, two normalisers, GAE, a policy in NumPy that acts
}
DOCSTRING = 40  # lines: the algorithm box and its notation on one screen
ALGORITHM = 225  # code lines of rooms 3 to 6, about four screens
ALGORITHM_MORE = {
    PER: 290,  # as above
    PPO: 310,  # as above
}
SCREEN = 50  # code lines of update(), and of the loop in train(): each is seen whole
CALLS = 8  # of the loop into the bookkeeping: more would hide line 1 of the algorithm
# Room 7 is meant to come down to 300 code lines and a file to 700: these hold what is there now.
BOOKKEEPING = 480  # code lines of room 7: what is plain, and keeps every run safe
FILE = 1002  # lines of a whole script
FILE_MORE = {
    PER: 1097,  # as above
    PPO: 1101,  # as above, and processes of its own
}
COLUMNS = 88  # of a line in room 7, unless it holds a message: two windows side by side

# A lambda that calls one of these changes something, which a reader does not expect of it.
EFFECTS = set(
    "add add_ append clear close copyto copy_ exec exit extend fill_ flush insert kill load mkdir "
    "open pop print put remove rename save send seed setattr setdefault setstate signal step "
    "system unlink update write write_text writerow writerows zero_grad".split()
)
SKIPPED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source):
    """Numbers of the lines that are not blank, comment or docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def length(node):
    return node.end_lineno - node.lineno


def measure(source):
    """Sizes of a script: what is read before the bookkeeping, and code lines by room."""
    code, lines, tree = code_lines(source), source.splitlines(), ast.parse(source)
    banners = {line.strip("# =-"): n for n, line in enumerate(lines, 1) if line.startswith("# ===")}
    start = dict(zip("23456789", [*banners.values(), len(lines) + 1], strict=False))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    loops = [node for node in ast.walk(functions["train"]) if isinstance(node, ast.For)]
    loop = max(loops, key=length)
    body = "\n".join(lines[loop.lineno - 1 : loop.end_lineno])

    def inside(node):
        return len([n for n in code if node.lineno <= n <= node.end_lineno])

    return {
        "rooms": list(banners),
        "read": start["7"] - 1,
        "algorithm": len([n for n in code if start["3"] <= n < start["7"]]),
        "update": inside(functions["update"]),
        "loop": inside(loop),
        "bookkeeping": len([n for n in code if n > start["7"]]),
        "calls": len(re.findall(r"\brun\.", body)),
        "docstring": len(ast.get_docstring(tree).splitlines()),
        "file": len(lines),
    }


def read(script):
    return (ROOT / f"{script}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ALL)
def test_size(script):
    size = measure(read(script))
    print(script, size)
    on_policy = {"4. Replay buffer": "4. Rollout storage"} if script == PPO else {}
    assert size["rooms"] == [on_policy.get(room, room) for room in ROOMS]
    assert size["read"] <= READ_MORE.get(script, READ)
    assert size["docstring"] <= DOCSTRING
    assert size["algorithm"] <= ALGORITHM_MORE.get(script, ALGORITHM)
    assert size["update"] <= SCREEN
    assert size["loop"] <= SCREEN
    assert size["calls"] <= CALLS
    assert size["bookkeeping"] <= BOOKKEEPING
    assert size["file"] <= FILE_MORE.get(script, FILE)


def wide_lines(source):
    """Numbers of the lines above COLUMNS that hold no sentence, as messages and docstrings do."""
    sentences = set()
    for node in ast.walk(ast.parse(source)):
        words = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        if words or isinstance(node, ast.JoinedStr):
            sentences.update(range(node.lineno, node.end_lineno + 1))
    numbered = enumerate(source.splitlines(), 1)
    return [n for n, line in numbered if len(line) > COLUMNS and n not in sentences]


@pytest.mark.parametrize("script", ALL)
def test_the_bookkeeping_is_narrow(script):
    source = read(script)
    first = source.splitlines().index(f"# === {ROOMS[-1]} ".ljust(100, "=")) + 1
    assert [n for n in wide_lines(source) if n > first] == []


def tricks(source):
    """Numbers of the lines with a walrus inside a call, or with a lambda that has an effect."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            inner = [part for argument in arguments for part in ast.walk(argument)]
            found.update(part.lineno for part in inner if isinstance(part, ast.NamedExpr))
        if isinstance(node, ast.Lambda):
            for part in ast.walk(node.body):
                called = getattr(part, "func", None)
                name = getattr(called, "attr", getattr(called, "id", ""))
                if name in EFFECTS or isinstance(part, ast.NamedExpr):
                    found.add(part.lineno)
    return sorted(found)


PLAIN = [*(f"{script}.py" for script in ALL), "her_utils.py"]
PLAIN += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tools/*.py"))]
PLAIN += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("benchmarks/*.py"))]


@pytest.mark.parametrize("path", PLAIN)
def test_one_statement_does_one_thing(path):
    assert tricks((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script):
    for node in ast.walk(ast.parse(read(script))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not set(SCRIPTS) & set(names)


def test_the_counter_counts():
    source = [
        '"""Doc',
        'string."""',
        "# comment",
        "x = 1  # code",
        'y = """not',
        'a docstring"""',
        "",
        "def f():",
        "    'Doc.'",
        "    return (",
        "        1",
        "    )",
    ]
    assert code_lines("\n".join(source)) == {4, 5, 6, 8, 10, 11, 12}


def test_tricks_are_seen():
    source = [
        "f(x := 1)",
        "if (x := 1) > 0: g(x)",
        "f(key=[y for y in z if (a := y)])",
        "f(lambda: run.save())",
        "f(lambda x: x.mean())",
        "f(lambda: (b := 1))",
        "f(lambda: print(1))",
    ]
    assert tricks("\n".join(source)) == [1, 3, 4, 6, 7]


def test_wide_lines_are_seen():
    wide = "x = a_long_name" + " + another_long_name" * 4
    message = f'raise RunError("{"a sentence " * 9}")'
    assert wide_lines("\n".join([wide, message, f"y = 1  # {'comment ' * 12}"])) == [1, 3]
