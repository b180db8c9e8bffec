# MIT licence. Part of Marginalia.
"""Watch what a run has learnt: in a window, as an MP4 or GIF, or as numbers.

    python tools/enjoy.py                                  the latest run under runs/; Ctrl-C ends
    python tools/enjoy.py --best --out swing.gif           its best networks, filmed
    python tools/enjoy.py runs/<run> --numbers             the run's last evaluation once more
    python tools/enjoy.py policies/<name>                  a policy that comes with the project

The script that made the run plays, by its own evaluate() and with the run's settings, so that the
returns of a run on the CPU come out again bit for bit. It is the file that the run's folder is
named after: beside runs/, in the current folder, or where enjoy.py comes from. That file is
executed; nothing in model.pt is.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, NoReturn
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent  # where the scripts are
INSTALL = "pip install -r requirements-video.txt, for MuJoCo requirements-mujoco.txt too"
FPS = {".gif": 15, ".mp4": 50}
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


@dataclasses.dataclass
class Args:
    run: tyro.conf.Positional[Path] = Path("runs")
    """a run's folder, or one above, in which the latest run is taken"""
    best: bool = False
    """the networks of the best evaluation instead of the last ones"""
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
        reason = " ".join(str(error).split()) or repr(error)
        fail(f"{what}: {reason[:300]}")


def find_model(path: Path, best: bool) -> Path:
    """The file with the networks: of this run, or of the latest run in this folder."""
    names = ("model.pt", "best_model.pt")
    if path.is_file() and path.name in names:
        best = best or path.name == "best_model.pt"
        path = path.parent
    if not path.is_dir():
        fail(f"there is no folder {path}")
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        found = [file for name in names for file in path.rglob(name)]
    if not found:
        fail(f"no model.pt under {path}: a run writes it with its first checkpoint")
    latest = max(found, key=lambda file: file.stat().st_mtime)
    model = latest.with_name("best_model.pt" if best else "model.pt")
    if best and not model.is_file():
        fail(f"no best_model.pt in {model.parent}: a run writes it with its first evaluation")
    if not model.is_file():
        fail(f"no model.pt in {model.parent}, only best_model.pt: --best plays that")
    return model


def check_args(args: Args) -> None:
    limits = {"episodes": (1, 10**6), "seed": (0, 2**31), "fps": (1, 50), "width": (16, 4096)}
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            fail(f"--{name} must be from {low} to {high}, not {value}")
    if not args.seconds > 0:
        fail(f"--seconds must be above 0, not {args.seconds}")
    if args.out and args.out.suffix.lower() not in FPS:
        fail(f"--out must end in {' or '.join(FPS)}, not in {args.out.name}")
    if args.out and args.numbers:
        fail("--out and --numbers exclude each other")


def check_display(args: Args) -> None:
    """Refuse a window where there is no display; for a picture, take libraries that need none."""
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in SCREENS):
        return
    if args.out:  # SDL would complain, and MuJoCo find a library that needs a display
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    elif not args.numbers:
        fail("there is no display for a window; --out swing.gif and --numbers need none")


def find_script(path: Path | None, run: Path) -> Path:
    """The given script, or that which the run's folder is named after: your copy before ours."""
    if path:
        if not path.is_file():
            fail(f"there is no {path}")
        return path
    parts = run.name.rsplit("__", 3)  # environment, script, seed, time
    if len(parts) < 4:
        fail(f"the name of {run} tells no script: say --script FILE")
    for folder in (run.parent.parent, Path.cwd(), ROOT):
        script = folder / f"{parts[1]}.py"
        if script.is_file():
            return script
    fail(f"found no {parts[1]}.py for the run {run.name}: say --script FILE")


def load_script(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))  # what the script imports may lie beside it
    sys.path.append(os.getcwd())  # for an environment of your own, as in the scripts
    with explain(f"{path} is not a script that enjoy.py can play"):
        spec = importlib.util.spec_from_file_location("enjoyed", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["enjoyed"] = module
        spec.loader.exec_module(module)
        for name in ("Agent", "Run", "make_env", "evaluate", "EVAL_SEED", "EVAL_STEPS"):
            getattr(module, name)
    return module


def read_settings(run: Path, script: ModuleType) -> tuple[Any, dict[str, Any]]:
    """The run's settings as the script's Args, and its options of the environment."""
    with explain(f"cannot use {run / 'args.json'}"):
        about = json.loads((run / "args.json").read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(script.Args)]
        settings = script.Args(**{name: about[name] for name in names if name in about})
        settings.env_id = about["env_id"]
        settings.device = "cpu"
        prepared = script.Run(settings, None)  # which checks them
    for module in (torch, gym, np):
        version = about.get(module.__name__, module.__version__)
        if version != module.__version__:
            print(f"note: the run had {module.__name__} {version}, here is {module.__version__}")
    return prepared.args, prepared.env_options


def load_actor(model: Path, script: ModuleType, env: gym.Env, settings: Any) -> torch.nn.Module:
    with explain(f"{model} is not an intact model of this script"):
        with ZipFile(model) as archive:  # torch.load looks at neither sums nor flags
            if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
                raise ValueError("it is damaged")
        try:
            weights = torch.load(model, map_location="cpu", weights_only=True)
        except UnpicklingError:  # the original would tell how to load it all the same
            raise ValueError("it holds more than tensors") from None
        obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
        actor = script.Agent(obs_dim, action_dim, settings).actor
        # The rest of the agent does not act, and may be missing: see keep_policy.py.
        prefix = "actor."
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        actor.load_state_dict(part)
    return actor.eval()


class Film(gym.Wrapper):
    """Pictures of the environment on their way into a file, which is there only when it is whole.

    The speed stays true: the picture at a time shows what the environment does at that time.
    """

    def __init__(self, env: gym.Env, args: Args):
        super().__init__(env)
        self.path = args.out
        self.unfinished = self.path.with_name(f"unfinished-{self.path.name}")
        self.speed = env.metadata.get("render_fps") or 30  # steps per second
        self.last_step = args.seconds * self.speed
        is_gif = self.path.suffix.lower() == ".gif"
        self.width = args.width or (240 if is_gif else None)
        self.rate = min(args.fps or FPS[self.path.suffix.lower()], self.speed)
        options = {"fps": self.rate, "macro_block_size": 2}
        if is_gif:
            hundredths = math.ceil(100 / self.rate)  # a GIF counts in these
            self.rate = 100 / hundredths
            options = {"duration": 10 * hundredths, "loop": 0, "bits": 6}  # 64 colours: small
        with explain(INSTALL, ImportError):
            import imageio
            import imageio_ffmpeg  # noqa: F401
            import PIL.Image  # noqa: F401
        with explain(f"cannot write {self.path}", OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = imageio.get_writer(self.unfinished, **options)

    def reset(self, **options: Any) -> tuple:
        self.steps = 0
        self.pictures = 0
        return self.env.reset(**options)

    def step(self, action: np.ndarray) -> tuple:
        due = self.pictures * self.speed / self.rate
        if due <= self.steps < self.last_step:
            self.take_picture()
        self.steps += 1
        return self.env.step(action)

    def take_picture(self) -> None:
        from PIL import Image

        with explain(f"cannot draw {self.spec.id} ({INSTALL})"):
            image = Image.fromarray(np.array(self.env.render(), np.uint8))
        scale = (self.width or image.width) / image.width
        # Both sides are even, which players of MP4 insist on.
        size = [max(2, 2 * round(side * scale / 2)) for side in image.size]
        with explain(f"cannot write {self.path}", OSError):
            self.writer.append_data(np.asarray(image.resize(size, Image.Resampling.HAMMING)))
        self.pictures += 1

    def save(self) -> None:
        with explain(f"cannot write {self.path}", OSError):
            self.writer.close()
            os.replace(self.unfinished, self.path)
        print(f"{self.path}: {self.path.stat().st_size:,} B")

    def close(self) -> None:
        self.env.close()
        self.writer.close()
        self.unfinished.unlink(missing_ok=True)


def play(env: gym.Env, actor: torch.nn.Module, script: ModuleType, settings: Any, seeds: range):
    """The return of an episode from each of these starts."""
    returns = []
    for seed in seeds:
        script.EVAL_SEED = seed  # type: ignore[attr-defined]
        (episode,) = script.evaluate(actor, env, settings)
        returns.append(sum(reward for _, _, reward, *_ in episode))
        print(f"episode {len(returns)}, seed {seed}: {returns[-1]} in {len(episode)} steps")
    return returns


def follow(env: gym.Env, options: dict[str, Any]) -> None:
    """Film MuJoCo's robots with their own camera that moves along: gymnasium's stands still.

    Not where the run's --env-kwargs name a camera.
    """
    world = env.unwrapped
    named = any("camera" in name for name in options)
    if named or not hasattr(world, "mujoco_renderer"):
        return
    for number in range(world.model.ncam):
        if world.model.camera(number).name == "track":
            world.mujoco_renderer.camera_id = number


def main(args: Args) -> list[float]:
    """Play; return the episodes' returns."""
    model = find_model(args.run, args.best)
    check_args(args)
    check_display(args)
    run = model.resolve().parent
    script = load_script(find_script(args.script, run))
    settings, options = read_settings(run, script)
    print(f"{model}: {settings.env_id}, {script.__file__}", flush=True)
    episodes = args.episodes or (1 if args.out else max(1, settings.eval_episodes))
    settings.eval_episodes = 1
    first = script.EVAL_SEED if args.seed is None else args.seed
    hint = ""
    if not args.numbers:
        options["render_mode"] = "rgb_array" if args.out else "human"
        hint = f" ({INSTALL}; --numbers needs no picture)"
    with explain(f"no environment{hint}"):
        env = script.make_env(settings.env_id, **options)
    if not env.spec.max_episode_steps:
        print(f"note: no time limit; here an episode ends after {script.EVAL_STEPS} steps")
        env = gym.wrappers.TimeLimit(env, script.EVAL_STEPS)
    if args.out:
        follow(env, options)
        env = Film(env, args)
    elif not args.numbers:
        with explain(f"cannot open a window ({INSTALL})"):
            env.reset()
    # The products of matrices are rounded as they were in the run.
    with contextlib.closing(env), script.processor_settings(settings.num_threads):
        actor = load_actor(model, script, env, settings)
        returns = play(env, actor, script, settings, range(first, first + episodes))
        if args.out:
            env.save()
    mean, std = np.mean(returns), np.std(returns)
    print(f"eval_return_mean={mean} eval_return_std={std} eval_episodes={len(returns)}")
    return returns


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        fail("interrupted")
