# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium>=1,<2", "numpy>=2", "tyro>=0.9", "tqdm", "wandb"]
# ///
# MIT licence. Part of Marginalia: algorithms to be read beside the lecture notes.
"""Deep Deterministic Policy Gradient (DDPG) for continuous actions.

DDPG is Q-learning where actions cannot be tried one by one to find the best: an actor mu, which is
deterministic, learns to answer with the action that the critic Q rates highest, by climbing Q's
slope in the action. Q learns from replayed transitions, towards targets from slow copies of both.
    [2016] Lillicrap et al., Continuous Control with Deep RL, ICLR 2016, arXiv:1509.02971
    [2018] Fujimoto et al., Addressing Function Approximation Error... (TD3), ICML 2018

Algorithm ([2016], Algorithm 1; d = 1 where the episode terminated, which the paper leaves out)
    initialise mu_phi, Q_theta; targets mu' <- mu, Q' <- Q; replay D <- {}
    for every environment step:
     1  a = clip(mu_phi(s) + N(0, sigma^2), -1, 1), uniform in warm-up; D <- D + {(s, a, r, s', d)}
        for every gradient step, on a fresh batch of (s, a, r, s', d) from D:
     2     y = r + gamma (1 - d) Q'(s', mu'(s'))
     3     Q   <- descend mean 1/2 (Q(s, a) - y)^2
     4     phi <- descend mean [-Q(s, mu_phi(s))]
     5     Q'  <- tau Q + (1 - tau) Q',  mu' <- tau mu + (1 - tau) mu'

Notation    s, s', a, r     obs, next_obs, action, reward     Q, Q'      q, q_target (theta)
            d               terminated                        mu, mu'    actor, actor_target (phi)
            mu(s)           new_action                        sigma      --exploration-noise
Shapes: B transitions in a batch, O = dim(S), A = dim(A). One number per transition is (B,).
Siblings: td3_continuous.py adds three remedies against overestimation; sac_continuous.py has a
stochastic policy, whose entropy is rewarded.
"""

import contextlib
import copy
import csv
import dataclasses
import importlib.util
import json
import math
import os
import platform
import re
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm, trange


# === 2. Arguments =================================================================================
@dataclasses.dataclass
class Args:
    env_id: str = "Pendulum-v1"
    """gymnasium environment with vector observations and bounded continuous actions"""
    total_timesteps: int = 15_000
    """environment steps; one step is one transition (MuJoCo: 1_000_000)"""
    seed: int = 1
    """seed of PyTorch and of the training environment"""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """networks this small gain nothing from a GPU"""
    num_threads: int = 1
    """PyTorch's CPU threads; 2 may be faster where no other run needs them"""
    hidden_dim: int = 256
    """units in each of the two hidden layers of every network [code after 2018; 2016: 400, 300]"""
    policy_lr: float = 3e-4
    """Adam's step size for the actor [code after 2018; 2016: 1e-4]"""
    q_lr: float = 1e-3
    """Adam's step size for the critics [2016; code after 2018: 3e-4]"""
    gamma: float = 0.99
    """discount factor per step [2016]"""
    tau: float = 0.005
    """share of a network that moves into its target at each update [2018; 2016: 0.001]"""
    batch_size: int = 256
    """transitions per gradient update [code after 2018; 2016: 64]"""
    buffer_size: int = 1_000_000
    """transitions kept for replay [2016]; never more than total_timesteps"""
    learning_starts: int = 1_000
    """steps of uniformly random actions before the first update (MuJoCo: 10_000)"""
    updates_per_step: float = 1.0
    """gradient updates per environment step; 0.5 is one update every second step"""
    max_grad_norm: float = 0.0
    """largest norm of an optimizer's gradient; a longer one is scaled down to it; 0 = off"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions in [-1, 1], at the first step [2018]"""
    exploration_noise_final: float = 0.1
    """the same at the last step; in between it changes linearly"""
    log_frequency: int = 100
    """steps between two rows of metrics.csv"""
    eval_frequency: int = 2_500
    """steps between two evaluations of the deterministic policy; 0 = only at the end"""
    eval_episodes: int = 10
    """episodes per evaluation, from starts that are the same in every run"""
    checkpoint_frequency: int = 25_000
    """steps between two checkpoints; 0 = only at the end or when interrupted"""
    resume: str = ""
    """a run's checkpoint.pt: continue that run, in its folder, with its settings"""
    runs_dir: str = "runs"
    """where the run's folder is made"""
    track: bool = False
    """send the metrics to Weights & Biases too"""
    wandb_project_name: str = "marginalia"
    """Weights & Biases project"""
    tensorboard: bool = False
    """write the metrics for TensorBoard too"""
    capture_video: bool = False
    """record the first episode of every evaluation as an MP4"""


# === 3. Environment and networks ==================================================================
def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """An environment that observes float32 (O,) and acts in [-1, 1]^A, whatever its own bounds."""
    env = open_env(env_id, **kwargs)
    low, high = env.action_space.low, env.action_space.high
    unit_box = gym.spaces.Box(-1, 1, low.shape, np.float32)
    obs_box = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    # Clipped after rescaling: that covers actions beyond [-1, 1] and rounding at the bounds alike.
    env = gym.wrappers.TransformAction(
        env, lambda a: np.clip((low * (1 - a) + high * (1 + a)) / 2, low, high), unit_box
    )
    return gym.wrappers.TransformObservation(env, lambda obs: np.array(obs, np.float32), obs_box)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of rectified linear units, PyTorch's initial weights."""
    layers = nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


class Critic(nn.Module):
    """Q(s, a): (B, O), (B, A) -> (B,)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        self.net = mlp(obs_dim + action_dim, hidden_dim, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], dim=-1)).squeeze(-1)


class Actor(nn.Module):
    """mu_phi(s): the action, squashed by tanh into (-1, 1)^A."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        self.net = mlp(obs_dim, hidden_dim, action_dim)
        for parameter in self.net[-1].parameters():  # begin where tanh is steep [2016, sec. 7]
            nn.init.uniform_(parameter, -3e-3, 3e-3)

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, A)."""
        return self.net(obs).tanh()


# === 4. Replay buffer =============================================================================
class Batch(NamedTuple):
    obs: Tensor  # (B, O)
    action: Tensor  # (B, A), in [-1, 1]
    reward: Tensor  # (B,)
    next_obs: Tensor  # (B, O), at an episode's end its last observation
    terminated: Tensor  # (B,), 1.0 at a true end, 0.0 at a time limit


class ReplayBuffer:
    """The last `capacity` transitions, one to a table row, so that one indexing fetches a batch."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: str = "cpu"):
        self.widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self.table = np.zeros((capacity, sum(self.widths)), np.float32)  # memory used as it fills
        self.columns = np.split(self.table, np.cumsum(self.widths)[:-1], axis=1)
        self.added = 0  # how many ever; the next one goes to row added % capacity
        self.device = device

    def __len__(self) -> int:
        return min(self.added, len(self.table))

    def add(self, *transition: Any) -> None:
        """Store (obs, action, reward, next_obs, terminated) over the oldest row."""
        row = self.added % len(self.table)
        for column, value in zip(self.columns, transition, strict=True):
            column[row] = value
        self.added += 1

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly and with replacement."""
        return self.gather(torch.randint(len(self), (batch_size,)))

    def gather(self, rows: Tensor) -> Batch:
        batch = torch.from_numpy(self.table).index_select(0, rows).to(self.device)
        obs, action, reward, next_obs, terminated = batch.split(self.widths, dim=1)
        return Batch(obs, action, reward.squeeze(1), next_obs, terminated.squeeze(1))

    def state_dict(self) -> dict[str, Any]:
        return {"added": self.added, "table": torch.from_numpy(self.table[: len(self)])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
        self.table[: len(state["table"])] = state["table"].numpy()


# === 5. The algorithm =============================================================================
def explore(action: Tensor, std: float) -> Tensor:
    """clip(mu(s) + N(0, std^2), -1, 1), each dimension with noise of its own.  (A,) -> (A,)

    The paper's Ornstein-Uhlenbeck noise remembers its last value; it was found to explore no better
    than this one [2018, sec. 6.1], which has no state.
    """
    return (action + std * torch.randn_like(action)).clamp(-1, 1)


def linear_schedule(first: float, last: float, fraction: float) -> float:
    """`first` at fraction 0 of the run, `last` at 1."""
    return first + (last - first) * fraction


def bellman_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - d) V(s'), nothing after termination  [2016, eq. 5].  (B,) -> (B,)"""
    return reward + gamma * (1 - terminated) * next_value


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """J_Q(theta) = mean 1/2 (Q_theta(s, a) - y)^2; y is a constant  [2016, eq. 4].  (B,) -> ()"""
    return 0.5 * F.mse_loss(q, target)


def actor_loss(q: Tensor) -> Tensor:
    """J_mu(phi) = mean [-Q(s, mu_phi(s))]  [2016, eq. 6 is its gradient, up to sign].  (B,) -> ()

    phi acts through the action alone: by the chain rule its gradient is dQ/da dmu/dphi.
    """
    return -q.mean()


@torch.no_grad()
def q_bias(q: Critic, actor: Actor, trajectories: list, gamma: float) -> float:
    """Mean of Q(s_t, a_t) - (r_t + gamma r_t+1 + ...) over an evaluation: above 0, Q overestimates.

    Where a time limit cut the rewards off, Q(s_T, mu(s_T)) stands for the rest; then only the first
    half of the episode counts, where that weighs less [after 2018, sec. 4.1 and figure 1].
    """
    errors, device = [], next(q.parameters()).device
    for trajectory in trajectories:
        obs, action, rewards, next_obs, terminated, _ = zip(*trajectory, strict=True)
        tensors = (torch.as_tensor(np.stack(x), device=device) for x in (obs, action, next_obs))
        obs, action, next_obs = tensors
        value = 0.0 if terminated[-1] else q(next_obs, actor(next_obs))[-1].item()
        values = q(obs, action).tolist()
        for t in reversed(range(len(rewards))):
            value = rewards[t] + gamma * value
            if terminated[-1] or t < len(rewards) / 2:
                errors.append(values[t] - value)
    return float(np.mean(errors))


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """One optimizer step down the loss; only its own parameters' gradients are computed."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    if max_grad_norm > 0:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


@torch.no_grad()
def update_targets(targets: list[Tensor], parameters: list[Tensor], tau: float) -> None:
    """theta_bar <- tau theta + (1 - tau) theta_bar  [2016, Algorithm 1]"""
    torch._foreach_lerp_(targets, parameters, tau)


def updates_due(step: int, rate: float) -> range:
    """Numbers, from 1 on, of the updates that follow step number `step` since the warm-up."""
    return range(int((step - 1) * rate) + 1, int(step * rate) + 1) if step > 0 else range(0)


# === 6. Training loop =============================================================================
METRICS = ("critic_loss", "actor_loss", "q", "at_bound", "q_bias")


def train(args: Args) -> dict[str, Any]:
    """Run DDPG; return the last evaluation, the run's folder and the actor."""
    run = Run(args)  # room 7: the run's folder, metrics, checkpoints
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    env = make_env(args.env_id)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    actor = Actor(obs_dim, action_dim, args.hidden_dim).to(args.device)
    q = Critic(obs_dim, action_dim, args.hidden_dim).to(args.device)
    actor_target, q_target = copy.deepcopy(actor), copy.deepcopy(q)
    params = [*actor.parameters(), *q.parameters()]
    target_params = [*actor_target.parameters(), *q_target.parameters()]
    actor_optimizer = torch.optim.Adam(actor.parameters(), args.policy_lr, fused=True)
    q_optimizer = torch.optim.Adam(q.parameters(), args.q_lr, fused=True)
    capacity = min(args.buffer_size, args.total_timesteps)
    replay = ReplayBuffer(capacity, obs_dim, action_dim, args.device)
    run.parts = dict(actor=actor, q=q, actor_target=actor_target, q_target=q_target)
    run.parts |= dict(actor_optimizer=actor_optimizer, q_optimizer=q_optimizer, replay=replay)
    run.judge = lambda trajectories: dict(q_bias=q_bias(q, actor, trajectories, args.gamma))
    with run, env:
        obs = run.start(env)
        for step in trange(run.step + 1, args.total_timesteps + 1, disable=None):
            # Observe and act.
            fraction = step / args.total_timesteps
            std = linear_schedule(args.exploration_noise, args.exploration_noise_final, fraction)
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_dim) - 1
            else:
                with torch.inference_mode():
                    action = explore(actor(torch.as_tensor(obs, device=args.device)), std)
            action = action.cpu().numpy()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            run.record(next_obs, reward)

            # Store. A time limit ends the episode but not the world: `truncated` is not kept.
            replay.add(obs, action, reward, next_obs, terminated)
            obs = run.reset(env) if terminated or truncated else next_obs

            for _ in updates_due(step - args.learning_starts, args.updates_per_step):
                batch = replay.sample(args.batch_size)

                # Critic. V(s') is of slow copies, lest Q chase its own changes.
                with torch.no_grad():
                    next_action = actor_target(batch.next_obs)
                    next_q = q_target(batch.next_obs, next_action)
                    y = bellman_target(batch.reward, batch.terminated, next_q, args.gamma)
                q_value = q(batch.obs, batch.action)
                q_loss = critic_loss(q_value, y)
                gradient_step(q_optimizer, q_loss, args.max_grad_norm)
                run.metrics.update(critic_loss=q_loss, q=q_value)

                # Actor.
                new_action = actor(batch.obs)
                pi_loss = actor_loss(q(batch.obs, new_action))
                gradient_step(actor_optimizer, pi_loss, args.max_grad_norm)
                at_bound = (new_action.abs() > 0.99).float()  # where tanh leaves no slope
                run.metrics.update(actor_loss=pi_loss, at_bound=at_bound)

                # Targets.
                update_targets(target_params, params, args.tau)
            run.after_step()
        return run.finish()


# === 7. Bookkeeping (skip on first reading) =======================================================
COLUMNS = ("global_step", "seconds", "sps", "episodes", "episodic_return", "episodic_length")
EVAL = {"eval_return_mean": np.mean, "eval_return_std": np.std, "eval_episodes": len}
EVAL_SEED = 1_000_000  # episode i of an evaluation is reset with EVAL_SEED + i, whatever --seed
EXTRAS = {"track": "wandb", "tensorboard": "tensorboard", "capture_video": "moviepy pygame"}


def fail(message: str) -> NoReturn:
    """Leave with a message for the user instead of a traceback."""
    raise SystemExit(f"error: {message}")


@contextlib.contextmanager
def explain(what: str, *errors: type[Exception]) -> Any:
    """Make such a message of these errors."""
    try:
        yield
    except errors as e:  # without PyTorch's advice on how to load what is not safe to load
        fail(f"{what}: {(str(e).strip() or repr(e)).splitlines()[0].split(' This file')[0]:.300}")


def check_args(args: Args) -> None:
    for field in dataclasses.fields(args):
        name, value = "--" + field.name.replace("_", "-"), getattr(args, field.name)
        low = int(field.type is int and not re.search("seed|start|sampl|(log|eval|point)-f", name))
        high = 1 if re.search("gamma|tau|lambda|per-[ab]", name) else 10**12
        if field.type in (int, float) and not low <= value <= high:
            fail(f"{name} must be from {low} to {high}, not {value}")
        if value and not all(map(importlib.util.find_spec, EXTRAS.get(field.name, "").split())):
            fail(f"{name} needs: pip install {EXTRAS[field.name]}")
    if args.batch_size > args.buffer_size:
        fail(f"--batch-size {args.batch_size} is larger than --buffer-size {args.buffer_size}")
    with explain(f"--device {args.device} cannot be used here", RuntimeError, AssertionError):
        torch.empty(0, device=args.device)
    # A single thread multiplies by oneDNN: on AMD much faster than MKL and, where there is no AMX,
    # as exact. "bf16" is how to ask for it. Several threads of it would stall on a busy machine.
    zen = {"avx512_bf16": True, "amx_bf16": False}.items() <= torch.cpu.get_capabilities().items()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if zen and args.num_threads < 2 else "none"


def open_env(env_id: str, **kwargs: Any) -> gym.Env:
    """gym.make, with a message for every environment that the networks cannot serve."""
    mujoco = 'if this is a MuJoCo task: pip install "gymnasium[mujoco]"'
    with explain(f"cannot make {env_id} ({mujoco})", gym.error.Error, ImportError, ValueError):
        env = gym.make(env_id, **kwargs)
    for verb, space in (("observes", env.observation_space), ("acts in", env.action_space)):
        if isinstance(space, gym.spaces.Dict):
            fail(f"{env_id} {verb} a dictionary; if it holds goals, use sac_her_continuous.py")
        vector = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        if not vector or not (verb == "observes" or space.is_bounded()):
            fail(f"{env_id} {verb} {space}; needed are vectors, and for actions finite bounds")
    return env


def evaluate(actor: nn.Module, args: Args, video_dir=None, stopped=lambda: False) -> list:
    """Trajectories of the deterministic policy, from starts that are the same in every run.

    A trajectory is a list of (obs, action, reward, next_obs, terminated, info). No random number of
    the training run is drawn.
    """
    env = make_env(args.env_id, **({"render_mode": "rgb_array"} if video_dir else {}))
    if video_dir:
        env = gym.wrappers.RecordVideo(env, str(video_dir), lambda i: i == 0, disable_logger=True)
    trajectories = [[] for _ in range(args.eval_episodes)]
    for episode, trajectory in enumerate(trajectories):
        obs, done = env.reset(seed=EVAL_SEED + episode)[0], False
        while not (done or stopped()):
            with torch.inference_mode():
                action = actor(torch.as_tensor(obs, device=args.device)).cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(action)
            trajectory.append((obs, action, float(reward), next_obs, terminated, info))
            obs, done = next_obs, terminated or truncated
    env.close()
    return trajectories


def write_file(path: Path, content: dict[str, Any]) -> None:
    """torch.save that leaves the whole new file or the whole old one, whatever happens."""
    unfinished = path.with_suffix(".tmp")
    with explain(f"cannot write {path}, the last one stays", OSError, RuntimeError):
        with contextlib.ExitStack() as stack:
            stack.callback(unfinished.unlink, missing_ok=True)
            with open(unfinished, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of this script. Nothing that the file holds is executed."""
    with explain(f"--resume {path} is not an intact checkpoint of this script", Exception):
        with zipfile.ZipFile(path) as archive:  # torch.load looks at neither checksums nor flags
            if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
                raise ValueError("it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["args"].keys() != vars(Args()).keys():
            raise ValueError("its settings belong to another script or version")
    return content


def saved_args(path: str) -> Args:
    """The settings with which a checkpoint's run goes on; only total_timesteps may be raised."""
    return Args(**read_checkpoint(path)["args"] | {"resume": path})


class Run(contextlib.ExitStack):
    """What surrounds the loop: the run's folder, metrics, evaluations, checkpoints and signals.

    A checkpoint is the settings, `progress` (how far the loop has come) and the state_dict of each
    of `parts`, after a step and before that step is evaluated and logged. That comes first when the
    run is resumed, so that a row is neither lost nor written twice.
    """

    def __init__(self, args: Args):
        super().__init__()
        check_args(args)
        self.args, self.parts, self.metrics, self.senders, self.signals = args, {}, {}, [], []
        self.progress = {"step": 0, "seconds": 0.0, "csv_size": 0, "episodes": 0, "ended": []}
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{int(time.time())}"
        self.dir = Path(args.runs_dir, re.sub(r"[^\w.-]", "-", name))
        if args.resume:
            self.dir, self.saved = Path(args.resume).resolve().parent, read_checkpoint(args.resume)
            self.progress, old = self.saved["progress"], self.saved["args"]
            changed = {k for k in old if getattr(args, k) != old[k]} - {"resume"}
            if changed == {"total_timesteps"} and args.total_timesteps > old["total_timesteps"]:
                print("--total-timesteps has grown, with it the replay buffer and all schedules")
            elif changed:
                fail(f"--resume goes on with the run's own settings; it cannot change {changed}")
        self.step, self.csv = self.progress["step"], self.dir / "metrics.csv"
        self.judge = lambda trajectories: {}  # a script's own metrics of an evaluation
        self.generators = [torch] + [getattr(torch, d) for d in ("cuda", "mps") if d in args.device]

    def start(self, env: gym.Env) -> np.ndarray:
        """Open the files; begin the first episode, or go back to where the checkpoint was taken."""
        about = vars(self.args) | {m.__name__: m.__version__ for m in (torch, gym, np)}
        about |= {"platform": platform.platform(), "python": sys.version, "cores": os.cpu_count()}
        with explain(f"cannot write into {self.dir}", OSError):
            self.dir.mkdir(parents=True, exist_ok=bool(self.args.resume))
            (self.dir / "args.json").write_text(json.dumps(about, indent=2))
            with open(self.csv, "a", newline="") as file:
                # Rows after the checkpoint are cut off: they come again.
                if file.truncate(min(file.tell(), self.progress["csv_size"])) == 0:
                    csv.writer(file).writerow([*COLUMNS, *METRICS, *EVAL])
        if self.args.track:
            import wandb

            where = {"dir": self.dir, "id": self.dir.name, "resume": "allow"}
            with explain("--track", wandb.errors.Error):
                run = wandb.init(project=self.args.wandb_project_name, config=about, **where)
            self.senders.append(self.enter_context(run).log)
        if self.args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board = self.enter_context(SummaryWriter(self.dir, purge_step=self.step))
            self.senders.append(lambda row, step: [board.add_scalar(k, row[k], step) for k in row])
        print(f"{self.dir}: replay takes up to {self.parts['replay'].table.nbytes:,} B", flush=True)
        with contextlib.suppress(ValueError):  # outside the main thread signals cannot be caught
            for n in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, n, signal.signal(n, lambda *s: self.signals.append(s)))
        self.began = time.perf_counter() - self.progress["seconds"]
        env.reset(seed=self.args.seed)
        return self.restore(env) if self.args.resume else self.reset(env)

    def restore(self, env: gym.Env) -> np.ndarray:
        """Load every part, replay the unfinished episode, log the step of the checkpoint."""
        self.metrics = self.progress["metrics"]
        with explain(f"--resume {self.args.resume} does not fit this script", Exception):
            for name, part in self.parts.items():
                part.load_state_dict(self.saved["parts"].pop(name))
        env.unwrapped.np_random.bit_generator.state = self.progress["env_rng"]
        obs, _ = env.reset()
        replay, length = self.parts["replay"], len(self.progress["rewards"])
        episode = replay.gather(torch.arange(replay.added - length, replay.added) % len(replay))
        for action in episode.action.cpu().numpy():
            obs, *_ = env.step(action)
        if length and not np.array_equal(obs, episode.next_obs[-1].cpu().numpy()):
            print("note: this environment cannot be put back exactly: not bit for bit from here")
        for generator, state in zip(self.generators, self.progress["generators"], strict=True):
            generator.set_rng_state(state)
        self.after_step()
        return obs

    def reset(self, env: gym.Env) -> np.ndarray:
        """Begin an episode, after counting the one that ended, if any."""
        if rewards := self.progress.get("rewards"):
            self.progress["episodes"] += 1
            self.progress["ended"].append((sum(rewards), len(rewards)))
        self.progress |= {"rewards": [], "env_rng": env.unwrapped.np_random.bit_generator.state}
        obs, _ = env.reset()
        self.check_finite(observation=obs)
        return obs

    def record(self, next_obs: np.ndarray, reward: float) -> None:
        """Count a step."""
        self.step += 1
        self.progress["rewards"].append(float(reward))
        if not (np.isfinite(next_obs).all() and math.isfinite(reward)):
            self.check_finite(observation=next_obs, reward=reward)

    def check_finite(self, **values: Any) -> None:
        for name, value in values.items():
            if not torch.as_tensor(value).isfinite().all():
                fail(f"step {self.step} of {self.args.env_id}: {name} is not finite")

    def due(self, every: int) -> bool:
        return self.step == self.args.total_timesteps or (every > 0 and self.step % every == 0)

    def after_step(self) -> None:
        """Save, evaluate and log, each when it is due."""
        args, step, evaluation = self.args, self.step, {}
        if self.signals or self.due(args.checkpoint_frequency):
            self.save()
        if self.due(args.eval_frequency):
            video_dir = self.dir / f"video-{step}" if args.capture_video else None
            actor, stopped = self.parts["actor"], lambda: self.signals and self.save()
            trajectories = evaluate(actor, args, video_dir, stopped)  # save() leaves after a signal
            returns = [sum(transition[2] for transition in episode) for episode in trajectories]
            evaluation = {k: of(returns) for k, of in EVAL.items()} | self.judge(trajectories)
            tqdm.write(f"step {step}: mean return {np.mean(returns):.1f} in evaluation", sys.stderr)
        elif not self.due(args.log_frequency):
            return
        metrics = {name: value.mean().item() for name, value in self.metrics.items()} | evaluation
        self.check_finite(**metrics)
        seconds = time.perf_counter() - self.began
        row = {"global_step": step, "seconds": round(seconds, 3), "sps": round(step / seconds, 1)}
        row |= {"episodes": self.progress["episodes"]} | metrics
        if ended := self.progress["ended"]:
            row["episodic_return"], row["episodic_length"] = np.mean(ended, axis=0)
        with explain(f"cannot write {self.csv}", OSError), open(self.csv, "a", newline="") as file:
            csv.DictWriter(file, [*COLUMNS, *METRICS, *EVAL]).writerow(row)
        for send in self.senders:
            send(row, step)
        self.progress["ended"], self.row = [], row

    def save(self) -> None:
        """Write model.pt (the networks) and checkpoint.pt (everything); after a signal, leave."""
        networks = nn.ModuleDict({k: v for k, v in self.parts.items() if isinstance(v, nn.Module)})
        self.check_finite(**{k: v for k, v in networks.named_parameters() if v.requires_grad})
        self.progress |= {"step": self.step, "seconds": time.perf_counter() - self.began}
        self.progress |= {"csv_size": self.csv.stat().st_size, "metrics": self.metrics}
        self.progress["generators"] = [generator.get_rng_state() for generator in self.generators]
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        write_file(self.dir / "model.pt", networks.state_dict())
        content = {"args": vars(self.args), "progress": self.progress, "parts": parts}
        write_file(self.dir / "checkpoint.pt", content)
        if self.signals:
            raise SystemExit(f"stopped at step {self.step}: --resume {self.dir / 'checkpoint.pt'}")

    def finish(self) -> dict[str, Any]:
        """Print the line of results; return them and the actor."""
        results = {name: value for name, value in self.row.items() if name.startswith("eval")}
        results |= {"global_step": self.step, "seconds": self.row["seconds"], "run_dir": self.dir}
        print("final", *(f"{name}={value}" for name, value in results.items()), flush=True)
        return results | {"actor": self.parts["actor"]}


if __name__ == "__main__":
    args = tyro.cli(Args)
    train(tyro.cli(Args, default=saved_args(args.resume)) if args.resume else args)
