# MIT licence. Part of Marginalia.
"""A script with a slip in it, as a module; and a mark of the text that was run."""

import ast
import contextlib
import hashlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[2]))
from slip_tables import ROOT, Slip, with_slip

HERE = Path(__file__).resolve().parent


def script_of(slip: Slip) -> str:
    """The script that is run: her_utils.py is no program."""
    return "sac_her_continuous" if slip.file == "her_utils.py" else Path(slip.file).stem


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def algorithm_of(source: str) -> str:
    """What a script computes: without imports, comments, docstrings and bookkeeping."""
    begin = max(source.find("# === 2."), 0)  # her_utils.py has no rooms
    tree = ast.parse(source[begin:].partition("# === 7.")[0])
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not is_text(part)]
    return ast.dump(tree)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def source_of(name: str) -> str:
    """The text of a function in measure.py, which is part of what was run."""
    text = (HERE / "measure.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(text, node) + "\n"
    raise LookupError(f"measure.py has no {name}")


def mark_of(slip: Slip, measure: str) -> str:
    """Of one measurement of a slip."""
    return mark(script_of(slip), slip, source_of(measure))


def mark(script: str, slip: Slip | None, measured: str) -> str:
    """Twelve characters that change when what is computed does: script, slip, or measurement."""
    parts = [algorithm_of(text_of(f"{script}.py")), measured]
    if script == "sac_her_continuous":
        parts.append(algorithm_of(text_of("her_utils.py")))
    if slip is not None:
        parts += [slip.where, slip.right, slip.wrong]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def module_from(name: str, source: str) -> types.ModuleType:
    """A text as a module of that name. While it is in use it has to be in sys.modules."""
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / f"{name}.py")
    sys.modules[name] = module  # dataclasses look there
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def module_with(script: str, slip: Slip | None) -> Iterator[types.ModuleType]:
    """The script's module, with the slip in it or in her_utils, in place of the one there is."""
    before = {name: sys.modules.pop(name, None) for name in (script, "her_utils")}
    try:
        if slip is not None:
            module_from(Path(slip.file).stem, with_slip(slip, text_of(slip.file)))
        yield importlib.import_module(script)
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
