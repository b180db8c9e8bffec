"""The pages of docs/ that describe files and programs, held against real runs."""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import helpers
import numpy as np
import pages
import pytest
import torch
import tyro
from pages import rows, section

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
    return pages.TEXTS[pages.ROOT / "docs" / name]


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
        own: dict[str, Any] = {"env_id": "Pendulum-v1"}
        if script == "sac_her_continuous":
            own = {"env_id": "PointReach-v0", "max_episode_steps": 10}
        folder = tmp_path_factory.mktemp(script)
        args = module.Args(**helpers.TINY[script] | own | {"runs_dir": str(folder)})
        found[script] = module.train(args)["run_dir"]
    return found


# --- files.md -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_files_of_a_run(runs):
    table = rows(page("files.md").partition("## args.json")[0])
    for folder in runs.values():
        assert sorted(os.listdir(folder)) == sorted(code(row[0])[0] for row in table)


@pytest.mark.slow_but("sac_continuous")
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


# --- tuning.md ----------------------------------------------------------------------------------

TUNING = {
    "SAC, SAC with a value network": ["sac_continuous", "sac_v1_value_net"],
    "DDPG, TD3, TD3 with prioritised replay": [
        "ddpg_continuous",
        "td3_continuous",
        "td3_per_continuous",
    ],
    "PPO": ["ppo_continuous"],
    "Hindsight": ["sac_her_continuous"],
}


@pytest.mark.parametrize("title", TUNING)
def test_what_shows_a_wrong_setting(title, runs):
    """Flags and columns that the algorithms of a section have."""
    flags, columns = set(), set()
    for script in TUNING[title]:
        args = importlib.import_module(script).Args
        flags.update("--" + field.name.replace("_", "-") for field in dataclasses.fields(args))
        columns.update((runs[script] / "metrics.csv").read_text().splitlines()[0].split(","))
    table = rows(section(page("tuning.md"), title))
    assert len(table) >= 3
    for row in table:
        assert set(code(row[1])) <= flags, row
        assert set(code(row[3]) + code(row[4])) <= columns, row


# --- programs -----------------------------------------------------------------------------------


def programs_of(name: str) -> list[str]:
    """The Python of a page, block by block."""
    return pages.blocks(page(name), "python")


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory) -> Path:
    """A folder with a short run of SAC in runs/, as the pages' programs expect it."""
    folder = tmp_path_factory.mktemp("pendulum")
    flags = helpers.QUICK["sac_continuous"]
    helpers.train("sac_continuous", *flags, "--hidden-dim=256", f"--runs-dir={folder / 'runs'}")
    return folder


def run_blocks(programs: list[str], names: dict | None = None) -> dict:
    """Run them one after the other, as a reader pastes them. What they define."""
    names = {"__name__": "page"} if names is None else names
    for program in programs:
        exec(compile(program, "page", "exec"), names)
    return names


def test_the_files_load_in_plain_pytorch(pendulum, monkeypatch, capsys):
    monkeypatch.chdir(pendulum)
    run_blocks(programs_of("files.md"))
    printed = capsys.readouterr().out
    assert "actor.net.0.weight (256, 3)" in printed
    assert printed.endswith("240 0.99\n(240, 9)\n")


@pytest.mark.slow
def test_a_policy_without_its_script(pendulum, monkeypatch, capsys):
    """policy.md up to the export: the same actions as the script's, and an episode."""
    monkeypatch.chdir(pendulum)
    programs = programs_of("policy.md")[:4]
    names = run_blocks(programs)
    obs = torch.randn(7, 3) * torch.tensor([1, 1, 8])
    expected = names["actor"](obs)
    assert expected.std() > 1e-3
    assert torch.allclose(names["act"](obs), expected, atol=1e-6)
    # The first episode of the run's only evaluation, which had this start.
    with open(names["run"] / "metrics.csv") as file:
        last = file.read().splitlines()[-1].split(",")
    printed = float(capsys.readouterr().out.splitlines()[-1])
    assert printed == pytest.approx(float(last[6]), rel=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_kind_of_actor(script, runs):
    """The page's ten lines act as the actor of every script."""
    wanted = [b for b in programs_of("policy.md") if re.search("def (layers|act_ppo)", b)]
    names = run_blocks(wanted, {"torch": torch})
    module = importlib.import_module(script)
    about = json.loads((runs[script] / "args.json").read_text(encoding="utf-8"))
    names["weights"] = torch.load(runs[script] / "model.pt", weights_only=True)
    obs_dim, action_dim = (9, 3) if script == "sac_her_continuous" else (3, 1)
    settings = {f.name: about[f.name] for f in dataclasses.fields(module.Args)}
    agent = module.Agent(obs_dim, action_dim, module.Args(**settings))
    agent.load_state_dict(names["weights"])
    obs = 2 * torch.randn(50, obs_dim)
    expected = agent.actor(obs)
    kinds = {"sac": "act", "td3": "act_deterministic", "ddpg": "act_deterministic"}
    act = names[kinds.get(script.split("_")[0], "act_ppo")]
    assert torch.allclose(act(obs), expected, atol=1e-6) and expected.std() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sac_continuous", "td3_continuous", "ppo_continuous"])
def test_exports(script, tmp_path, monkeypatch):
    """Both of them, for each of the three kinds of actor: the exported one agrees with it."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(script)
    actor = module.Actor(5, 2, 16)
    with torch.no_grad():
        for tensor in actor.state_dict().values():
            if tensor.ndim > 0:
                tensor.copy_(
                    0.2 + 0.3 * torch.rand(tensor.shape) * torch.randn(tensor.shape).sign()
                )
    assert actor.state_dict()["net.0.weight"].std() > 0.1
    env = module.gym.Env()
    env.observation_space = module.gym.spaces.Box(-1, 1, (5,))
    names = {"torch": torch, "actor": actor, "env": env}
    for program in programs_of("policy.md"):
        if "torch.export.save" in program or ("onnx" in program and can_onnx()):
            run_blocks([program], names)
    obs = torch.randn(6, 5)
    expected = actor(obs).detach()
    assert expected.std() > 1e-4
    assert torch.equal(names["policy"](obs), expected)
    if not can_onnx():
        pytest.skip("ONNX is missing: pip install -r requirements-onnx.txt")
    (acted,) = names["session"].run(None, {"obs": obs.numpy()})
    assert torch.allclose(torch.from_numpy(acted), expected, atol=1e-6)


def can_onnx() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


SHORTER = {"5_000": "200", "6_000": "240", "eval_frequency=1_000": "eval_frequency=100"}
SHORTER |= {"Args(": "Args(learning_starts=150, eval_episodes=1, hidden_dim=16, batch_size=16, "}


def test_the_notebook(tmp_path, monkeypatch, capsys):
    """Its cells one after the other, with fewer steps. A formula of one's own takes effect."""
    import sac_continuous

    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    formula = sac_continuous.soft_value
    programs = []
    for block in programs_of("notebooks.md"):
        for old, new in SHORTER.items():
            block = block.replace(old, new)
        programs.append(block)
    names = run_blocks(programs)
    assert names["steps"] == [100, 200] and len(names["returns"]) == 2
    assert names["results"]["global_step"] == 240
    assert sac_continuous.soft_value is formula
    folders = [names[run]["run_dir"] for run in ("results", "without_minimum")]
    agents = [torch.load(folder / "model.pt", weights_only=True) for folder in folders]
    assert not torch.equal(agents[0]["q1.net.0.weight"], agents[1]["q1.net.0.weight"])
    # log N(u; u, 1) - log(1 - tanh(u)^2) where the slope is 1, and at u = 10.
    printed = re.findall(r"tensor\(\[(.*?)\]\)", capsys.readouterr().out)[0]
    first, _, last = (float(number) for number in printed.split(","))
    assert first == pytest.approx(-0.9189, abs=1e-4)
    assert last == pytest.approx(-0.9189 + 18.6137, abs=1e-3)


def test_several_seeds(tmp_path, monkeypatch, capsys):
    """seeds.md: its numbers of a folder of runs, and the table that it prints."""
    monkeypatch.chdir(tmp_path)
    returns = {"sac_continuous": [3.0, 1, 2, 9, 4], "td3_continuous": [1.0, 8, 2, 3, 4, 5, 6, 7]}
    for script, values in returns.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "runs" / f"Task-v0__{script}__{seed}__1.0"
            folder.mkdir(parents=True)
            table = f"global_step,eval_return_mean\n1,-5\n2,{value}\n3,\n"
            (folder / "metrics.csv").write_text(table)
    first, simulation, comparison = programs_of("seeds.md")
    names = run_blocks([first])
    printed = capsys.readouterr().out
    assert names["finals"] == returns
    middle = names["interquartile_mean"]
    assert middle(returns["td3_continuous"]) == pytest.approx((3 + 4 + 5 + 6) / 4)
    assert middle(returns["sac_continuous"]) == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)
    assert middle([7.0]) == 7
    assert re.search(r"^sac_continuous: 3.0 \[1\.\d, \d\.\d\], n = 5$", printed, re.MULTILINE)
    run_blocks([simulation])
    assert capsys.readouterr().out in page("seeds.md")
    run_blocks([comparison], names)
    low, high = names["difference"](np.array([5.0, 6, 7]), np.array([1.0, 2, 3]))
    assert 2 <= low < 4 < high <= 6
    assert names["chance_of_more"]([1, 3], [2, 1]) == (0 + 0.5 + 1 + 1) / 4


# --- commands -----------------------------------------------------------------------------------


def run_short(command: str, folder: Path) -> dict:
    """A script's command line with its own flags, but a run of a second."""
    name, *words = shlex.split(re.sub(r"\$(seed|alpha)\b", "1", command))
    module = importlib.import_module(name.removesuffix(".py"))
    args = tyro.cli(module.Args, args=words)
    short: dict[str, Any] = {
        "total_timesteps": 120,
        "hidden_dim": 8,
        "eval_frequency": 0,
        "eval_episodes": 1,
    }
    short |= {"checkpoint_frequency": 0, "runs_dir": str(folder), "compile": False, "track": False}
    if hasattr(args, "num_steps"):
        size = max(1, args.num_minibatches // args.num_envs)
        short |= {"num_steps": size, "total_timesteps": 2 * size * args.num_envs}
        short |= {"update_epochs": min(2, args.update_epochs)}
    else:
        short |= {"learning_starts": 100, "batch_size": 8, "buffer_size": 1000}
    if name == "sac_her_continuous.py":
        short |= {"max_episode_steps": args.max_episode_steps or 20}
    return module.train(dataclasses.replace(args, **short))


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the page of environments shows, from which Python imports."""
    for block in programs_of("environment.md"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")  # which the page mentions
def test_an_environment_of_your_own_is_checked(written, capsys):
    """By gymnasium, without another warning, and as the scripts see it."""
    (check,) = [block for block in programs_of("environment.md") if "check_env" in block]
    run_blocks([check])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(r"return -\d+\.\d in \d+ steps, largest number .* \d+\.\d", line)


def own_commands() -> list[str]:
    found = [c for c in pages.commands(page("environment.md")) if "--env-id my_" in c]
    return [c for c in found if "my_module:MyEnv" not in c]


@pytest.mark.parametrize("command", own_commands())
def test_an_environment_of_your_own_trains(command, written):
    results = run_short(command, written / "runs")
    about = json.loads((results["run_dir"] / "args.json").read_text(encoding="utf-8"))
    assert about["env_id"].partition(":")[0] in ("my_module", "my_goals", "my_tasks")
    assert ("eval_success_rate" in results) == ("my_goals" in about["env_id"])


def test_the_old_interface_is_converted(written):
    """The page's wrapper, around a task with the interface that it speaks of."""

    class OldTask:
        def seed(self, seed):
            self.start = seed % 7

        def reset(self):
            self.time = 0
            return np.array([self.start, 0, 0], np.float32)

        def step(self, action):
            self.time += 1
            cut = self.time == 5
            info = {"TimeLimit.truncated": True} if cut else {}
            return np.array([0, self.time, 0], np.float32), 1.0, cut or self.start == 3, info

    (program,) = [block for block in programs_of("environment.md") if "class Converted" in block]
    names = run_blocks([program], {"__name__": "page", "gym": gym, "np": np, "OldTask": OldTask})
    env = names["Converted"]()
    obs, _ = env.reset(seed=8)
    assert obs.tolist() == [1, 0, 0]
    flags = [env.step(np.zeros(1))[2:4] for _ in range(5)]
    assert flags == [(False, False)] * 4 + [(False, True)]
    env.reset(seed=3)
    assert env.step(np.zeros(1))[2:4] == (True, False)


# Commands that cannot be run here, and why.
NOT_RUN = {
    "--resume": "goes on with a run; tests/test_checkpoints.py does that",
    "MyEnv-v0": "stands for an environment of the reader's",
    "dm_tasks": "needs Shimmy, which needs another MuJoCo",
    "BipedalWalker": "needs Box2D",
    "--help": "prints and ends",
}
SHOWN = [c for c in pages.COMMANDS if "/" not in c.split()[0]]
RUN = [c for c in SHOWN if not any(word in c for word in NOT_RUN)]


def test_what_is_not_run_is_shown():
    for word in NOT_RUN:
        assert any(word in command for command in SHOWN), word
    assert len(RUN) > 50


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_every_command_runs(command, written):
    """Of all pages, with their own flags but fewer steps."""
    run_short(command, written / "runs")
