"""What a script refuses: one message, and nothing is written."""

import importlib
import sys
import typing

import pytest
import torch
from helpers import (
    SCRIPTS,
    each_kind,
    metrics,
    one,
    run,
)


@each_kind
@pytest.mark.parametrize(
    "env_id, culprit",
    [
        ("worlds:Odd-discrete-v0", "acts in Discrete(2): actions must be continuous"),
        ("worlds:Odd-unbounded-v0", "acts in Box(-inf, inf, (2,), float32): actions need finite"),
        ("worlds:Odd-image-v0", "observes images, Box(0, 255, (8, 8, 3), uint8)"),
        ("Blackjack-v1", "observes Tuple("),
        ("worlds:Odd-dictionary-v0", "use sac_her_continuous.py"),
        ("NoSuch-v0", "`NoSuch` doesn't exist"),
        ("worlds:NoSuch-v0", "`NoSuch` doesn't exist"),
        ("Pendulum-v99", "`v1`"),
        ("Pendulum-v0", "`Pendulum-v1`"),
        ("Pendulum v1", "Malformed"),
        ("no_such_package:Env-v0", "No module named 'no_such_package'"),
        ("worlds:Endless:v0", ""),
        (":Pendulum-v1", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gymnasium's, before it refuses an age
def test_unfit_environment(env_id, culprit, refused_command):
    message = refused_command("--env-id", env_id)
    assert env_id in message and culprit in message


@each_kind
def test_mujoco_missing(refused_command, monkeypatch):
    """The message says what to install."""
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    message = refused_command("--env-id", "Hopper-v5")
    assert "Hopper-v5" in message and 'pip install "gymnasium[mujoco]"' in message


def wrong_numbers():
    """Beyond each limit of every flag, in the first script that has it; and what is no number."""
    seen = set()
    for name in SCRIPTS:
        module = importlib.import_module(name)
        for flag, kind in typing.get_type_hints(module.Args, include_extras=True).items():
            if typing.get_origin(kind) is typing.Annotated and flag not in seen:
                number, (low, high) = typing.get_args(kind)
                wrong = {int: [low - 1, high + 1, "1.5", "many"]}
                wrong[float] = [low - 0.1, high * 1.001, "nan", "inf", "much"]
                for value in wrong[number]:
                    yield name, "--" + flag.replace("_", "-"), value
                seen.add(flag)


@pytest.mark.slow_but("-0]", "0.1]", "nan]", "many]")
@pytest.mark.parametrize("script, flag, value", list(wrong_numbers()), indirect=["script"])
def test_wrong_number(flag, value, refused_command):
    message = refused_command(flag, value)
    assert flag in message and str(value) in message


ZERO_IS_WRONG = {"total_timesteps", "num_threads", "hidden_dim", "batch_size", "buffer_size"}
ZERO_IS_WRONG |= {"policy_frequency", "num_envs", "num_steps", "update_epochs", "num_minibatches"}
SHARES = {"gamma", "tau", "gae_lambda", "per_alpha", "per_beta"}


def test_limits(module):
    """Every number has some, and they are sensible."""
    for flag, kind in typing.get_type_hints(module.Args, include_extras=True).items():
        number = typing.get_args(kind)[0] if typing.get_args(kind) else kind
        if number in (int, float):
            assert typing.get_origin(kind) is typing.Annotated, f"--{flag} has no limits"
            low, high = typing.get_args(kind)[1]
            assert low == (flag in ZERO_IS_WRONG) and (high == 1) == (flag in SHARES), flag


@one
@pytest.mark.parametrize(
    "flags",
    [
        "--batch-size 20 --buffer-size 10",
        "--device tpu",
        "--device meta",
        "--device cuda:99",
        *(
            f"--device {name}"
            for name in ("cuda", "mps")
            if not getattr(torch, name).is_available()
        ),
        "--total-timestep 10",
        "--track yes",
        "--capture-video",
        "--tensorboard",
    ],
)
def test_wrong_flag(flags, refused_command):
    """The message repeats what was wrong."""
    words = set(flags.split()) - {"--track"}  # right, but it takes no such value
    message = refused_command(*flags.split())
    assert all(word in message for word in words)


@one
def test_alpha_zero_cannot_be_tuned(refused_command):
    assert "--no-autotune" in refused_command("--alpha", 0)


@each_kind
@pytest.mark.parametrize("below", ["", "further/below"])
def test_runs_dir_that_cannot_be_made(below, refused_command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in refused_command("--runs-dir", tmp_path / "file" / below)


@each_kind
def test_missing_extra(refused_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused_command("--track")
    assert "--track" in message and "pip install wandb" in message


@each_kind
def test_track_without_an_account(failed_run, monkeypatch):
    import wandb

    def init(**kwargs):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", init)
    message = failed_run(track=True)
    assert "--track" in message and "wandb login" in message


@pytest.mark.slow_but("ppo_continuous")
@each_kind
def test_a_refusal_as_the_user_sees_it(script, tmp_path):
    done = run(script, "--env-id", "CartPole-v1", "--runs-dir", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: CartPole-v1 acts in Discrete(2)")
    assert not list(tmp_path.iterdir())


def test_zero_is_off(tiny_run, module):
    """Where a flag's help says so, or where nothing is a fair amount."""
    off = "eval_frequency checkpoint_frequency log_frequency max_grad_norm learning_starts alpha"
    off = dict.fromkeys(off.split(), 0) | {"autotune": False}
    off = {name: value for name, value in off.items() if hasattr(module.Args, name)}
    (row,) = metrics(tiny_run(**off)["run_dir"])
    assert row["global_step"] == "60" and row["eval_episodes"] == "1"
    assert float(row.get("alpha", 0)) == 0 and row.get("temperature_loss", "") == ""
    if hasattr(module.Args, "updates_per_step"):
        assert len(metrics(tiny_run(**off | {"updates_per_step": 0})["run_dir"])) == 1
