"""What a script defines, for the reference: names, signatures, docstrings, lines, room by room.

It reads the text of a script and imports nothing.
"""

import ast
import dataclasses
import functools
import re
from pathlib import Path

from script_text import PAPER

# Scripts in the order in which the home of a shared definition is looked for.
ORDER = "sac_continuous td3_continuous ddpg_continuous ppo_continuous sac_v1_value_net".split()
ORDER += "td3_per_continuous sac_her_continuous her_utils".split()
SHAPE = r"\((?:[A-Z.]+(?:, ?[A-Z]+)*,?|\.\.\.(?:, ?[A-Z0-9]+)*,?)?\)"  # (B,), (T, N), (..., 3), ()
SHAPES = re.compile(rf"{SHAPE}(?:, {SHAPE})* -> {SHAPE}(?:, {SHAPE})*")


@dataclasses.dataclass
class Field:
    """A flag of Args, or a column of a NamedTuple."""

    name: str
    kind: str  # its type, as it is written
    default: str  # as it is written; '' if there is none
    about: str


@dataclasses.dataclass
class Definition:
    name: str  # Actor, Actor.sample
    room: str  # 3. Networks; '' in a file without rooms
    lines: range  # the numbers of its lines, with decorators
    signature: str  # def soft_value(q1: Tensor, ...) -> Tensor
    docstring: str
    plain: str  # its text without the papers that it cites, which differ between scripts
    fields: list[Field] = dataclasses.field(default_factory=list)
    methods: list["Definition"] = dataclasses.field(default_factory=list)


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The head of a definition in one line; of a class with the arguments of its constructor."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        text = f"def {node.name}({ast.unparse(node.args)}){returns}"
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        text = "\n".join([*(f"@{decorator}" for decorator in decorators), text])
    else:
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        text = f"class {node.name}({bases})" if bases else f"class {node.name}"
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                text += f"\n{node.name}({ast.unparse(part.args)})".replace("(self, ", "(")
    return text.replace("'", '"').replace("(self, ", "(").replace("(self)", "()")


class Definitions:
    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        self.text = text
        self.lines = text.splitlines()
        tree = ast.parse(text)
        self.summary = ast.get_docstring(tree).splitlines()[0]
        self.aliases = {}  # the name of a type and what it stands for: Share, Annotated[...]
        self.found = []
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.aliases[node.targets[0].id] = ast.unparse(node.value)
            if isinstance(node, ast.ImportFrom) and (path.parent / f"{node.module}.py").exists():
                self.aliases |= definitions(path.parent / f"{node.module}.py").aliases
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.found.append(self.definition(node, node.name))
        self.by_name = {one.name: one for one in self.found}
        for one in self.found:
            self.by_name |= {method.name: method for method in one.methods}

    def definition(self, node: ast.FunctionDef | ast.ClassDef, name: str) -> Definition:
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        lines = range(first, node.end_lineno + 1)
        plain = "\n".join(self.lines[first - 1 : node.end_lineno])
        one = Definition(
            name=name,
            room=self.room(first),
            lines=lines,
            signature=signature(node),
            docstring=ast.get_docstring(node) or "",
            plain=PAPER.sub("", plain),
        )
        if isinstance(node, ast.ClassDef):
            one.fields = self.fields(node)
            seen = {"__init__"}
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name not in seen:
                    seen.add(part.name)  # a property's setter has the name of the property
                    one.methods.append(self.definition(part, f"{name}.{part.name}"))
        return one

    def room(self, number: int) -> str:
        """The banner above a line."""
        for line in reversed(self.lines[:number]):
            if banner := re.match(r"# === (\d\. .*?) =+$", line):
                return banner[1]
        return ""

    def fields(self, node: ast.ClassDef) -> list[Field]:
        """What is declared in the class: with a docstring below, or a comment behind."""
        found = []
        body = [*node.body, None]
        for part, after in zip(body, body[1:], strict=False):
            if not isinstance(part, ast.AnnAssign):
                continue
            about = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                about = after.value.value
            elif "#" in self.lines[part.lineno - 1]:
                about = self.lines[part.lineno - 1].partition("#")[2].strip()
            kind = ast.unparse(part.annotation).replace("'", '"')
            default = ast.get_source_segment(self.text, part.value) if part.value else ""
            found.append(Field(part.target.id, kind, default, about))
        return found

    def limits(self, kind: str) -> str:
        """In words what a flag may be: `Share` is a number from 0 to 1."""
        kind = self.aliases.get(kind, kind).replace("'", '"')
        if match := re.fullmatch(r"Annotated\[(\w+), \((.+), (.+)\)\]", kind):
            number = {"int": "whole number", "float": "number"}[match[1]]
            return f"{number}, {power(match[2])} to {power(match[3])}"
        if match := re.fullmatch(r"Literal\[(.+)\]", kind):
            return match[1].replace('"', "")
        return {"str": "text", "bool": "on or off"}.get(kind, kind)


def power(number: str) -> str:
    """10 ** 12 as 10^12, 10000 as 10,000."""
    if number.isdigit():
        return f"{int(number):,}"
    return number.replace(" ", "").replace("**", "^")


@functools.cache
def read(path: Path, changed: float) -> Definitions:
    return Definitions(path)


def definitions(path: Path) -> Definitions:
    """Of a script, read again where the file has changed."""
    return read(path, path.stat().st_mtime)


def home(root: Path, script: str, name: str) -> str:
    """The first script that has the same definition to the letter but for papers."""
    plain = definitions(root / f"{script}.py").by_name[name].plain
    for other in ORDER:
        found = definitions(root / f"{other}.py").by_name.get(name)
        if found is not None and found.plain == plain:
            return other
    return script
