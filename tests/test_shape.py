"""The shape that every script keeps: its rooms, their order and their size."""

import ast
import io
import re
import tokenize

import pytest
from helpers import SCRIPTS, TESTS

ROOMS = [
    "2. Arguments",
    "3. Environment and networks",
    "4. Replay buffer",
    "5. The algorithm",
    "6. Training loop",
    "7. Bookkeeping (skip on first reading)",
]
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


def measure(source):
    """Sizes of a script: what is read before the bookkeeping, and code lines by room."""
    code, lines = code_lines(source), source.splitlines()
    banners = {line.strip("# =-"): n for n, line in enumerate(lines, 1) if line.startswith("# ===")}
    start = dict(zip("23456789", [*banners.values(), len(lines) + 1], strict=False))
    train = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "train")
    loop = max(
        (n for n in ast.walk(train) if isinstance(n, ast.For)),
        key=lambda n: n.end_lineno - n.lineno,
    )
    body = "\n".join(lines[loop.lineno - 1 : loop.end_lineno])
    return {
        "rooms": list(banners),
        "read": start["7"] - 1,
        "algorithm": len([n for n in code if start["3"] <= n < start["7"]]),
        "loop": len([n for n in code if loop.lineno <= n <= loop.end_lineno]),
        "bookkeeping": len([n for n in code if n > start["7"]]),
        "calls": len(re.findall(r"\brun\.", body)),
        "docstring": len(ast.get_docstring(ast.parse(source)).splitlines()),
    }


@pytest.mark.parametrize("script", [*SCRIPTS, "sac_her_continuous"])
def test_size(script):
    size = measure((TESTS.parent / f"{script}.py").read_text(encoding="utf-8"))
    print(script, size)
    on_policy = {"4. Replay buffer": "4. Rollout storage"} if script == "ppo_continuous" else {}
    assert size["rooms"] == [on_policy.get(room, room) for room in ROOMS]
    more = 90 if script == "td3_per_continuous" else 0  # TD3's 380, and a second buffer
    assert size["read"] <= 380 + more, "a reader reaches the bookkeeping after at most 380 lines"
    assert size["docstring"] <= 40
    assert size["algorithm"] <= 190 + more // 5, "code lines of rooms 3 to 6"
    assert size["loop"] <= 50
    assert size["bookkeeping"] <= 200
    assert size["calls"] <= 8, "the loop's uses of the bookkeeping"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script):
    for node in ast.walk(ast.parse((TESTS.parent / f"{script}.py").read_text(encoding="utf-8"))):
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
