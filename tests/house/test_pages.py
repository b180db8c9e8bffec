"""The pages of docs/ that describe files and programs, held against real runs."""

import dataclasses
import importlib
import json
import os
import re
from pathlib import Path

import helpers
import pytest
import torch

ROOT = helpers.TESTS.parent
DOCS = ROOT / "docs"
SCRIPTS = [*helpers.SCRIPTS, "sac_her_continuous"]
# What the pages call the scripts.
NAMES = {
    "SAC": "sac_continuous",
    "hindsight": "sac_her_continuous",
    "SAC v1": "sac_v1_value_net",
    "value network": "sac_v1_value_net",
    "TD3": "td3_continuous",
    "prioritised": "td3_per_continuous",
    "DDPG": "ddpg_continuous",
    "PPO": "ppo_continuous",
}
GROUPS = {"all": SCRIPTS, "off-policy": [name for name in SCRIPTS if name != "ppo_continuous"]}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its kind."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without their heads."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in block.splitlines()[2:]:
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def scripts_of(cell: str) -> list[str]:
    """The scripts that a cell names."""
    if cell in GROUPS:
        return GROUPS[cell]
    return [NAMES[name] for name in cell.split(", ")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_tables_are_read():
    text = "## A\n| x | y |\n|---|---|\n| `a`, `b` | 1 \\| 2 |\n\n## B\n| z |\n|---|\n| c |\n"
    assert rows(section(text, "A")) == [["`a`, `b`", "1 \\| 2"]]
    assert rows(section(text, "B")) == [["c"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The folder of a tiny run of every script."""
    found = {}
    for script in SCRIPTS:
        module = importlib.import_module(script)
        own = {"env_id": "Pendulum-v1"}
        if script == "sac_her_continuous":
            own = {"env_id": "PointReach-v0", "max_episode_steps": 10}
        folder = tmp_path_factory.mktemp(script)
        args = module.Args(**helpers.TINY[script] | own | {"runs_dir": str(folder)})
        found[script] = module.train(args)["run_dir"]
    return found


# --- files.md -----------------------------------------------------------------------------------


def test_the_files_of_a_run(runs):
    table = rows(page("files.md").partition("## args.json")[0])
    for folder in runs.values():
        assert sorted(os.listdir(folder)) == sorted(code(row[0])[0] for row in table)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_name_of_the_folder(script, runs):
    example = re.findall(r"`runs/(.*?)`", page("files.md"))[0]
    parts, shown = runs[script].name.split("__"), example.split("__")
    assert len(parts) == len(shown) == 4
    assert parts[1] == script and shown[:3] == ["Pendulum-v1", "sac_continuous", "1"]
    assert all(re.fullmatch(r"\d+\.\d{6}", time) for time in (parts[3], shown[3]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_args_json(script, runs):
    about = json.loads((runs[script] / "args.json").read_text(encoding="utf-8"))
    flags = [field.name for field in dataclasses.fields(importlib.import_module(script).Args)]
    table = rows(section(page("files.md"), "args.json"))
    assert list(about) == flags + [code(row[0])[0] for row in table]
    for row in table:
        kind = {"text": str, "number": int}[row[1]]
        assert type(about[code(row[0])[0]]) is kind


@pytest.mark.parametrize("script", SCRIPTS)
def test_model_pt(script, runs):
    """Every name begins with a row's, each row of the script is needed, and layers have sizes."""
    table = rows(section(page("files.md"), "model.pt and best_model.pt"))
    known = {name for row in table if script in scripts_of(row[1]) for name in code(row[0])}
    for file in ("model.pt", "best_model.pt"):
        weights = torch.load(runs[script] / file, weights_only=True)
        used = set()
        for name in weights:
            matching = [start for start in known if f"{name}.".startswith(f"{start}.")]
            assert len(matching) == 1, name
            used.update(matching)
        assert used == known
    words = {code(row[0])[0]: row[2] for row in table if script in scripts_of(row[1])}
    adam = next(text for text in words.values() if text.startswith("Adam"))
    for name in weights:
        head, _, part = name.rpartition(".")
        if "optimizer" in head and script != "ppo_continuous":
            assert f"`{re.sub('[0-9]+', '0', part)}`" in adam, name
        if head.endswith("moments"):
            assert f"`{part}`" in words[head]
    stochastic = script in ("sac_continuous", "sac_her_continuous", "sac_v1_value_net")
    action = 3 if script == "sac_her_continuous" else 1
    obs = 9 if script == "sac_her_continuous" else 3
    sizes = [(8, obs), (8, 8), (action * (2 if stochastic else 1), 8)]
    assert [tuple(weights[f"actor.net.{n}.weight"].shape) for n in (0, 2, 4)] == sizes


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoint_pt(script, runs):
    """Every key with its type, and no row without a key."""
    table = rows(section(page("files.md"), "checkpoint.pt"))
    types = {code(row[0])[0]: row[2] for row in table if script in scripts_of(row[1])}
    checkpoint = torch.load(runs[script] / "checkpoint.pt", weights_only=True)
    found = {}

    def walk(content, path: str) -> None:
        for key, value in content.items():
            name = f"{path}{key}"
            found[name] = type(value).__name__
            inner = [other for other in types if other.startswith(f"{name}.")]
            if inner:
                walk(value, f"{name}.")

    walk(checkpoint, "")
    assert found == types
    weights = torch.load(runs[script] / "model.pt", weights_only=True)
    helpers.same(checkpoint["parts"]["agent"], weights)
    about = json.loads((runs[script] / "args.json").read_text(encoding="utf-8"))
    assert checkpoint["args"].items() <= about.items()
    assert all(
        isinstance(value, torch.Tensor) for value in checkpoint["progress"]["metrics"].values()
    )
    assert all(isinstance(row, dict) for row in checkpoint["rows"])


# --- metrics.md ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_columns_of_each_script(script, runs):
    """metrics.md gives each script the columns that it writes, and no other."""
    text = page("metrics.md")
    explained = {code(row[0])[0] for row in rows(section(text, "In every script"))}
    families = {
        "SAC, SAC with hindsight, SAC with a value network": "SAC hindsight value-network",
        "DDPG, TD3, TD3 with prioritised replay": "DDPG TD3 prioritised",
    }
    for title, members in families.items():
        everybody = [NAMES[name.replace("-", " ")] for name in members.split()]
        for row in rows(section(text, title)):
            having = everybody if row[1] == "all three" else scripts_of(row[1])
            if script in having:
                explained.update(code(row[0]))
    if script == "ppo_continuous":
        explained.update(code(row[0])[0] for row in rows(section(text, "PPO")))
    header = (runs[script] / "metrics.csv").read_text().splitlines()[0]
    assert explained == set(header.split(","))
