"""What a student's function does, beside the script's own and beside each of its slips.

    python tests/exercise_probes.py bellman-target exercises/bellman-target/sac_continuous.py

prints one line of JSON: tools/exercise.py runs it in a process of its own, since what a student
wrote may print, end, or never end. A probe calls the function on numbers that are drawn anew for
every call of it, but are the same for all modules, and returns what came out, by name.
"""

import contextlib
import dataclasses
import functools
import io
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from slip_tables import ROOT, Slip, read_tables, with_slip
from torch import Tensor, nn

sys.path.append(str(ROOT))  # sac_her_continuous.py and her_utils.py import each other from here

B, A = 7, 3  # odd sizes: a (B,) that meets a (B, 1) cannot hide
Seen = dict[str, Tensor]


# --- probes -------------------------------------------------------------------------------------


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def with_slopes(result: Tensor, **inputs: Tensor) -> Seen:
    """The result, and the slope of its sum in each input; 0 where there is no way to it."""
    seen = {"value": result.detach()}
    for name, x in inputs.items():
        slope = torch.zeros_like(x)
        if result.requires_grad:
            (found,) = torch.autograd.grad(result.sum(), x, retain_graph=True, allow_unused=True)
            slope = torch.zeros_like(x) if found is None else found
        seen[f"slope in {name}"] = slope
    return seen


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def bellman_target(module: ModuleType) -> Seen:
    terminated = torch.tensor([0, 1, 0, 1, 0, 0, 1], dtype=torch.float64)
    return {"value": module.bellman_target(normal(B), terminated, normal(B), 0.9)}


def soft_value(module: ModuleType) -> Seen:
    return {"value": module.soft_value(normal(B), normal(B), normal(B), torch.tensor(0.3))}


def actor_loss(module: ModuleType) -> Seen:
    inputs = {name: leaf(normal(B)) for name in ("log_prob", "q1", "q2")}
    return with_slopes(module.actor_loss(**inputs, alpha=torch.tensor(0.3)), **inputs)


def temperature_loss(module: ModuleType) -> Seen:
    alpha = leaf(torch.tensor(0.3, dtype=torch.float64))
    return with_slopes(module.temperature_loss(alpha, normal(B), -2.0), alpha=alpha)


def squashed_log_prob(module: ModuleType) -> Seen:
    inputs = {"u": leaf(normal(B, A)), "log_std": leaf(normal(B, A) / 3)}
    inputs["noise"] = leaf(normal(B, A))
    seen = with_slopes(module.squashed_log_prob(**inputs), **inputs)
    ten = torch.full((1, 1), 10.0)
    return seen | {"value at u = 10": module.squashed_log_prob(ten, 0 * ten, 0 * ten)}


def smooth(module: ModuleType) -> Seen:
    """Of many draws, so that it does not matter how they are drawn."""
    middle, edge = torch.zeros(400_000, 2), torch.full((400_000, 2), 0.9)
    noise = module.smooth(middle, 0.2, 0.3)
    out = module.smooth(edge, 0.2, 0.3)
    together = (noise[:, 0] * noise[:, 1]).mean() / noise.var()
    return {
        "deviation of the noise": noise.std(),
        "noise of one dimension with the other's": together,
        "largest noise": noise.abs().max(),
        "mean at the edge": out.mean(),
        "largest action at the edge": out.max(),
        "action without noise": module.smooth(middle[:5], 0.0, 0.3),
    }


def update_target(module: ModuleType) -> Seen:
    slow, current = nn.Linear(3, 2), nn.Linear(3, 2)
    module.update_target(slow, current, 0.1)
    names = {"copy": slow, "network": current}
    return {f"{name}'s weights": copy.weight.detach() for name, copy in names.items()}


def gae(module: ModuleType) -> Seen:
    time, side = 9, 2
    terminated = (torch.rand(time, side) < 0.2).double()
    ended = torch.maximum(terminated, (torch.rand(time, side) < 0.3).double())
    nothing = normal(time, side, 1)
    rollout = module.Rollout(nothing, nothing, normal(time, side), nothing, terminated, ended)
    return {"value": module.gae(rollout, normal(time, side), normal(time, side), 0.9, 0.8)}


def surrogate(module: ModuleType) -> Seen:
    advantage, start = normal(99), (0.5 * normal(99)).exp()
    seen = {}
    for kind in ("clip", "clip-no-min", "unclipped"):
        ratio = leaf(start)
        found = with_slopes(module.surrogate(kind, ratio, advantage, 0.2), ratio=ratio)
        seen |= {f"{kind}: {name}": x for name, x in found.items()}
    return seen


class Race(gym.Env):
    """Two numbers to be as high as wanted. It matters which of the goals was achieved."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-9, 9, (2,), np.float32)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gym.spaces.Dict(dict.fromkeys(names, box))
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        return self.observation_space.sample(), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return np.float32(np.sum(2 * achieved - desired, axis=-1))

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return np.sum(achieved - desired, axis=-1) > 0


@dataclasses.dataclass
class Rows:
    """Only what a buffer of hindsight asks of the one that it wraps."""

    table: np.ndarray
    added: int = 0


def relabel(module: ModuleType) -> Seen:
    from sac_continuous import Batch

    buffer = module.HindsightReplayBuffer(Rows(np.zeros((9, 9))), module.FlattenGoal(Race()))
    obs, next_obs, goal = torch.randn(B, 6), torch.randn(B, 6), torch.randn(B, 2)
    ends = torch.zeros(B)
    chosen = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    batch = Batch(obs, torch.randn(B, 1), torch.randn(B), next_obs, ends)
    return buffer.relabel(batch, goal, chosen)._asdict()


def importance_weight(module: ModuleType) -> Seen:
    probability = torch.rand(B).softmax(0) / 5
    return {"value": module.importance_weight(probability, 50, 0.6)}


# --- exercises ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A function whose body is to be written."""

    file: str
    where: str
    probe: Callable[[ModuleType], Seen]
    about: str
    tolerance: float = 1e-5


SAC, TD3, PPO = "sac_continuous.py", "td3_continuous.py", "ppo_continuous.py"
EXERCISES = {
    "soft-value": Exercise(SAC, "soft_value", soft_value, "V from two critics and log pi"),
    "bellman-target": Exercise(SAC, "bellman_target", bellman_target, "what Q is to become"),
    "actor-loss": Exercise(SAC, "actor_loss", actor_loss, "what SAC's actor descends"),
    "temperature-loss": Exercise(SAC, "temperature_loss", temperature_loss, "what alpha descends"),
    "log-density": Exercise(SAC, "squashed_log_prob", squashed_log_prob, "of an action after tanh"),
    "slow-copy": Exercise(SAC, "update_target", update_target, "how a target network follows"),
    "smoothing": Exercise(TD3, "smooth", smooth, "noise on the target's action", 0.01),
    "importance-weights": Exercise(
        "td3_per_continuous.py", "importance_weight", importance_weight, "of prioritised replay"
    ),
    "hindsight": Exercise(
        "her_utils.py", "HindsightReplayBuffer.relabel", relabel, "another goal for a transition"
    ),
    "advantages": Exercise(PPO, "gae", gae, "generalised advantage estimation"),
    "surrogate": Exercise(PPO, "surrogate", surrogate, "PPO's clip, and three others"),
}


def slips_of(exercise: Exercise) -> list[Slip]:
    """The slips of this function, each with another wrong text."""
    own = {}
    for slip in read_tables():
        if (slip.file, slip.where) == (exercise.file, exercise.where):
            own.setdefault((slip.right, slip.wrong), slip)
    return list(own.values())


# --- a verdict ----------------------------------------------------------------------------------


def module_from(source: str, file: str) -> ModuleType:
    """The text as a module; it stays in sys.modules, where dataclasses look for theirs."""
    module = types.ModuleType(f"exercise_{Path(file).stem}")
    module.__file__ = str(ROOT / file)
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return module


@functools.cache
def observe(exercise: Exercise, source: str) -> Seen:
    """What the probe sees, on two draws of numbers: one alone may hide a slip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of shapes
        module = module_from(source, exercise.file)
        seen = {}
        for seed in (0, 1):
            torch.manual_seed(seed)
            for name, x in exercise.probe(module).items():
                seen[f"{name}, draw {seed + 1}"] = x.detach()
    return seen


def same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True)


def alike(a: Seen, b: Seen, tolerance: float) -> bool:
    return a.keys() == b.keys() and all(same(a[name], b[name], tolerance) for name in a)


def difference(seen: Seen, right: Seen, tolerance: float) -> str:
    """Of the first thing that is not as it should be, in words."""
    for name, expected in right.items():
        x = seen[name]
        if same(x, expected, tolerance):
            continue
        if x.shape != expected.shape:
            return f"{name}: the shape is {tuple(x.shape)}, expected {tuple(expected.shape)}"
        if x.isnan().any() and not expected.isnan().any():
            return f"{name}: not a number"
        first = int(((x - expected).abs() > tolerance).flatten().double().argmax())
        numbers = x.flatten()[first].item(), expected.flatten()[first].item()
        return f"{name}: {numbers[0]:.6g}, expected {numbers[1]:.6g}"
    return ""


def verdict(exercise: Exercise, source: str) -> dict[str, Any]:
    """Whether it does what the script does; else which slips it does the same as, or what is amiss.

    {"right": ..., "slips": [names], "says": a sentence}
    """
    original = (ROOT / exercise.file).read_text(encoding="utf-8")
    right = observe(exercise, original)
    try:
        seen = observe(exercise, source)
    except NotImplementedError as error:
        return {"right": False, "slips": [], "says": str(error)}
    except Exception as error:
        return {"right": False, "slips": [], "says": f"{type(error).__name__}: {error}"}
    if alike(seen, right, exercise.tolerance):
        return {"right": True, "slips": [], "says": ""}
    matching = [
        slip.name
        for slip in slips_of(exercise)
        if alike(seen, observe(exercise, with_slip(slip, original)), exercise.tolerance)
    ]
    says = difference(seen, right, exercise.tolerance)
    return {"right": False, "slips": matching, "says": says}


def main(name: str, path: str) -> None:
    source = Path(path).read_text(encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):  # what the student's code prints
        found = verdict(EXERCISES[name], source)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
