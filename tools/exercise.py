# MIT licence. Part of Marginalia.
"""Exercises: write a function of a script yourself, or find the wrong line in one.

    python tools/exercise.py                        # a list of them
    python tools/exercise.py start bellman-target   # a copy of the script without that body
    python tools/exercise.py check bellman-target   # does it pass? if not, a hint

`start` makes a folder exercises/NAME with the copy in it, and never writes over one. `check` puts
the copy into a copy of the project and runs the tests that notice slips in this function. Exit
code 0 is full marks. docs/exercises.md has more, also for those who teach.
"""

import ast
import dataclasses
import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from check_slips import copy_of_the_project
from exercise_probes import EXERCISES, Exercise, slips_of
from slip_tables import ROOT, Slip, on_the_page, read_tables, with_slip

SECONDS = 300  # of all tests together: what a student wrote may never end


@dataclasses.dataclass
class Args:
    action: tyro.conf.Positional[Literal["list", "start", "check"]] = "list"
    """list them, start one, or check what you wrote"""
    name: tyro.conf.Positional[str] = ""
    """of an exercise in the list; or a code of `list --slips`, to find a wrong line"""
    slips: bool = False
    """list the slips of docs/slips.md with their codes: for those who teach"""
    folder: Path = Path("exercises")
    """where the copies are"""
    hint: bool = False
    """also say what is wrong where a line is to be found"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """write the points to this file, as Gradescope's results.json"""


class UseError(ValueError):
    """What the user can put right, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done in one file."""

    name: str
    file: str
    exercise: Exercise | None  # a function to be written,
    slip: Slip | None  # or a line to be found

    def tests(self) -> list[str]:
        """Those that notice the slips of this function, each once."""
        slips = [self.slip] if self.slip else slips_of(self.exercise)
        return list(dict.fromkeys(test for slip in slips for test in slip.tests))


def code_of(slip: Slip) -> str:
    """A name that does not tell what it is. It stays when the tables grow."""
    return hashlib.sha256(f"{slip.name} {slip.file}".encode()).hexdigest()[:6]


def task_of(name: str) -> Task:
    """Raises UseError."""
    if name in EXERCISES:
        return Task(name, EXERCISES[name].file, EXERCISES[name], None)
    for slip in read_tables():
        if name in (code_of(slip), f"{slip.name}:{slip.file}"):
            return Task(code_of(slip), slip.file, None, slip)
    names = ", ".join(EXERCISES)
    raise UseError(f"there is no exercise {name!r}; there are {names}, and codes of list --slips")


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def find(source: str, where: str) -> ast.FunctionDef:
    """The function or method of that name. Raises UseError where there is none."""
    body = ast.parse(source).body
    found: Any = None
    for name in where.split("."):
        found = next((node for node in body if getattr(node, "name", "") == name), None)
        if found is None:
            raise UseError(f"there is no {where} in your file any more")
        body = found.body
    return found


def without_body(source: str, exercise: Exercise) -> str:
    """The script to the letter, but for what this function does."""
    function = find(source, exercise.where)
    docstring, *_ = function.body
    lines = source.splitlines(keepends=True)
    indent = " " * docstring.col_offset
    todo = f'{indent}raise NotImplementedError("{exercise.where} is yours to write")\n'
    return "".join([*lines[: docstring.end_lineno], todo, *lines[function.end_lineno :]])


def show_list(slips: bool) -> None:
    if not slips:
        print("Functions to write:")
        for name, exercise in EXERCISES.items():
            print(f"  {name:20} {exercise.where:31} {exercise.about}")
        print("Lines to find: python tools/exercise.py list --slips")
        return
    for slip in on_the_page(read_tables()):
        print(f"{code_of(slip)}  {slip.file:24} {slip.where:24} {slip.page.title}")


def start(task: Task, folder: Path) -> None:
    """Write the copy. Raises UseError if there is one."""
    path = folder / task.name / task.file
    if path.exists():
        raise UseError(f"{path} is there already: delete it to begin anew")
    source = text_of(task.file)
    if task.slip:
        new = with_slip(task.slip, source)
        about = "has one wrong line before room 7: find it and put it right"
    else:
        new = without_body(source, task.exercise)
        about = f"{task.exercise.where} is yours to write; its docstring says what it computes"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new, encoding="utf-8")
    print(f"{path}: {about}")
    print(f"then: python tools/exercise.py check {task.name}")


def program(source: str) -> str:
    """What Python makes of it, without comments and layout."""
    return ast.dump(ast.parse(source))


def other_changes(task: Task, source: str) -> str:
    """A remark if a line was changed that is not the exercise's; '' if none was."""
    if task.slip:
        return ""
    mine = without_body(source, task.exercise).splitlines()
    original = without_body(text_of(task.file), task.exercise).splitlines()
    for line in difflib.ndiff(original, mine):
        if line[:1] in "-+" and line[1:].strip():
            return f"note: a line outside of {task.exercise.where} was changed: {line[2:].strip()}"
    return ""


def look(task: Task, path: Path) -> dict[str, Any]:
    """What the function does beside the script's own and its slips; see exercise_probes.py."""
    probes = ROOT / "tests" / "exercise_probes.py"
    command = [sys.executable, str(probes), task.name, str(path)]
    nothing: dict[str, Any] = {"right": False, "slips": []}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return nothing | {"says": "your function does not come to an end"}
    if done.returncode != 0 or not done.stdout.strip():
        lines = done.stderr.strip().splitlines() or ["it ended the program"]
        return nothing | {"says": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def by_function(report: Path) -> dict[str, bool]:
    """From pytest's report: for each test function, whether all of its cases passed."""
    passed: dict[str, bool] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        passed[name] = passed.get(name, True) and len(list(case)) == 0
    return passed


def run_tests(task: Task, source: str) -> dict[str, bool]:
    """Test by test, whether it passes with this text in place of the script's."""
    place = copy_of_the_project()
    try:
        (place / task.file).write_text(source, encoding="utf-8")
        report = place / "report.xml"
        options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, "-m", "slow or not slow"]
        try:
            run: dict[str, Any] = {"cwd": place, "capture_output": True, "timeout": SECONDS}
            subprocess.run([*command, *task.tests()], **run)
        except subprocess.TimeoutExpired:
            return {f"all tests within {SECONDS} s": False}
        if not report.exists():
            return {"the tests can be run": False}
        return by_function(report)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_json(path: Path, points: dict[str, bool], says: list[str]) -> None:
    """As Gradescope reads it: a point for each test."""
    tests = [
        {"name": name, "score": int(passed), "max_score": 1, "output": "" if passed else says[0]}
        for name, passed in points.items()
    ]
    path.write_text(json.dumps({"tests": tests}, indent=1), encoding="utf-8")


def hints_of(task: Task, path: Path, source: str, more: bool) -> list[str]:
    """What to say; nothing if it is right as far as this can tell."""
    if task.slip:
        if program(source) != program(with_slip(task.slip, text_of(task.file))):
            return []
        first = f"the wrong line is still there: look at {task.slip.where}"
        return [first, task.slip.why] if more else [first + "; --hint says more"]
    found = look(task, path)
    if found["right"]:
        return []
    why = {slip.name: slip.why for slip in slips_of(task.exercise)}
    return [found["says"], *(f"hint: {why[name]}" for name in found["slips"][:1])]


def check(task: Task, args: Args) -> bool:
    """Say what is right and what is not. Raises UseError."""
    path = args.folder / task.name / task.file
    if not path.is_file():
        raise UseError(f"there is no {path}: python tools/exercise.py start {task.name}")
    source = path.read_text(encoding="utf-8")
    try:
        ast.parse(source)
    except SyntaxError as error:
        raise UseError(f"{path}, line {error.lineno}: {error.msg}") from None
    says = hints_of(task, path, source, args.hint)
    written = not any("is yours to write" in line for line in says)
    points = {"it is written": False} if not written else run_tests(task, source)
    if task.exercise:
        points["it computes what the script computes"] = not says
    right = all(points.values())
    if not right and not says:
        says = [f"some tests fail; {task.slip.where} is the place" if task.slip else "tests fail"]
    if remark := other_changes(task, source):
        says.append(remark)
    for name, passed in points.items():
        print(f"{'passed' if passed else 'FAILED'}  {name}")
    print(*says, sep="\n", end="\n" if says else "")
    print(f"{task.name}: {sum(points.values())} of {len(points)}")
    if args.json:
        write_json(args.json, points, says or [""])
    return right


def main(args: Args) -> int:
    try:
        if args.action == "list":
            show_list(args.slips)
            return 0
        if not args.name:
            raise UseError(f"{args.action} needs the name of an exercise: see list")
        task = task_of(args.name)
        if args.action == "start":
            start(task, args.folder)
            return 0
        return 0 if check(task, args) else 1
    except UseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(tyro.cli(Args, description=__doc__)))
