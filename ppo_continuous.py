# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium>=1.1,<2", "numpy>=2", "tyro>=0.9", "tqdm", "wandb"]
# ///
# MIT licence. Part of Marginalia: algorithms to be read beside the lecture notes.
"""Proximal Policy Optimization (PPO) for continuous actions.

PPO collects a batch of steps with the current policy and takes many gradient steps on it: actions
that did better than expected become more likely. Its surrogate objective stops rewarding a policy
that has moved away from the one that acted, so that the batch can be used more than once.
    [2017] Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347
    [2016] Schulman et al., High-Dimensional Continuous Control Using GAE, ICLR, arXiv:1506.02438

Algorithm ([2017], Algorithm 1; d = 1 where the episode terminated, c where it ended in any way)
    initialise pi_theta and V_phi
    for every iteration:
     1  run pi_theta for T steps in each of N environments, from where they are: s, a, r, s', d, c
     2  delta_t = r_t + gamma (1 - d_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - c_t) A_t+1,  R_t = A_t + V(s_t);  theta_old <- theta
        for every epoch, for every minibatch of the shuffled T N steps:
     3     rho = pi_theta(a|s) / pi_theta_old(a|s)
           theta, phi <- ascend mean min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)
                               - c_1 mean 1/2 (V(s) - R)^2 + c_2 mean H(pi_theta(.|s))

Notation    s, a, r, s'     obs, action, reward, next_obs     rho              ratio
            d, c            terminated, ended                 epsilon          clip_coef
            A, R            advantage, returns                c_1, c_2         vf_coef, ent_coef
            V(s), V(s')     value, next_value                 pi_theta, V_phi  actor, critic
Shapes: T steps, N environments, B steps in a minibatch, O = dim(S), A = dim(A).
Sibling: sac_continuous.py, which learns from all former policies' steps, by Q instead of V.
"""

import contextlib
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm, trange


# === 2. Arguments =================================================================================
@dataclasses.dataclass
class Args:
    env_id: str = "Pendulum-v1"
    """gymnasium environment with vector observations and bounded continuous actions"""
    total_timesteps: int = 102_400
    """steps of all environments together, rounded up to whole iterations (MuJoCo: 1_000_000)"""
    seed: int = 1
    """seed of PyTorch and of the training environment"""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """networks this small gain nothing from a GPU"""
    num_threads: int = 1
    """PyTorch's CPU threads; 2 may be faster where no other run needs them"""
    num_envs: int = 1
    """environments that are run side by side"""
    async_envs: bool = False
    """a process for each of them; pays where a step takes much longer than a millisecond"""
    num_steps: int = 2048
    """steps in each environment per iteration; at its end all that is due is done [2017; slides]"""
    num_minibatches: int = 32
    """minibatches per epoch, here of 64 steps [2017, table 3; slides]; must divide the batch"""
    update_epochs: int = 10
    """how often each step is learnt from [2017, table 3; slides]"""
    hidden_dim: int = 64
    """units in each of the two hidden layers of both networks [2017, sec. 6.1]"""
    learning_rate: float = 3e-4
    """Adam's step size at the first iteration [2017, table 3]"""
    anneal_lr: bool = True
    """let it fall linearly to 0 over the run [2017, table 5, for Atari]"""
    gamma: float = 0.99
    """discount factor per step [2017, table 3]"""
    gae_lambda: float = 0.95
    """0 takes one reward and then V, 1 takes all rewards of the rollout [2017, table 3]"""
    surrogate: Literal["clip", "clip-no-min", "kl-penalty", "unclipped"] = "clip"
    """what keeps the policy near: see room 5"""
    clip_coef: float = 0.2
    """epsilon: how far the ratio may go before it earns no more [2017, sec. 6.1]"""
    kl_coef: float = 1.0
    """beta of --surrogate kl-penalty at the start; it adapts"""
    kl_coef_target: float = 0.01
    """KL divergence per iteration, in nats, that beta aims at [2017, sec. 6.1]"""
    clip_vloss: bool = False
    """keep V within clip_coef of its old value too, in units of scaled reward [CleanRL: on]"""
    norm_adv: bool = True
    """shift and scale the advantages of each iteration to mean 0 and standard deviation 1"""
    ent_coef: float = 0.0
    """c_2: weight of the entropy [2017, sec. 6.1: none]"""
    vf_coef: float = 0.5
    """c_1: weight of the value loss [CleanRL]"""
    max_grad_norm: float = 0.5
    """largest norm of an optimizer's gradient; a longer one is scaled down to it; 0 = off"""
    target_kl: float = 0.0
    """end the iteration at a minibatch whose mean KL divergence is above this; 0 = off"""
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


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """Several of them; where an episode ends, the next one begins within the same step."""
    vector = gym.vector.AsyncVectorEnv if args.async_envs else gym.vector.SyncVectorEnv
    mode = gym.vector.AutoresetMode.SAME_STEP  # the ended episode's last obs: info["final_obs"]
    return vector([lambda: make_env(args.env_id)] * args.num_envs, autoreset_mode=mode)


def mlp(inputs: int, hidden: int, outputs: int, gain: float = 1.0) -> nn.Sequential:
    """Two hidden layers of tanh [2017, sec. 6.1]; orthogonal weights, biases 0."""
    layers = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Moments(nn.Module):
    """Running mean and variance; buffers, so that they are saved with the networks."""

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))

    def update(self, samples: Tensor) -> None:
        """Join the moments of samples (B, ...) to those of all before."""
        self.count += len(samples)
        share, shift = len(samples) / self.count, samples.mean(0) - self.mean
        self.var.lerp_(samples.var(0, correction=0), share).add_(share * (1 - share) * shift**2)
        self.mean += share * shift


class Actor(nn.Module):
    """pi_theta(a|s): a Gaussian with diagonal covariance, on normalised observations."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        self.moments = Moments(obs_dim)
        self.net = mlp(obs_dim, hidden_dim, action_dim, gain=0.01)
        # One for all states [2017, sec. 6.1]; SAC's depends on s, and learns more than this needs.
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def normalise(self, obs: Tensor) -> Tensor:
        return ((obs - self.moments.mean) / (self.moments.var + 1e-8).sqrt()).clamp(-10, 10)

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action of evaluation, the mean: (N, O) -> (N, A)."""
        return self.net(self.normalise(obs)).clamp(-1, 1)

    @torch.inference_mode()
    def sample(self, obs: Tensor) -> Tensor:
        """An action that may leave [-1, 1]; make_env clips it: (N, O) -> (N, A)."""
        mean = self.net(self.normalise(obs))
        return mean + self.log_std.exp() * torch.randn_like(mean)


# === 4. Rollout storage ===========================================================================
class Batch(NamedTuple):
    obs: Tensor  # (T, N, O)
    action: Tensor  # (T, N, A), as drawn, not as clipped: rho is a ratio of its densities
    reward: Tensor  # (T, N)
    next_obs: Tensor  # (T, N, O), at an episode's end its last observation
    terminated: Tensor  # (T, N), 1.0 at a true end, 0.0 at a time limit
    ended: Tensor  # (T, N), 1.0 at either


# === 5. The algorithm =============================================================================
def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(a; mean, std^2), summed over dimensions.  (..., A) -> (...,)"""
    noise = (action - mean) / log_std.exp()
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(old||new) in closed form, summed over dimensions.  (..., A) -> (...,)"""
    squares = (2 * old_log_std).exp() + (old_mean - mean).square()
    return (log_std - old_log_std + 0.5 * squares / (2 * log_std).exp() - 0.5).sum(-1)


def gae(batch: Batch, value: Tensor, next_value: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = delta_t + gamma lambda (1 - c_t) A_t+1 with delta_t = r + gamma (1 - d) V(s') - V(s).

    That weighs the n-step advantages by (1 - lambda) lambda^(n-1), the last of N by lambda^(N-1)
    [2016, eq. 16; 2017, eq. 11]. A time limit ends the sum, and V of the last observation stands
    for the rest; after termination there is no rest.  (T, N) -> (T, N)
    """
    delta = batch.reward + gamma * (1 - batch.terminated) * next_value - value
    decay = gamma * lam * (1 - batch.ended)
    advantage, later = [], torch.zeros_like(delta[0])
    for delta_t, decay_t in zip(reversed(delta.unbind()), reversed(decay.unbind()), strict=True):
        later = delta_t + decay_t * later
        advantage.append(later)
    return torch.stack(advantage[::-1])


def surrogate(kind: str, ratio: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """L(theta), to be maximised [2017, eq. 6-8].  (B,) -> (B,)

    Clipped, a ratio beyond 1 +- epsilon earns no more. The minimum keeps the slope where the ratio
    went the wrong way (below 1 with A > 0, above 1 with A < 0), so that the policy comes back.
    """
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage
    if kind == "clip":
        return torch.minimum(ratio * advantage, clipped)
    return clipped if kind == "clip-no-min" else ratio * advantage


def adapted(beta: float, kl: float, goal: float) -> float:
    """The penalty's weight for the next iteration [2017, sec. 4]."""
    return beta * (2 if kl > 1.5 * goal else 0.5 if kl < goal / 1.5 else 1)


def value_loss(value: Tensor, returns: Tensor, old_value: Tensor, limit: float) -> Tensor:
    """mean 1/2 (V(s) - R)^2; with a limit, the larger of that at V and at V moved by at most it."""
    error = (value - returns).square()
    if limit < math.inf:
        near = old_value + (value - old_value).clamp(-limit, limit)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error.mean()


def minibatches(size: int, number: int, epochs: int) -> Iterator[Tensor]:
    """Row numbers: in every epoch each row once, shuffled anew."""
    for _ in range(epochs):
        yield from torch.randperm(size).chunk(number)


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """One optimizer step down the loss; only its own parameters' gradients are computed."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    if max_grad_norm > 0:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


# === 6. Training loop =============================================================================
METRICS = ("policy_loss", "value_loss", "v", "explained_variance")
METRICS += ("entropy", "kl", "kl_coef", "clip_fraction")


def collect(actor: Actor, envs: Any, obs: np.ndarray, args: Args, run: Any) -> tuple:
    """A rollout as a Batch, and the observations (N, O) with which the next one begins."""
    rollout = []
    for _ in range(args.num_steps):
        action = actor.sample(torch.as_tensor(obs, device=args.device)).cpu().numpy()
        next_obs, reward, terminated, truncated, info = envs.step(action)
        ended, last_obs = terminated | truncated, next_obs.copy()
        if ended.any():  # there, next_obs is the first observation of the next episode
            last_obs[ended] = np.stack(info["final_obs"][ended])
        rollout.append((obs, action, reward, last_obs, terminated, ended))
        run.record(next_obs, last_obs, reward, ended)
        obs = next_obs
    columns = (np.stack(x, dtype=np.float32) for x in zip(*rollout, strict=True))
    return Batch(*(torch.from_numpy(x).to(args.device) for x in columns)), obs


def train(args: Args) -> dict[str, Any]:
    """Run PPO; return the last evaluation, the run's folder and the actor."""
    size = args.num_envs * args.num_steps
    run = Run(args)  # room 7: the run's folder, metrics, checkpoints
    if size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches} does not divide the {size} steps")
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    envs = make_envs(args)
    obs_dim, action_dim = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    actor = Actor(obs_dim, action_dim, args.hidden_dim).to(args.device)
    critic = mlp(obs_dim, args.hidden_dim, 1).append(nn.Flatten(-2)).to(args.device)
    scale = Moments().to(args.device)  # of the discounted rewards to go
    params = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(params, args.learning_rate, eps=1e-5, fused=True)
    run.parts = dict(actor=actor, critic=critic, scale=scale, optimizer=optimizer)  # all is saved
    beta = run.progress.setdefault("kl_coef", args.kl_coef * (args.surrogate == "kl-penalty"))
    v_limit = args.clip_coef if args.clip_vloss else math.inf
    iterations = math.ceil(args.total_timesteps / size)
    with run, contextlib.closing(envs):
        obs = run.start(envs)
        for iteration in trange(run.step // size, iterations, disable=None):
            remaining = 1 - args.anneal_lr * iteration / iterations
            optimizer.param_groups[0]["lr"] = remaining * args.learning_rate
            batch, obs = collect(actor, envs, obs, args, run)

            # Evaluate what the policy did, all steps at once.
            with torch.no_grad():
                zero = torch.zeros_like(batch.reward)
                scale.update(gae(batch, zero, zero, args.gamma, 1.0).flatten())
                reward = (batch.reward / (scale.var + 1e-8).sqrt()).clamp(-10, 10)
                batch = batch._replace(reward=reward)
                state, next_state = actor.normalise(batch.obs), actor.normalise(batch.next_obs)
                value = critic(state)
                advantage = gae(batch, value, critic(next_state), args.gamma, args.gae_lambda)
                old_mean, old_log_std = actor.net(state), actor.log_std.clone()
                old_log_prob = gaussian_log_prob(batch.action, old_mean, old_log_std)
            returns = advantage + value
            if args.norm_adv:
                advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)

            # Learn.
            data = state, batch.action, advantage, returns, value, old_mean, old_log_prob
            for rows in minibatches(size, args.num_minibatches, args.update_epochs):
                s, a, adv, ret, old_v, old_mu, old_logp = (x.flatten(0, 1)[rows] for x in data)
                mean, log_std = actor.net(s), actor.log_std
                kl = 0.0  # computed where something depends on it
                if args.target_kl + beta > 0:
                    kl = gaussian_kl(old_mu, old_log_std, mean, log_std).mean()
                if 0 < args.target_kl < kl:
                    break  # tested before each step on its own minibatch; ends all epochs
                ratio = (gaussian_log_prob(a, mean, log_std) - old_logp).exp()
                gain = surrogate(args.surrogate, ratio, adv, args.clip_coef).mean() - beta * kl
                v_loss = value_loss(critic(s), ret, old_v, v_limit)
                entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
                loss = -gain + args.vf_coef * v_loss - args.ent_coef * entropy
                gradient_step(optimizer, loss, args.max_grad_norm)

            # What became of the policy, measured on the whole batch.
            with torch.no_grad():
                new_mean = actor.net(state)
                kl = gaussian_kl(old_mean, old_log_std, new_mean, actor.log_std).mean()
                new_log_prob = gaussian_log_prob(batch.action, new_mean, actor.log_std)
                ratio = (new_log_prob - old_log_prob).exp()
                clipped = ((ratio - 1).abs() > args.clip_coef).float()
                error, spread = (returns - value).var(correction=0), returns.var(correction=0)
            run.metrics.update(policy_loss=-gain, value_loss=v_loss, v=value, entropy=entropy)
            run.metrics.update(explained_variance=1 - error / (spread + 1e-8), kl=kl)
            run.metrics.update(clip_fraction=clipped, kl_coef=torch.tensor(float(beta)))
            beta = run.progress["kl_coef"] = adapted(beta, kl.item(), args.kl_coef_target)
            actor.moments.update(batch.obs.flatten(0, 1))  # not before: all above saw the same
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
    with explain(f"--device {args.device} cannot be used here", RuntimeError, AssertionError):
        torch.empty(0, device=args.device)


def open_env(env_id: str, **kwargs: Any) -> gym.Env:
    """gym.make, with a message for every environment that the networks cannot serve."""
    if "AsyncVectorEnv" in torch.multiprocessing.current_process().name:
        for n in (signal.SIGINT, signal.SIGTERM):  # the main process answers them
            signal.signal(n, signal.SIG_IGN)
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
        self.unfinished = []  # return and length of the episodes that ended in this iteration
        self.progress = {"step": 0, "seconds": 0.0, "csv_size": 0, "episodes": 0, "ended": []}
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{int(time.time())}"
        self.dir = Path(args.runs_dir, re.sub(r"[^\w.-]", "-", name))
        if args.resume:
            self.dir, self.saved = Path(args.resume).resolve().parent, read_checkpoint(args.resume)
            self.progress, old = self.saved["progress"], self.saved["args"]
            changed = {k for k in old if getattr(args, k) != old[k]} - {"resume"}
            if changed == {"total_timesteps"} and args.total_timesteps > old["total_timesteps"]:
                print("--total-timesteps has grown, and with it all schedules")
            elif changed:
                fail(f"--resume goes on with the run's own settings; it cannot change {changed}")
        self.step, self.csv = self.progress["step"], self.dir / "metrics.csv"
        self.size = args.num_envs * args.num_steps  # steps per iteration
        self.judge = lambda trajectories: {}  # a script's own metrics of an evaluation
        self.generators = [torch] + [getattr(torch, d) for d in ("cuda", "mps") if d in args.device]

    def start(self, envs: gym.vector.VectorEnv) -> np.ndarray:
        """Open the files, go back to where the checkpoint was taken, begin the first episodes."""
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
        print(f"{self.dir}: rollouts of {self.size:,} steps", flush=True)
        with contextlib.suppress(ValueError):  # outside the main thread signals cannot be caught
            for n in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, n, signal.signal(n, lambda *s: self.signals.append(s)))
        self.began = time.perf_counter() - self.progress["seconds"]
        if self.args.resume:
            self.restore()
        self.returns, self.lengths = np.zeros(self.args.num_envs), np.zeros(self.args.num_envs)
        obs, _ = envs.reset(seed=self.args.seed + self.step)
        self.check_finite(observation=obs)
        return obs

    def restore(self) -> None:
        """Load every part, log the step of the checkpoint. The environments begin anew."""
        self.metrics = self.progress["metrics"]
        with explain(f"--resume {self.args.resume} does not fit this script", Exception):
            for name, part in self.parts.items():
                part.load_state_dict(self.saved["parts"].pop(name))
        for generator, state in zip(self.generators, self.progress["generators"], strict=True):
            generator.set_rng_state(state)
        print("note: every environment begins a new episode: not bit for bit from here")
        if not self.progress.pop("logged", False):
            self.after_step()

    def record(self, next_obs, last_obs, reward: np.ndarray, ended: np.ndarray) -> None:
        """Count a step of every environment, and the episodes that ended in it."""
        self.step += len(reward)
        self.returns, self.lengths = self.returns + reward, self.lengths + 1
        for i in np.flatnonzero(ended):
            self.unfinished.append((float(self.returns[i]), float(self.lengths[i])))
            self.returns[i] = self.lengths[i] = 0
        if not math.isfinite(next_obs.sum() + last_obs.sum() + reward.sum()):
            self.check_finite(observation=np.stack([next_obs, last_obs]), reward=reward)
        if self.signals:  # leave as of the end of the last iteration, whose row is written
            self.step, self.progress["logged"] = (self.step - 1) // self.size * self.size, True
            self.save()

    def check_finite(self, **values: Any) -> None:
        for name, value in values.items():
            if not torch.as_tensor(value).isfinite().all():
                fail(f"step {self.step} of {self.args.env_id}: {name} is not finite")

    def due(self, every: int) -> bool:
        """Whether this iteration reached a multiple of `every`, or the end."""
        passed = every > 0 and self.step // every > (self.step - self.size) // every
        return self.step >= self.args.total_timesteps or passed

    def after_step(self) -> None:
        """Save, evaluate and log, each when it is due."""
        args, step, evaluation = self.args, self.step, {}
        self.progress["episodes"] += len(self.unfinished)
        self.progress["ended"], self.unfinished = self.progress["ended"] + self.unfinished, []
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
