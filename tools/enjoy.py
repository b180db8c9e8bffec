# MIT licence. Part of Marginalia.
"""Watch what a run has learnt: in a window, as an MP4 or GIF, or as numbers.

    python tools/enjoy.py                                  the latest run under runs/; Ctrl-C ends
    python tools/enjoy.py runs/<run> --out swing.gif       a picture; no display is needed
    python tools/enjoy.py runs/<run> --numbers             the run's last evaluation once more

The actions are those of evaluation, and so are the starts: the returns of a run on the CPU come out
again bit for bit. Nothing in model.pt is executed; the script that the folder is named after is.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, NoReturn
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

ROOT = Path(__file__).resolve().parent.parent  # where the scripts are
INSTALL = "pip install -r requirements-video.txt, for MuJoCo requirements-mujoco.txt too"
FPS = {".gif": 15, ".mp4": 50}


@dataclasses.dataclass
class Args:
    run: tyro.conf.Positional[Path] = Path("runs")
    """a run's folder, or one above, in which the latest run is taken"""
    out: Path | None = None
    """the picture, a .gif or .mp4, instead of a window"""
    numbers: bool = False
    """neither window nor picture: only the returns, which is quick"""
    episodes: int | None = None
    """how many; default: 1 in a picture, else as many as the run was evaluated with"""
    seed: int | None = None
    """start of the first episode, the next one's is seed + 1; default: those of evaluation"""
    seconds: float = math.inf
    """show only so much of each episode in a picture; its return is still the whole episode's"""
    fps: int | None = None
    """pictures per second at most, the speed stays true; default: 15 in a GIF, else 50"""
    width: int | None = None
    """of a picture, in pixels; default: 240 in a GIF, else as the environment draws it"""
    script: Path | None = None
    """the file that made the run, where its name or place has changed"""


def fail(message: str) -> NoReturn:
    raise SystemExit(f"error: {message}")


@contextlib.contextmanager
def explain(what: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Make a line of such an error instead of a traceback."""
    try:
        yield
    except kind as error:
        fail(f"{what}: {(' '.join(str(error).split()) or repr(error))[:300]}")


def check_args(args: Args) -> None:
    limits = {"episodes": (1, 10**6), "seed": (0, 2**31), "fps": (1, 50), "width": (16, 4096)}
    for name, (low, high) in limits.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            fail(f"--{name} must be from {low} to {high}, not {value}")
    if not args.seconds > 0:
        fail(f"--seconds must be above 0, not {args.seconds}")
    if args.out and (args.numbers or args.out.suffix.lower() not in FPS):
        fail(f"--out must end in {' or '.join(FPS)}, and goes without --numbers")
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    headless = sys.platform.startswith("linux") and not any(map(os.environ.get, screens))
    if headless and not (args.out or args.numbers):
        fail("there is no display for a window; --out swing.gif and --numbers need none")
    if headless and args.out:  # SDL would grumble, and MuJoCo find a library that needs a display
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def find_run(path: Path) -> Path:
    """The run's folder."""
    if path.name == "model.pt" or (path / "model.pt").is_file():
        return path.parent if path.name == "model.pt" else path
    if not path.is_dir():
        fail(f"there is no folder {path}")
    if not (models := list(path.rglob("model.pt"))):
        fail(f"no model.pt under {path}: a run writes it with its first checkpoint")
    return max(models, key=lambda model: model.stat().st_mtime).parent


def load_script(path: Path | None, run: Path) -> ModuleType:
    """The script as a module: the given one, or that which the run's folder is named after."""
    name = run.resolve().name
    path = path or ROOT / f"{[*name.rsplit('__', 3), ''][1]}.py"
    if not path.is_file():
        fail(f"there is no {path} for the run {name}: say --script FILE")
    sys.path.insert(0, str(path.resolve().parent))  # what the script imports may lie beside it
    with explain(f"{path} is not a script that enjoy.py can play"):
        spec = importlib.util.spec_from_file_location("enjoyed", path)
        sys.modules["enjoyed"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _ = module.Actor, module.make_env, module.check_args, module.EVAL_SEED
    return module


def load_actor(run: Path, script: ModuleType, env: gym.Env, hidden_dim: int) -> nn.Module:
    with explain(f"{run / 'model.pt'} is not an intact model of this script"):
        with ZipFile(run / "model.pt") as archive:  # torch.load looks at neither sums nor flags
            if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
                raise ValueError("it is damaged")
        try:
            state = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
        except UnpicklingError:  # the original would tell how to load it all the same
            raise ValueError("it holds more than tensors") from None
        dims = env.observation_space.shape[0], env.action_space.shape[0]
        actor = script.Actor(*dims, hidden_dim).eval()
        weights = {key: state[key] for key in state if key.startswith("actor.")}
        actor.load_state_dict({key.removeprefix("actor."): weights[key] for key in weights})
    return actor


def play(env: gym.Env, actor: nn.Module, seeds: range, shots: range, returns: list) -> Iterator:
    """Play an episode from each seed, filling `returns`; yield what is seen after steps `shots`."""
    for seed in seeds:
        with explain(f"cannot start {env.spec.id} ({INSTALL})"):  # a window opens here
            obs, done, rewards = env.reset(seed=seed)[0], False, []
        while not done:
            if len(rewards) in shots:
                with explain(f"cannot draw {env.spec.id} ({INSTALL})"):
                    picture = np.array(env.render(), np.uint8)
                yield picture
            with torch.inference_mode():
                action = actor(torch.as_tensor(obs)).numpy()
            obs, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            done = terminated or truncated
        returns.append(sum(rewards))
        print(f"episode {len(returns)}, seed {seed}: {returns[-1]} in {len(rewards)} steps")


def resize(pictures: Iterable[np.ndarray], width: int | None) -> Iterator[Any]:
    """The same as images of this width; both sides are even, which MP4 players insist on."""
    from PIL import Image

    for image in map(Image.fromarray, pictures):
        scale = (width or image.width) / image.width
        size = [max(2, 2 * round(side * scale / 2)) for side in image.size]
        yield image.resize(size, Image.Resampling.HAMMING)


def save_gif(images: Iterator[Any], path: Path, fps: float) -> None:
    """Few colours, the same in all pictures, and no dithering: a third of the bytes.

    They are chosen in one strip of all pictures: with a palette given, Pillow looks colours up only
    roughly, and white turns grey.
    """
    from PIL import Image

    images = list(images)
    width, height = images[0].size
    strip = Image.fromarray(np.concatenate(images)).quantize(64, dither=Image.Dither.NONE)
    corners = range(0, strip.height, height)
    first, *rest = (strip.crop((0, top, width, top + height)) for top in corners)
    times = [round(100 * i / fps) for i in range(len(images) + 1)]  # GIF counts in 1/100 s
    lasting = [10 * int(time) for time in np.diff(times)]
    first.save(path, save_all=True, append_images=rest, duration=lasting, loop=0)


def save_mp4(images: Iterator[Any], path: Path, fps: float) -> None:
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    first = next(images)
    with FFMPEG_VideoWriter(str(path), first.size, fps) as writer:
        for image in itertools.chain([first], images):
            writer.write_frame(np.asarray(image))


def save(pictures: Iterator[np.ndarray], args: Args, fps: float) -> None:
    """Write the whole file or, whatever happens, none."""
    gif = args.out.suffix.lower() == ".gif"
    unfinished = args.out.with_name(f"unfinished-{args.out.name}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(explain(INSTALL, ImportError))
        stack.enter_context(explain(f"cannot write {args.out}", OSError))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(unfinished.unlink, missing_ok=True)
        images = resize(pictures, args.width or (240 if gif else None))
        (save_gif if gif else save_mp4)(images, unfinished, fps)
        os.replace(unfinished, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} B")


def main(args: Args) -> list[float]:
    """Play; return the episodes' returns."""
    check_args(args)
    run = find_run(args.run)
    with explain(f"cannot use {run / 'args.json'}"):
        settings = json.loads((run / "args.json").read_text(encoding="utf-8"))
        env_id, hidden_dim = settings["env_id"], settings["hidden_dim"]
        episodes = args.episodes or (1 if args.out else int(settings["eval_episodes"]))
        threads = int(settings["num_threads"])
    script = load_script(args.script, run)
    script.check_args(script.Args(num_threads=threads))  # so that it multiplies as the run did
    print(f"{run}: {env_id}, {Path(script.__file__).name}", flush=True)
    for module in (torch, gym, np):
        if (version := settings.get(module.__name__)) not in (None, module.__version__):
            print(f"note: the run had {module.__name__} {version}, here is {module.__version__}")
    with explain(f"cannot make {env_id} ({INSTALL})"):
        mode = None if args.numbers else "rgb_array" if args.out else "human"
        env = script.make_env(env_id, render_mode=mode)
    shots, returns, first = range(0), [], script.EVAL_SEED if args.seed is None else args.seed
    with contextlib.closing(env):
        actor = load_actor(run, script, env, hidden_dim)
        if args.out:
            speed = env.metadata.get("render_fps") or 30  # steps per second
            every = math.ceil(speed / (args.fps or FPS[args.out.suffix.lower()]))
            shots = range(0, math.ceil(min(args.seconds * speed, 10**9)), every)
        pictures = play(env, actor, range(first, first + episodes), shots, returns)
        if args.out:
            save(pictures, args, speed / every)
        deque(pictures, maxlen=0)  # play on where nobody takes pictures
    mean, std = np.mean(returns), np.std(returns)
    print(f"eval_return_mean={mean} eval_return_std={std} eval_episodes={len(returns)}")
    return returns


if __name__ == "__main__":
    torch.set_num_threads(1)  # one observation at a time
    try:
        main(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        fail("interrupted")
