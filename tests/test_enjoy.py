"""tools/enjoy.py shows the policy that a run has learnt, and repeats its evaluation exactly."""

import functools
import importlib
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import enjoy
import gymnasium as gym
import helpers
import imageio_ffmpeg
import keep_policy
import numpy as np
import pygame
import pytest
import torch
import worlds
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image, ImageSequence

SAC_FLAGS = helpers.QUICK["sac_continuous"]
SCREENS = "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> Callable:
    """What train() of a script returns after a short run with two episodes of evaluation."""

    @functools.cache
    def once(script: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("runs")
        flags = *helpers.QUICK[script], "--eval-episodes=2", f"--runs-dir={folder}"
        return helpers.train(script, *flags) | {"script": script}

    return once


@pytest.fixture
def trained(request, short_run) -> dict[str, Any]:
    return short_run(getattr(request, "param", helpers.SCRIPTS[0]))


each_script = pytest.mark.parametrize("trained", helpers.SCRIPTS, indirect=True)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run's folder, alone in runs/."""
    return shutil.copytree(trained["run_dir"], tmp_path / "runs" / trained["run_dir"].name)


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    """No display. What enjoy.py leaves in the process is taken back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    with mock.patch.dict(os.environ):
        for name in SCREENS:
            os.environ.pop(name, None)
        yield


def play(run: Path, **args: Any) -> list[float]:
    return enjoy.main(enjoy.Args(run=run, **args))


def error(run: Path, **args: Any) -> str:
    """The message with which enjoy.py leaves: one line."""
    with pytest.raises(SystemExit) as stop:
        play(run, **args)
    text = str(stop.value)
    assert text.startswith("error: ") and "\n" not in text and len(text) < 600
    return text


def edit(run: Path, **settings: Any) -> None:
    path = run / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each_script
def test_numbers_are_those_of_the_last_evaluation(trained, run, capsys):
    """Mean and deviation come out again bit for bit, as printed and as returned."""
    returns = play(run, numbers=True)
    last = capsys.readouterr().out.splitlines()[-1]
    names = "eval_return_mean", "eval_return_std", "eval_episodes"
    assert last == " ".join(f"{name}={trained[name]}" for name in names)
    assert (np.mean(returns), np.std(returns)) == tuple(trained[name] for name in names[:2])
    assert len(returns) == 2 and returns[0] != returns[1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.slow
def test_numbers_of_networks_as_large_as_the_default(threads, tmp_path):
    """A process of its own multiplies by the library that the run had."""
    flags = "--hidden-dim=256", "--total-timesteps=60", f"--num-threads={threads}"
    flags += "--eval-episodes=2", f"--runs-dir={tmp_path}"
    before = torch.get_num_threads()
    try:
        results = helpers.train(helpers.SCRIPTS[0], *helpers.QUICK[helpers.SCRIPTS[0]], *flags)
    finally:
        torch.set_num_threads(before)
    done = helpers.run("tools/enjoy", results["run_dir"], "--numbers")
    assert f"eval_return_mean={results['eval_return_mean']} " in done.stdout.splitlines()[-1]


@pytest.mark.slow_but("sac_continuous")
@each_script
def test_a_kept_policy_plays_as_its_run(trained, run, tmp_path):
    folder = keep_policy.main(keep_policy.Args(run, out=tmp_path / "policies"))
    both = [enjoy.main(enjoy.Args(place, numbers=True)) for place in (folder, run)]
    assert both[0] == both[1]
    whole, part = ((place / "model.pt").stat().st_size for place in (run, folder))
    assert part < 0.8 * whole
    text = (folder / "args.json").read_text(encoding="utf-8")
    settings, original = json.loads(text), json.loads((run / "args.json").read_text("utf-8"))
    assert set(original) - set(settings) == {"platform", "cores", "runs_dir", "resume", "track"}
    assert settings.items() <= original.items()
    assert str(trained["run_dir"].parent) not in text


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each_script
def test_best_networks(trained, run, capsys):
    """Those of best_model.pt, by --best or by name; without that file a message says why."""
    last = play(run, numbers=True)
    (run / "model.pt").rename(run / "best_model.pt")
    with torch.no_grad():
        weights = {key: torch.zeros_like(value) for key, value in weights_of(run).items()}
    torch.save(weights, run / "model.pt")
    assert play(run, best=True, numbers=True) == last
    assert capsys.readouterr().out.count("best_model.pt: Pendulum-v1") == 1
    assert play(run / "best_model.pt", numbers=True) == last
    assert play(run, numbers=True) != last
    (run / "model.pt").unlink()
    assert play(run.parent, best=True, numbers=True) == last
    assert "no model.pt in " in error(run, numbers=True)
    assert error(run, numbers=True).endswith("--best plays that")
    (run / "best_model.pt").rename(run / "model.pt")
    text = error(run.parent, best=True, numbers=True)
    assert f"no best_model.pt in {run}: a run writes it with its first evaluation" in text


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "best_model.pt", weights_only=True)


def test_environment_is_that_of_the_run(tmp_path):
    """Its constructor's options and its time limit, and the global random numbers it draws."""
    flags = '--env-kwargs={"g": 5.0}', "--max-episode-steps=50", "--eval-episodes=2"
    run = helpers.train("sac_continuous", *SAC_FLAGS, *flags, f"--runs-dir={tmp_path}")
    returns = play(run["run_dir"], numbers=True)
    assert np.mean(returns) == run["eval_return_mean"]
    edit(run["run_dir"], env_kwargs="{}")
    assert np.mean(play(run["run_dir"], numbers=True)) != run["eval_return_mean"]
    edit(run["run_dir"], max_episode_steps=20)
    assert sum(play(run["run_dir"], numbers=True)) > sum(returns)  # fewer rewards below 0


@pytest.mark.slow
def test_global_random_numbers(tmp_path):
    """An environment that draws from random or numpy.random repeats its evaluation, too."""
    flags = *SAC_FLAGS, "--env-id=worlds:Target-v0", "--eval-episodes=2", f"--runs-dir={tmp_path}"
    with mock.patch.object(worlds.Target, "step", noisy(worlds.Target.step)):
        run = helpers.train("sac_continuous", *flags)
        assert np.mean(play(run["run_dir"], numbers=True)) == run["eval_return_mean"]


def noisy(step: Callable) -> Callable:
    def changed(self: Any, action: np.ndarray) -> tuple:
        obs, reward, *rest = step(self, action)
        return obs, reward + random.random() + np.random.random(), *rest

    return changed


@pytest.mark.slow
def test_environment_in_the_current_folder(tmp_path, monkeypatch):
    """my_env.py lies where the command is given; the script and enjoy.py lie elsewhere."""
    code = "import gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
    code += "gym.register('Mine-v0', PendulumEnv, max_episode_steps=20)\n"
    (tmp_path / "my_env.py").write_text(code)
    flags = *SAC_FLAGS, "--env-id=my_env:Mine-v0", f"--runs-dir={tmp_path}"
    with monkeypatch.context() as here:
        here.syspath_prepend(tmp_path)
        run = helpers.train("sac_continuous", *flags)
    del sys.modules["my_env"], gym.registry["Mine-v0"]
    assert "No module named 'my_env'" in error(run["run_dir"], numbers=True)
    monkeypatch.chdir(tmp_path)
    assert play(run["run_dir"], numbers=True) == [run["eval_return_mean"]]


@pytest.mark.slow
def test_environment_without_pictures(tmp_path):
    """Its constructor knows no render_mode: numbers are played, a picture is refused."""
    flags = *SAC_FLAGS, "--env-id=worlds:Target-v0", f"--runs-dir={tmp_path}"
    run = helpers.train("sac_continuous", *flags)
    assert play(run["run_dir"], numbers=True) == [run["eval_return_mean"]]
    text = error(run["run_dir"], out=tmp_path / "a.gif")
    assert "--numbers needs no picture" in text and "cannot make worlds:Target-v0" in text


@pytest.mark.slow
def test_no_end(tmp_path, capsys):
    """An episode ends all the same."""
    gym.register("Endless-v1", worlds.Corridor)
    flags = *SAC_FLAGS, "--env-id=Endless-v1", f"--runs-dir={tmp_path}", "--max-episode-steps=9"
    run = helpers.train("sac_continuous", *flags)["run_dir"]
    assert play(run, numbers=True) == [9.0]
    edit(run, max_episode_steps=0)
    assert "no time limit" not in capsys.readouterr().out
    assert play(run, numbers=True) == [10_000.0]
    assert "no time limit; here an episode ends after 10000 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_run_without_evaluation(tmp_path):
    """--eval-episodes 0: one episode is played."""
    flags = *SAC_FLAGS, "--eval-episodes=0", f"--runs-dir={tmp_path}"
    assert len(play(helpers.train("sac_continuous", *flags)["run_dir"], numbers=True)) == 1


def test_threads_are_those_of_the_run(run, monkeypatch):
    """While it plays, and no longer."""
    seen, step, before = set(), PendulumEnv.step, torch.get_num_threads()

    def watched(env: PendulumEnv, action: np.ndarray) -> tuple:
        seen.add(torch.get_num_threads())
        return step(env, action)

    monkeypatch.setattr(PendulumEnv, "step", watched)
    edit(run, num_threads=before + 1)
    play(run, numbers=True)
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_seed_and_episodes(trained, run, capsys):
    """Episode i starts from seed + i; a note tells of other versions than those of the run."""
    returns = play(run, numbers=True)
    first = importlib.import_module(trained["script"]).EVAL_SEED
    assert play(run, numbers=True, seed=first + 1, episodes=1) == returns[1:]
    assert "note" not in capsys.readouterr().out
    edit(run, numpy="1.0")
    assert play(run, numbers=True, episodes=3)[:2] == returns
    assert f"note: the run had numpy 1.0, here is {np.__version__}" in capsys.readouterr().out


def test_a_film_asks_for_the_moving_camera(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(enjoy, "follow", lambda env, options: asked.append(options))
    play(run, out=tmp_path / "a.gif", seconds=0.1, numbers=False)
    assert len(asked) == 1


def test_the_camera_moves_along():
    """MuJoCo's own; not where the run names another, nor where there is none."""
    pytest.importorskip("mujoco")
    for options, follows in [({}, True), ({"camera_id": 0}, False), ({"camera_name": "x"}, False)]:
        env = gym.make("Hopper-v5")
        before = env.unwrapped.mujoco_renderer.camera_id
        enjoy.follow(env, options)
        own = env.unwrapped.model.camera("track").id
        assert env.unwrapped.mujoco_renderer.camera_id == (own if follows else before) and own == 0
        env.close()
    without = gym.make("InvertedPendulum-v5")
    before = without.unwrapped.mujoco_renderer.camera_id
    enjoy.follow(without, {})
    assert without.unwrapped.model.ncam == 0
    assert without.unwrapped.mujoco_renderer.camera_id == before
    without.close()
    enjoy.follow(gym.make("Pendulum-v1"), {})  # it is not of MuJoCo, and is left alone


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each_script
def test_gif(trained, run, tmp_path):
    """The asked size and length, at the true speed; its pictures move and are the environment's.

    Pendulum takes 30 steps a second, and a GIF counts in hundredths of one. A picture like its
    forerunner is merged with it into one that lasts longer.
    """
    out = tmp_path / "new" / "swing.GIF"
    returns = play(run, out=out, episodes=2, seed=7, fps=14, width=100, seconds=2)
    assert returns == play(run, numbers=True, episodes=2, seed=7)
    gif = Image.open(out)
    assert gif.size == (100, 100) and gif.info["loop"] == 0
    pictures = [(p.info["duration"], p.convert("RGB")) for p in ImageSequence.Iterator(gif)]
    assert sum(duration for duration, _ in pictures) == 4000
    assert pictures[0][0] == 80  # 12.5 a second: a GIF cannot have 14
    assert len({picture.tobytes() for _, picture in pictures}) > 10
    assert out.stat().st_size < 100_000
    script = importlib.import_module(trained["script"])
    env = script.make_env("Pendulum-v1", render_mode="rgb_array")
    env.reset(seed=7)
    seen = np.array(Image.fromarray(env.render()).reduce(5), float)
    env.close()
    assert pictures[0][1].getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.array(pictures[0][1]) - seen).mean() < 1
    assert np.abs(np.array(pictures[-1][1]) - seen).mean() > 1


def test_mp4(run, tmp_path):
    """Every step, at the true speed; even sides, which players insist on."""
    out = tmp_path / "swing.mp4"
    play(run, out=out, width=101, seconds=0.99)
    about, *pictures = imageio_ffmpeg.read_frames(str(out))
    assert about["size"] == (100, 100) and about["fps"] == 30 and "yuv420p" in about["pix_fmt"]
    assert len(pictures) == 30 and len(set(pictures)) > 10
    assert not list(tmp_path.glob("unfinished*"))


def test_defaults_of_pictures(run, tmp_path):
    """One episode; a GIF is small, an MP4 as large as the environment draws."""
    assert len(play(run, out=tmp_path / "a.gif", seconds=0.1)) == 1
    assert Image.open(tmp_path / "a.gif").size == (240, 240)
    assert Image.open(tmp_path / "a.gif").info["duration"] == 70  # nearly 15 a second
    play(run, out=tmp_path / "a.mp4", seconds=0.1)
    assert next(imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4")))["size"] == (500, 500)


@pytest.mark.slow
def test_window(run, monkeypatch):
    """A window shows the starts and every step, and is closed; the returns are the evaluation's.

    It is opened with a start of its own, so that what fails then is told apart.
    """
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    monkeypatch.setitem(PendulumEnv.metadata, "render_fps", 100_000)
    shown, flip = [], pygame.display.flip
    monkeypatch.setattr(pygame.display, "flip", lambda: shown.append(flip()))
    returns = play(run)
    assert len(shown) == 1 + 2 * 201 and not pygame.display.get_init()
    assert returns == play(run, numbers=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is always a display")
def test_without_a_display(run):
    """A window is refused; for a picture, libraries are chosen that need none, unless asked for."""
    assert "no display for a window; --out" in error(run)
    assert "there is no folder nowhere" in error(Path("nowhere"))  # the path is looked at first
    play(run, numbers=True)
    assert not {*SCREENS} & os.environ.keys()
    enjoy.check_display(enjoy.Args(out=Path("a.gif")))
    assert (os.environ["MUJOCO_GL"], os.environ["SDL_VIDEODRIVER"]) == ("egl", "dummy")
    os.environ |= {"MUJOCO_GL": "osmesa"}
    del os.environ["SDL_VIDEODRIVER"]
    enjoy.check_display(enjoy.Args(out=Path("a.gif")))
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_latest_run(trained, run, monkeypatch, capsys):
    """Of the runs below a folder that with the newest model.pt; or the file itself, or `.`."""
    other = shutil.copytree(run, run.with_name(run.name[:-1] + "x"))
    for newest, oldest in ((run, other), (other, run)):
        os.utime(newest / "model.pt", (2e9, 2e9))
        os.utime(oldest / "model.pt", (1e9, 1e9))
        play(run.parent.parent, numbers=True, episodes=1)
        line = f"{newest / 'model.pt'}: Pendulum-v1, {helpers.source(trained['script'])}"
        assert capsys.readouterr().out.splitlines()[0] == line
        play(oldest / "model.pt", numbers=True, episodes=1)
        assert capsys.readouterr().out.startswith(f"{oldest / 'model.pt'}:")
    monkeypatch.chdir(run)
    assert play(Path(), numbers=True) == play(run, numbers=True)


@pytest.mark.slow_but("sac_continuous", "ppo_continuous")
@each_script
def test_other_script(trained, run, tmp_path, monkeypatch):
    """A run of a renamed copy, which imports a module that lies beside it."""
    strange = run.rename(run.with_name("Pendulum-v1__my.own__1__1"))
    assert f"my.own.py for the run {strange.name}: say --script" in error(strange, numbers=True)
    copy = tmp_path / "elsewhere" / "my.own.py"
    copy.parent.mkdir()
    code = Path(helpers.source(trained["script"])).read_text(encoding="utf-8")
    copy.write_text(f"from __future__ import annotations\nimport beside_it\n{code}", "utf-8")
    (copy.parent / "beside_it.py").touch()
    played = [play(strange, numbers=True, script=copy)]
    monkeypatch.chdir(copy.parent)
    played += [play(strange, numbers=True)]  # the script is in the current folder,
    monkeypatch.chdir(tmp_path)
    shutil.copytree(copy.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(copy.parent.parent.parent)
    played += [play(strange, numbers=True)]  # or beside runs/
    swing = strange.rename(strange.with_name("swing"))
    assert "swing tells no script: say --script FILE" in error(swing, numbers=True)
    played += [play(swing, numbers=True, script=copy)]
    assert [np.mean(returns) for returns in played] == 4 * [trained["eval_return_mean"]]


def test_a_copy_comes_before_the_original(trained, run, tmp_path, capsys):
    """The student's own file of the same name, which may have been changed."""
    shutil.copy(helpers.source(trained["script"]), tmp_path)
    play(run, numbers=True)
    assert str(tmp_path / f"{trained['script']}.py") in capsys.readouterr().out.splitlines()[0]


ERRORS = [
    ("there is no folder nowhere", {"run": Path("nowhere")}),
    ("there is no folder file", {"run": Path("file")}),
    ("no model.pt under empty", {"run": Path("empty")}),
    ("--out must end in .gif or .mp4, not in a.avi", {"out": Path("a.avi"), "numbers": False}),
    ("--out and --numbers exclude each other", {"out": Path("swing.gif")}),
    ("--episodes must be from 1", {"episodes": 0}),
    ("--seed must be from 0", {"seed": -1}),
    ("--fps must be from 1 to 50, not 100", {"fps": 100}),
    ("--width must be from 16", {"width": 1}),
    ("--seconds must be above 0", {"seconds": float("nan")}),
    ("cannot write file", {"out": Path("file/swing.gif"), "numbers": False}),
    ("cannot write swing.gif", {"out": Path("swing.gif"), "numbers": False}),
    ("cannot write swing.mp4", {"out": Path("swing.mp4"), "numbers": False}),
    ("there is no nowhere.py", {"script": Path("nowhere.py")}),
    ("broken.py is not a script that enjoy.py can play: division", {"script": Path("broken.py")}),
    ("other.py is not a script that enjoy.py can play: module", {"script": Path("other.py")}),
]


@pytest.mark.parametrize(("message", "args"), ERRORS, ids=[message for message, _ in ERRORS])
def test_errors(run, tmp_path, monkeypatch, message, args):
    """What cannot be done is said in a line, and nothing half-written is left."""
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "swing.gif", "swing.mp4"):
        Path(folder).mkdir()
    Path("file").touch()
    Path("broken.py").write_text("1 / 0")
    Path("other.py").write_text("Agent = 1")
    before = everything(tmp_path)
    assert message in error(**{"run": run, "numbers": True, "seconds": 0.1} | args)
    assert everything(tmp_path) == before


def everything(folder: Path) -> list[Path]:
    """Files and folders, but for what Python makes where it reads a script."""
    return [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_in_the_model_is_executed(run, tmp_path):
    content = {"actor.net.0.weight": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "zipped")
    (tmp_path / "plain").write_bytes(pickle.dumps(content))
    for name in ("zipped", "plain"):
        shutil.copy(tmp_path / name, run / "model.pt")
        text = error(run, numbers=True)
        assert "model.pt is not an intact model of this script: " in text
        assert "weights_only" not in text  # nor is the user told how to execute it
        assert not (tmp_path / "touched").exists()


def test_damaged_model(trained, run):
    """With a bit flipped anywhere, or cut short, it is refused, unless the weights are the same."""
    script, path = importlib.import_module(trained["script"]), run / "model.pt"
    env, intact, refused = script.make_env("Pendulum-v1"), path.read_bytes(), 0
    settings, _ = enjoy.read_settings(run, script)
    actor = trained["actor"].state_dict()
    for at in range(7, len(intact), len(intact) // 100):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 16]) + intact[at + 1 :])
        try:
            loaded = enjoy.load_actor(path, script, env, settings).state_dict()
        except SystemExit:
            refused += 1
        else:
            helpers.same(dict(loaded), dict(actor))
    assert refused > 50
    for content in (b"", intact[:-100]):
        path.write_bytes(content)
        assert "not an intact model" in error(run, numbers=True)


def test_model_that_does_not_fit(run):
    """A model of other sizes, or without an actor; settings that are damaged or another task's."""
    for content in ({}, [1], {"actor.net.0.weight": torch.zeros(1)}):
        intact = (run / "model.pt").read_bytes()
        torch.save(content, run / "model.pt")
        assert "not an intact model of this script" in error(run, numbers=True)
        (run / "model.pt").write_bytes(intact)
    for settings, message in (
        ({"hidden_dim": 17}, "size mismatch"),
        ({"hidden_dim": "x"}, "args.json: --hidden-dim must be of type int"),
        ({"eval_episodes": "x"}, "args.json: --eval-episodes must be of type int"),
        ({"env_id": "No-v0"}, "cannot make No-v0"),
        ({"env_id": "CartPole-v1"}, "CartPole-v1 acts in Discrete(2)"),
    ):
        intact = (run / "args.json").read_text()
        edit(run, **settings)
        assert message in error(run, numbers=True)
        (run / "args.json").write_text(intact)
    for damage in ("", "[1]", "{}"):
        (run / "args.json").write_text(damage)
        assert "args.json: " in error(run, numbers=True)


def test_what_cannot_be_drawn(run, tmp_path, monkeypatch):
    """A missing extra, a fault of the renderer, and a renderer that draws nothing."""
    out = tmp_path / "swing"
    for missing in ("PIL", "imageio", "imageio_ffmpeg", "pygame"):
        with mock.patch.dict(sys.modules, {missing: None}):
            text = error(run, out=out.with_suffix(".mp4"))
            assert "pip install -r requirements-video.txt" in text
            assert missing in text
    with mock.patch.dict(sys.modules, {"pygame": None}):
        with mock.patch.dict(os.environ, {"SDL_VIDEODRIVER": "dummy"}):
            assert "cannot open a window (pip install" in error(run)
    for broken, message in ((lambda env: 1 / 0, "division by zero"), (lambda env: None, "None")):
        monkeypatch.setattr(PendulumEnv, "render", broken)
        text = error(run, out=out.with_suffix(".gif"))
        assert "cannot draw Pendulum-v1 (" in text and message in text
    assert not list(tmp_path.glob("*swing*"))


def test_interruption(run, tmp_path, monkeypatch):
    """Ctrl-C leaves with a line, no unfinished file, and the older picture as it was."""
    (tmp_path / "swing.mp4").write_bytes(b"older")
    monkeypatch.setattr(PendulumEnv, "step", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="error: interrupted"):
        helpers.main("tools/enjoy", run, "--out", tmp_path / "swing.mp4")
    assert (tmp_path / "swing.mp4").read_bytes() == b"older"
    assert len(list(tmp_path.glob("*swing*"))) == 1


@pytest.mark.slow
def test_command(run, tmp_path):
    """As typed, without a display: the latest run under runs/, and nothing on standard error."""
    done = helpers.run("tools/enjoy", "--out", "swing.gif", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, episode, size, last = done.stdout.splitlines()
    assert first.startswith(str(Path("runs", run.name)))
    assert episode.startswith("episode 1, seed 1000000: -") and "eval_episodes=1" in last
    assert size == f"swing.gif: {(tmp_path / 'swing.gif').stat().st_size:,} B"
