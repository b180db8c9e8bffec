"""A script on its own: under any name, with the requirements that its header declares."""

import ast
import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro
from helpers import (
    OFF_POLICY,
    QUICK,
    TESTS,
    main,
    metrics,
    run_dir,
    same_training,
    scripts,
    source,
)
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

FINAL = re.compile(
    r"final eval_return_mean=(?P<mean>\S+) eval_return_std=(?P<std>\S+) eval_episodes=(?P<n>\d+)"
    r".* global_step=(?P<step>\d+) seconds=(?P<seconds>\S+) run_dir=(?P<run_dir>.+)"
)


@scripts(
    "sac_continuous",
    "ppo_continuous",
    *(pytest.param(name, marks=pytest.mark.slow) for name in OFF_POLICY[1:]),
)
@pytest.mark.slow
def test_a_copy_runs_alone(script, module, tmp_path):
    """Under any name, in an empty folder; and a process of its own comes to the same weights."""
    name = "my homework.py"
    shutil.copy(source(script), tmp_path / name)
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": without, "capture_output": True, "text": True}
    flags = [*QUICK[script], "--seed", "3"]
    done = subprocess.run([sys.executable, name, *flags], timeout=120, **options)
    assert done.returncode == 0, done.stderr

    final = FINAL.fullmatch(done.stdout.splitlines()[-1])
    assert final, done.stdout
    folder = tmp_path / final["run_dir"]
    last = metrics(folder)[-1]
    assert folder == run_dir(tmp_path / "runs") and "my-homework" in folder.name
    assert (final["step"], final["n"]) == ("240", "1") and float(final["seconds"]) > 0
    assert final["mean"] == last["eval_return_mean"] and final["std"] == last["eval_return_std"]

    args = tyro.cli(module.Args, args=[*flags, "--runs-dir", str(tmp_path / "here")])
    same_training(module.train(args), {"run_dir": folder})


def text(script):
    return Path(source(script)).read_text(encoding="utf-8")


def declared(script):
    """The script's PEP 723 block."""
    block = re.search(r"(?ms)^# /// script\n(.*?)^# ///$", text(script))[1]
    return tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))


def test_declared_requirements(script):
    """Every pin of requirements.txt is within the block's ranges, torch's the very same."""
    block = declared(script)
    assert SpecifierSet(block["requires-python"]).contains(platform.python_version())
    ranges = {r.name: r.specifier for r in map(Requirement, block["dependencies"])}
    lines = (TESTS.parent / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {pin.name: str(pin.specifier) for pin in pins}
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        assert pin.startswith("==") and ranges[name].contains(pin[2:]), name
    assert str(ranges["torch"]) == pins["torch"]


def test_imports_are_declared(script):
    known = {Requirement(line).name for line in declared(script)["dependencies"]}
    known |= sys.stdlib_module_names
    for node in ast.parse(text(script)).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= known


def test_help_shows_every_flag(script, module, capsys):
    with pytest.raises(SystemExit) as stop:
        main(script, "--help")
    assert stop.value.code == 0
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    tree = ast.parse(text(script))
    (body,) = (node.body for node in tree.body if getattr(node, "name", "") == "Args")
    assert len(body) == 2 * len(dataclasses.fields(module.Args)), "every flag has its text"
    for field, about in zip(body[::2], body[1::2], strict=True):
        assert "--" + field.target.id.replace("_", "-") in shown
        assert re.sub(r"\s+", "", about.value.value) in shown
