# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium>=1.1,<2", "numpy>=2", "tyro>=0.9", "tqdm", "wandb"]
# ///
# MIT licence. Part of Marginalia: algorithms to be read beside the lecture notes.
"""Soft Actor-Critic (SAC) for continuous actions, with automatic temperature.

SAC maximises reward plus entropy, E[sum_t r_t + alpha H(pi(.|s_t))]: act well, and as randomly as
that allows. Two critics learn the soft Q-function from replayed transitions, a Gaussian actor
squashed by tanh climbs it, and the temperature alpha keeps the policy's entropy at a target.
    [2018] Haarnoja et al., Soft Actor-Critic, ICML 2018, arXiv:1801.01290
    [2019] Haarnoja et al., Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905

Algorithm ([2019], Algorithm 1; d = 1 where the episode terminated, which the paper leaves out)
    initialise pi_phi, Q_1, Q_2, log alpha; target critics Qbar_i <- Q_i; replay D <- {}
    for every environment step:
     1  a ~ pi_phi(.|s), uniform while warming up; observe r, s', d; D <- D + {(s, a, r, s', d)}
        for every gradient step, on a fresh batch of (s, a, r, s', d) from D:
     2     a' ~ pi_phi(.|s'), y = r + gamma (1 - d) [min_i Qbar_i(s', a') - alpha log pi_phi(a'|s')]
     3     Q_i       <- descend mean 1/2 (Q_i(s, a) - y)^2,  i = 1, 2
     4     phi       <- descend mean [alpha log pi_phi(a~|s) - min_i Q_i(s, a~)],  a~ ~ pi_phi(.|s)
     5     log alpha <- descend mean [-alpha (log pi_phi(a~|s) + target entropy)]
     6     Qbar_i    <- tau Q_i + (1 - tau) Qbar_i,  i = 1, 2

Notation    s, s', a, r     obs, next_obs, action, reward     Q_1, Q_2         q1, q2 (theta)
            d               terminated                        Qbar_1, Qbar_2   q1_target, q2_target
            a', a~          next_action, new_action           pi_phi           actor
            log pi(a|s)     log_prob                          alpha            log_alpha.exp()
Shapes: B transitions in a batch, O = dim(S), A = dim(A). One number per transition is (B,).
Siblings: sac_v1_value_net.py adds a value network; td3_continuous.py has a deterministic policy.
"""

import copy
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

at_prompt = hasattr(sys, "ps1")  # IPython and notebooks have one, and a Ctrl-C of their own
if __name__ == "__main__" and not at_prompt and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load: no traceback

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm, trange

# === 2. Arguments =================================================================================
# A number's type says what it may be: its smallest and its largest value. Room 7 checks that.
Count = Annotated[int, (1, 10**12)]
CountOrZero = Annotated[int, (0, 10**12)]
Amount = Annotated[float, (0, 10**12)]
Share = Annotated[float, (0, 1)]


@dataclasses.dataclass
class Args:
    env_id: str = "Pendulum-v1"
    """gymnasium environment with bounded continuous actions, of your own: my_module:Name-v0"""
    env_kwargs: str = "{}"
    """options of its constructor as JSON, such as '{"gravity": 5.0}'"""
    max_episode_steps: CountOrZero = 0
    """time limit of an episode; 0 = the environment's own"""
    total_timesteps: Count = 10_000
    """environment steps; one step is one transition (MuJoCo: 1_000_000)"""
    seed: Annotated[int, (0, 2**32 - 1)] = 1
    """seed of PyTorch, random, numpy.random and the training environment"""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """where the networks are; a step is hundreds of small operations, so expect little of a GPU"""
    num_threads: Annotated[int, (1, 256)] = 1
    """PyTorch's CPU threads; 2 may be faster where no other run needs them"""
    hidden_dim: Annotated[int, (1, 10_000)] = 256
    """units in each of the two hidden layers of every network [2019, App. D]"""
    policy_lr: Amount = 3e-4
    """Adam's step size for the actor [2019, App. D]"""
    q_lr: Amount = 1e-3
    """Adam's step size for the critics [CleanRL; 2019, App. D: 3e-4]"""
    gamma: Share = 0.99
    """discount factor per step [2019, App. D]"""
    tau: Share = 0.005
    """share of a network that moves into its target at each update [2019, App. D]"""
    batch_size: Annotated[int, (1, 10**6)] = 256
    """transitions per gradient update [2019, App. D]"""
    buffer_size: Count = 1_000_000
    """transitions kept for replay [2019, App. D]; never more than total_timesteps"""
    learning_starts: CountOrZero = 1_000
    """steps of uniformly random actions before the first update (MuJoCo: 10_000)"""
    updates_per_step: Annotated[float, (0, 1000)] = 1.0
    """gradient updates per environment step; 0.5 is one update every second step"""
    max_grad_norm: Amount = 0.0
    """largest norm of all gradients of an optimizer together; longer ones are scaled; 0 = off"""
    autotune: bool = True
    """tune the temperature; --no-autotune keeps it at alpha"""
    alpha: Amount = 0.2
    """temperature, in units of reward: where tuning begins, or the fixed value, which may be 0"""
    alpha_lr: Amount = 1e-3
    """Adam's step size for log alpha [CleanRL; 2019, App. D: 3e-4]"""
    target_entropy_scale: Amount = 1.0
    """target entropy is -scale * dim(A) nats, for actions in [-1, 1] [2019, App. D]"""
    # From here on: bookkeeping.
    compile: bool = False
    """turn the updates into machine code: faster, after up to a minute; needs a C++ compiler"""
    log_frequency: CountOrZero = 100
    """steps between two rows of metrics.csv; 0 = only with an evaluation"""
    eval_frequency: CountOrZero = 2_500
    """steps between two evaluations of the deterministic policy; 0 = only at the end"""
    eval_episodes: Annotated[int, (0, 10_000)] = 10
    """episodes per evaluation, from starts that are the same in every run; 0 = no evaluation"""
    checkpoint_frequency: CountOrZero = 5_000
    """steps between two checkpoints, each with all of the replay; 0 = only where the run ends"""
    resume: str = ""
    """a run's checkpoint.pt: go on with that run, in its folder, with its settings"""
    runs_dir: str = "runs"
    """where the run's folder is made"""
    track: bool = False
    """send the metrics to Weights & Biases too; WANDB_PROJECT names the project"""


# === 3. Networks ==================================================================================
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
    """pi_phi(a|s): a Gaussian with diagonal covariance, squashed by tanh into (-1, 1)^A."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        self.net = mlp(obs_dim, hidden_dim, 2 * action_dim)

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action of evaluation, tanh(mu(s)): (B, O) -> (B, A)."""
        mean, _ = self.net(obs).chunk(2, dim=-1)
        return mean.tanh()

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """A reparameterised action [2019, eq. 8] and log pi of it: (B, O) -> (B, A), (B,)."""
        mean, log_std = self.net(obs).chunk(2, dim=-1)  # (B, A) each
        log_std = log_std.clamp(-20, 2)  # the bounds of the authors' code, found by trial
        noise = torch.randn_like(mean)  # epsilon ~ N(0, I), which does not depend on phi
        u = mean + log_std.exp() * noise  # mu + sigma epsilon, differentiable in mu and sigma
        return u.tanh(), squashed_log_prob(u, log_std, noise)


# === 4. Replay buffer =============================================================================
class Batch(NamedTuple):
    obs: Tensor  # (B, O)
    action: Tensor  # (B, A), in [-1, 1]
    reward: Tensor  # (B,)
    next_obs: Tensor  # (B, O), at an episode's end its last observation
    terminated: Tensor  # (B,), 1.0 at a true end, 0.0 at a time limit


class ReplayBuffer:
    """The last `capacity` transitions, one to a row of a table: one indexing fetches a batch."""

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
        np.copyto(self.table[: len(self)], state["table"].numpy())


# === 5. The algorithm =============================================================================
def squashed_log_prob(u: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """log pi(a|s) = log N(u; mean, std) - sum_j log(1 - tanh(u_j)^2), a = tanh(u)  [2018, eq. 21]

    A density over [-1, 1]^A; noise = (u - mean) / std. This form neither saturates nor overflows:
    at u = 10 the logarithm is -18.6, but log(1 - a^2 + 1e-6) in float32 gives -13.8. (B, A) -> (B,)
    """
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2)
    return (log_normal - log_slope).sum(-1)


def soft_value(q1: Tensor, q2: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """V(s) ~ min_i Q_i(s, a) - alpha log pi(a|s), one sample a ~ pi(.|s)  [2019, eq. 3].

    V is the mean of this over a. The smaller Q overestimates less [2019, sec. 6]. (B,) -> (B,)
    """
    return torch.minimum(q1, q2) - alpha * log_prob


def bellman_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - d) V(s'), nothing after termination  [2019, eq. 2].  (B,) -> (B,)

    Q has no entropy of its own step, t = 0: the action is given there, so nothing is random.
    """
    return reward + gamma * (1 - terminated) * next_value


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """J_Q(theta) = mean 1/2 (Q_theta(s, a) - y)^2; y is a constant  [2019, eq. 5].  (B,) -> ()"""
    return 0.5 * F.mse_loss(q, target)


def actor_loss(log_prob: Tensor, q1: Tensor, q2: Tensor, alpha: Tensor) -> Tensor:
    """J_pi(phi) = mean [alpha log pi_phi(a~|s) - min_i Q_i(s, a~)]  [2019, eq. 9].  (B,) -> ()

    phi acts through log_prob and, by way of the reparameterised a~, through q1 and q2.
    This is alpha KL(pi_phi(.|s) || exp(Q(s, .) / alpha) / Z(s)) [2019, eq. 4] without the term
    alpha log Z(s), which does not depend on phi: the policy is projected onto the softmax of Q.
    """
    return (alpha * log_prob - torch.minimum(q1, q2)).mean()


def temperature_loss(alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """J(alpha) = mean [-alpha (log pi(a~|s) + target entropy)]  [2019, eq. 18].  (B,) -> ()

    Entropy above the target lowers alpha, below it raises alpha. Much code writes log alpha for
    alpha here: its gradient lacks a factor alpha > 0, so that it comes to rest at the same place.
    """
    return (-alpha * (log_prob + target_entropy)).mean()


class Adam(nn.Module):
    """Steps of about `lr` in every direction, whatever the gradient's scale  [Kingma and Ba 2015].

    Its state is in buffers: it is saved together with the networks that it changes.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float = 1e-8):
        super().__init__()
        self.params = list(params)
        self.eps = eps
        self.register_buffer("lr", self.params[0].new_tensor(lr), persistent=False)
        self.register_buffer("t", self.params[0].new_zeros(()))  # steps
        for i, p in enumerate(self.params):
            self.register_buffer(f"m{i}", torch.zeros_like(p))  # running mean of the gradient
            self.register_buffer(f"v{i}", torch.zeros_like(p))  # and of its square

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """p <- p - lr m_hat / (sqrt(v_hat) + eps), beta_1 = 0.9, beta_2 = 0.999  [Algorithm 1]"""
        self.t += 1
        rate = self.lr / (1 - 0.9**self.t)  # m_hat = m / (1 - beta_1^t): it began with zero
        scale = 1 - 0.999**self.t  # v_hat = v / (1 - beta_2^t)
        for i, (p, g) in enumerate(zip(self.params, gradients, strict=True)):
            m = getattr(self, f"m{i}")
            v = getattr(self, f"v{i}")
            m.lerp_(g, 0.1)  # m <- 0.9 m + 0.1 g
            v.mul_(0.999).addcmul_(g, g, value=0.001)  # v <- 0.999 v + 0.001 g^2
            p.addcdiv_(rate * m, (v / scale).sqrt() + self.eps, value=-1)


def gradient_step(optimizer: Adam, loss: Tensor, max_grad_norm: float) -> None:
    """One step of the optimizer down the loss."""
    # Of its parameters only: the actor's loss leaves the critics alone.
    gradients = torch.autograd.grad(loss, optimizer.params)
    if max_grad_norm > 0:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
        gradients = [gradient * factor for gradient in gradients]
    optimizer.step(gradients)


@torch.no_grad()
def update_target(target: nn.Module, network: nn.Module, tau: float) -> None:
    """theta_bar <- tau theta + (1 - tau) theta_bar  [2019, Algorithm 1]"""
    for slow, current in zip(target.parameters(), network.parameters(), strict=True):
        slow.lerp_(current, tau)


def updates_due(step: int, rate: float) -> range:
    """Numbers, from 1 on, of the updates after step number `step`. Rate 0.5: after 2, 4, 6, ..."""
    return range(int((step - 1) * rate) + 1, int(step * rate) + 1) if step > 0 else range(0)


# === 6. Training loop =============================================================================
class Agent(nn.Module):
    """All that learns: networks, their slow copies, the temperature, and their optimizers."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args):
        super().__init__()
        self.actor = Actor(obs_dim, action_dim, args.hidden_dim)
        self.q1 = Critic(obs_dim, action_dim, args.hidden_dim)
        self.q2 = Critic(obs_dim, action_dim, args.hidden_dim)
        self.q1_target = copy.deepcopy(self.q1)
        self.q2_target = copy.deepcopy(self.q2)
        # The logarithm, so that no step can make alpha negative.
        self.log_alpha = nn.Parameter(torch.tensor(args.alpha).log(), requires_grad=args.autotune)
        self.target_entropy = -args.target_entropy_scale * action_dim
        self.to(args.device)
        q_params = [*self.q1.parameters(), *self.q2.parameters()]
        self.actor_optimizer = Adam(self.actor.parameters(), args.policy_lr)
        self.q_optimizer = Adam(q_params, args.q_lr)
        self.alpha_optimizer = Adam([self.log_alpha], args.alpha_lr)


def update(agent: Agent, batch: Batch, args: Args) -> dict[str, Tensor]:
    """Lines 2 to 6 of the algorithm, once. Returns what metrics.csv shows of it, () or (B,)."""
    alpha = agent.log_alpha.exp().detach()  # (), a constant except in line 5

    # 2  Target. a' comes from the current policy; the one that chose a is long replaced.
    with torch.no_grad():
        next_action, next_log_prob = agent.actor.sample(batch.next_obs)  # (B, A), (B,)
        next_q1 = agent.q1_target(batch.next_obs, next_action)  # (B,), as all that follow
        next_q2 = agent.q2_target(batch.next_obs, next_action)
        next_value = soft_value(next_q1, next_q2, next_log_prob, alpha)
        y = bellman_target(batch.reward, batch.terminated, next_value, args.gamma)

    # 3  Critics.
    q1 = agent.q1(batch.obs, batch.action)
    q2 = agent.q2(batch.obs, batch.action)
    q_loss = critic_loss(q1, y) + critic_loss(q2, y)
    gradient_step(agent.q_optimizer, q_loss, args.max_grad_norm)
    metrics = {"critic_loss": q_loss.detach(), "q1": q1.detach(), "q2": q2.detach()}

    # 4  Actor.
    new_action, log_prob = agent.actor.sample(batch.obs)  # (B, A), (B,)
    new_q1 = agent.q1(batch.obs, new_action)
    new_q2 = agent.q2(batch.obs, new_action)
    pi_loss = actor_loss(log_prob, new_q1, new_q2, alpha)
    gradient_step(agent.actor_optimizer, pi_loss, args.max_grad_norm)
    metrics |= {"actor_loss": pi_loss.detach(), "entropy": -log_prob.detach(), "alpha": alpha}

    # 5  Temperature, from the actor's sample.
    if args.autotune:
        log_prob = log_prob.detach()  # the actor is not changed here
        alpha_loss = temperature_loss(agent.log_alpha.exp(), log_prob, agent.target_entropy)
        gradient_step(agent.alpha_optimizer, alpha_loss, args.max_grad_norm)
        metrics |= {"temperature_loss": alpha_loss.detach()}

    # 6  Target critics.
    update_target(agent.q1_target, agent.q1, args.tau)
    update_target(agent.q2_target, agent.q2, args.tau)
    return metrics


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run SAC; return its results, its folder and the agent. Raises RunError."""
    if args.autotune and args.alpha == 0:
        raise RunError("--alpha 0 has no logarithm to tune; --no-autotune keeps it at 0")
    run = Run(args, checkpoint)  # room 7: folder, metrics, checkpoints, Ctrl-C
    args = run.args
    with run, processor_settings(args.num_threads):
        env = make_env(args.env_id, **run.env_options)
        obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
        agent = Agent(obs_dim, action_dim, args)
        capacity = min(args.buffer_size, args.total_timesteps)
        replay = ReplayBuffer(capacity, obs_dim, action_dim, args.device)
        learn = compiled(update, args.device) if args.compile else update
        obs = run.start(env, agent, replay)
        for step in trange(run.step + 1, args.total_timesteps + 1, disable=None):
            # 1  Act at random while warming up, then by the policy; observe and store.
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_dim) - 1
            else:
                with torch.inference_mode():
                    action, _ = agent.actor.sample(torch.as_tensor(obs, device=args.device))
            action = action.cpu().numpy()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            # A time limit ends the episode but not the world: `truncated` is not stored.
            replay.add(obs, action, reward, next_obs, terminated)
            obs = next_obs
            if terminated or truncated:
                obs = run.reset()
            run.record(reward, terminated or truncated)

            # 2 to 6
            for _ in updates_due(step - args.learning_starts, args.updates_per_step):
                batch = replay.sample(args.batch_size)
                run.metrics |= learn(agent, batch, args)
            run.after_step()
        return run.finish()


# === 7. Bookkeeping (skip on first reading) =======================================================
import contextlib
import csv
import importlib.util
import json
import os
import platform
import random
import re
import threading
import time
import zipfile
from numbers import Real
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import tyro
from torch.utils._pytree import tree_map

SCRIPT = Path(__file__).stem if "__file__" in globals() else "notebook"
EVAL_SEED = 1_000_000  # of the first episode of an evaluation; the next has one more
EVAL_STEPS = 10_000  # its longest episode, where the environment has no time limit
SIGNALS = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
COLUMNS = "global_step seconds sps episodes episodic_return episodic_length".split()
COLUMNS += "eval_return_mean eval_return_std eval_episodes".split()  # more are added as they come
PROGRESS = "step seconds metrics episodes ended best_return".split()  # kept in a checkpoint
PROGRESS += "episode_seed episode_return episode_length first_obs".split()
FIXED = "env_id env_kwargs max_episode_steps seed hidden_dim buffer_size".split()
FIXED += "autotune alpha double_q".split()  # --resume cannot change these


class RunError(ValueError):
    """What the user can put right. The command line prints it as one line."""


def check_args(args: Args) -> Args:
    """A copy of the settings in plain Python numbers. Raises RunError for one beyond its limits."""
    args = copy.copy(args)
    args.resume = str(args.resume)  # it may be a Path
    args.runs_dir = str(args.runs_dir)
    for name, kind in get_type_hints(Args, include_extras=True).items():
        value = getattr(args, name)
        if get_origin(kind) is Annotated:
            number, (low, high) = get_args(kind)
            right = isinstance(value, Real) and low <= value <= high
            if not right or number(value) != value:
                what = f"of type {number.__name__}, from {low:,} to {high:,}"
                raise RunError(f"--{name.replace('_', '-')} must be {what}, not {value!r}")
            setattr(args, name, number(value))
        elif get_origin(kind) is Literal and value not in get_args(kind):
            raise RunError(f"--{name} must be one of {get_args(kind)}, not {value!r}")
    if args.batch_size > args.buffer_size:
        raise RunError(f"--batch-size {args.batch_size} exceeds --buffer-size {args.buffer_size}")
    return args


@contextlib.contextmanager
def processor_settings(num_threads: int) -> Iterator[None]:
    """Give PyTorch so many CPU threads; afterwards as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compiled(update: Callable, device: str) -> Callable:
    """The same function as one graph of machine code, made at its first calls. Raises RunError."""
    from torch._dynamo import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise RunError("--compile needs a C++ compiler, such as g++ or clang++") from error
    config.trace_autograd_ops = True  # gradients are formed within the graph
    # This pass of PyTorch 2.13 would drop in-place steps of single numbers in float64.
    os.environ["TENSORIFY_PYTHON_SCALARS"] = "0"
    options = {"fallback_random": True}  # noise stays that of PyTorch's generator
    options["triton.cudagraphs" if device == "cuda" else "cpp_wrapper"] = True
    graph = torch.compile(update, fullgraph=True, options=options)

    def replay(*inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        # Copies, since the next replay writes over what this one returns.
        return tree_map(torch.clone, graph(*inputs))

    return replay if device == "cuda" else graph


def make_env(env_id: str, /, **options: Any) -> gym.Env:
    """gym.make, and an Adapter around it. Raises RunError, also for what Adapter refuses."""
    try:
        env = gym.make(env_id, **options)
    except Exception as error:
        hint = ' (pip install "gymnasium[mujoco]")' if "mujoco" in repr(error).lower() else ""
        raise RunError(f"cannot make {env_id}: {error!r:.300}{hint}") from error
    return Adapter(env, env_id)


class Adapter(gym.Wrapper):
    """Lets an environment observe float32 (O,) and act in [-1, 1]^A, whatever its own spaces are.

    Raises RunError if the networks cannot serve it.
    """

    def __init__(self, env: gym.Env, name: str):
        super().__init__(env)
        self.name = name
        seen, box = env.observation_space, env.action_space
        if isinstance(seen, gym.spaces.Dict) and "desired_goal" in seen.spaces:
            raise RunError(f"{name} has goals: use sac_her_continuous.py")
        if seen.shape is None:
            raise RunError(f"{name} observes {seen}: register it with wrappers.FlattenObservation")
        if seen.dtype == np.uint8 and len(seen.shape) == 3:
            raise RunError(f"{name} observes images, {seen}: these networks take vectors")
        if not isinstance(box, gym.spaces.Box) or 0 in box.shape:
            raise RunError(f"{name} acts in {box}: actions must be continuous, a Box")
        if not max(abs(float(box.low.min())), abs(float(box.high.max()))) < 1e9:
            raise RunError(f"{name} acts in {box}: actions need finite, sensible bounds")
        self.low = box.low.flatten().astype(np.float64)
        self.high = box.high.flatten().astype(np.float64)
        size = gym.spaces.flatdim(seen)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, self.low.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        """Begin an episode; a seed also goes to the two generators that all code shares."""
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self.vector(obs), info

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(self.rescale(action))
        reward = np.asarray(reward, float).item()
        if not math.isfinite(reward):
            raise RunError(f"{self.name}: a reward is not finite")
        return self.vector(obs), reward, bool(terminated), bool(truncated), info

    def rescale(self, action: np.ndarray) -> np.ndarray:
        """[-1, 1]^A -> the environment's own box, in its shape and its type of number."""
        box = self.env.action_space
        action = (self.low * (1 - action) + self.high * (1 + action)) / 2
        action = np.clip(action, self.low, self.high)  # also for rounding
        if np.issubdtype(box.dtype, np.integer):
            action = np.rint(action)
        return action.astype(box.dtype).reshape(box.shape)

    def vector(self, obs: Any) -> np.ndarray:
        obs = gym.spaces.flatten(self.env.observation_space, obs).astype(np.float32)
        if obs.shape != self.observation_space.shape:
            raise RunError(f"{self.name}: an observation has {len(obs)} numbers, its space not")
        if not np.isfinite(obs).all():
            raise RunError(f"{self.name}: an observation is not finite")
        return obs


def evaluate(actor: nn.Module, env: gym.Env, args: Args) -> list:
    """Trajectories of the deterministic policy, from starts that are the same in every run.

    A trajectory is a list of (obs, action, reward, next_obs, terminated, info).
    """
    states = random.getstate(), np.random.get_state()
    trajectories = [[] for _ in range(args.eval_episodes)]
    with torch.random.fork_rng([]):  # so that an evaluation changes nothing
        for episode, trajectory in enumerate(trajectories):
            obs, _ = env.reset(seed=EVAL_SEED + episode)
            done = False
            while not done:
                with torch.inference_mode():
                    action = actor(torch.as_tensor(obs, device=args.device))
                action = action.cpu().numpy()
                next_obs, reward, terminated, truncated, info = env.step(action)
                trajectory.append((obs, action, reward, next_obs, terminated, info))
                obs = next_obs
                done = terminated or truncated
                if len(trajectory) > EVAL_STEPS and not env.spec.max_episode_steps:
                    raise RunError(f"no end after {EVAL_STEPS} steps: set --max-episode-steps")
    random.setstate(states[0])
    np.random.set_state(states[1])
    return trajectories


def write_file(path: Path, content: dict[str, Any]) -> None:
    """torch.save to a temporary file, then a rename: until then the old file stays whole."""
    unfinished = path.with_suffix(".tmp")
    try:
        with open(unfinished, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}, the last one stays: {error}") from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """What Run.save wrote. Nothing that the file holds is executed. Raises RunError."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Checksums and flags, at which torch.load does not look.
            flags = [entry.external_attr for entry in archive.infolist()]
            if archive.testzip() or any(flags):
                raise ValueError("it is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["args"].keys() != vars(Args()).keys():
            raise ValueError("its settings belong to another script or version")
    except Exception as error:
        reason = repr(error).split(" This file can")[0]  # the rest is unsafe advice
        raise RunError(f"--resume {path} is no checkpoint of this script: {reason:.300}") from error
    return checkpoint


class Run:
    """What surrounds the loop: the run's folder, metrics, evaluations, checkpoints and signals.

    A checkpoint is the run after its last whole step, before that step is evaluated and logged: a
    resumed run begins with these two, so that no row is lost and none is written twice.
    """

    def __init__(self, args: Args, checkpoint: dict[str, Any] | None):
        self.args = check_args(args)
        self.checkpoint = checkpoint
        if self.args.resume and checkpoint is None:
            self.checkpoint = read_checkpoint(self.args.resume)
        if args.track and importlib.util.find_spec("wandb") is None:
            raise RunError("--track needs: pip install wandb")
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:
            raise RunError(f"--device {args.device} cannot be used: {error!r:.200}") from error
        try:
            self.env_options = dict(json.loads(args.env_kwargs))
        except (ValueError, TypeError) as error:
            raise RunError(f"--env-kwargs {args.env_kwargs} is no JSON object: {error}") from error
        if args.max_episode_steps > 0:
            self.env_options["max_episode_steps"] = args.max_episode_steps
        # A checkpoint has the next ten under their names.
        self.step = 0
        self.seconds = 0.0
        self.metrics = {}  # of the last update
        self.episodes = 0  # that have ended
        self.ended = []  # (return, length) of those since the last row of metrics.csv
        self.best_return = -math.inf
        self.episode_seed = 0  # of the running episode, as the next three
        self.episode_return = 0.0
        self.episode_length = 0
        self.first_obs = torch.zeros(0)
        self.whole = {}  # what they were after the last whole step
        self.half_done = False  # from a step until all that belongs to it has changed
        self.rows = []  # of metrics.csv
        self.written = 0  # how many of them are in the file
        self.columns = list(COLUMNS)
        self.judge = lambda trajectories: {}  # a script's own columns of an evaluation
        self.tracker = None  # Weights & Biases
        self.envs = []  # to be closed
        self.stop_asked = False
        self.old_handlers = {}  # of signals

    def __enter__(self) -> "Run":
        random.seed(self.args.seed)
        np.random.seed(self.args.seed)
        torch.manual_seed(self.args.seed)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:  # others have no signals
            for number in SIGNALS:
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self.old_handlers[number] = signal.signal(number, self.on_signal)
        return self

    def on_signal(self, number: int, frame: Any) -> None:
        """Stop, but not while a step is half done. The next signal is no longer ours."""
        self.restore_signals()
        self.stop_asked = True
        if not self.half_done:
            raise KeyboardInterrupt

    def restore_signals(self) -> None:
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """After an exception, write a checkpoint of the last whole step; then close everything."""
        if error is not None and self.whole and not self.half_done:
            step = self.whole["step"]
            self.replay.added = step  # without a transition whose step is not whole
            try:
                self.save()
                print(f"stopped at step {step}: --resume {self.dir / 'checkpoint.pt'}", flush=True)
            except RunError as reason:
                print(f"note: no checkpoint of step {step}: {reason}")
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()
        if self.tracker is not None:
            self.tracker.finish()
        self.restore_signals()

    def start(self, env: gym.Env, agent: nn.Module, replay: Any) -> np.ndarray:
        """Open everything, load the checkpoint, and only then write. The first observation."""
        self.env = env
        self.agent = agent
        self.replay = replay
        self.parts = {"agent": agent, "replay": replay}
        self.eval_env = env  # which will do for an evaluation after the last step
        self.envs.append(env)
        try:
            if self.args.eval_episodes > 0:
                if self.args.eval_frequency > 0:
                    self.eval_env = make_env(self.args.env_id, **self.env_options)
                    self.envs.append(self.eval_env)
                once = dataclasses.replace(self.args, eval_episodes=1)
                self.judge(evaluate(agent.actor, self.eval_env, once))
        except Exception as error:
            reason = str(error) if isinstance(error, RunError) else f"{error!r:.300}"
            advice = "--eval-frequency 0: no second environment; --eval-episodes 0: no evaluation"
            raise RunError(f"evaluation fails: {reason} ({advice})") from error
        obs = self.load() if self.checkpoint else self.reset()
        self.began = time.perf_counter() - self.seconds
        self.open_folder()
        self.mark_whole()
        if self.step > 0:
            self.after_step()
        return obs

    def load(self) -> np.ndarray:
        """Take over what the checkpoint holds. Raises RunError if some of it does not fit."""
        for name, old in self.checkpoint["args"].items():
            new = getattr(self.args, name)
            if new != old and name in FIXED:
                raise RunError(f"--resume: {name} was {old} and cannot become {new}")
            if new != old and name != "resume":
                print(f"note: {name} is now {new}, not {old}; the result may differ from here on")
        try:
            for name in PROGRESS:
                value = self.checkpoint["progress"][name]
                if type(value) is not type(getattr(self, name)):
                    raise ValueError(f"{name} is a {type(value).__name__}")
                setattr(self, name, value)
            for name, value in self.metrics.items():
                self.metrics[name] = torch.as_tensor(value)
            self.ended = [(total + 0.0, length + 0) for total, length in self.ended]
            self.rows = [dict(row) for row in self.checkpoint["rows"]]
            for name, part in self.parts.items():
                part.load_state_dict(self.checkpoint["parts"][name])
            table = self.checkpoint["parts"]["replay"]["table"]
            if table.shape != self.replay.table[: len(self.replay)].shape:
                raise ValueError("the replay buffer has another size")
            if not self.replay.added == self.step <= self.args.total_timesteps:
                raise ValueError(f"it is of step {self.step}")
            obs = self.put_back()
            generators = self.checkpoint["progress"]["generators"]
            torch.set_rng_state(generators[0])
            if self.args.device != "cpu" and len(generators) > 1:
                getattr(torch, self.args.device).set_rng_state(generators[1])
        except Exception as error:
            raise RunError(f"--resume {self.args.resume} does not fit: {error!r:.300}") from error
        self.checkpoint = None  # its memory is free again
        return obs

    def put_back(self) -> np.ndarray:
        """Play the unfinished episode again. Where that is not exact, say so and begin another."""
        obs, _ = self.env.reset(seed=self.episode_seed)
        exact = np.array_equal(obs, self.first_obs)
        exact = exact and self.episode_length <= len(self.replay)
        for number in range(self.step - self.episode_length, self.step):
            if exact:
                then = self.replay.gather(torch.tensor([number % len(self.replay)]))
                action = then.action[0].cpu().numpy()
                obs, reward, terminated, truncated, _ = self.env.step(action)
                exact = np.array_equal(obs, then.next_obs[0].cpu().numpy())
                exact = exact and np.float32(reward) == then.reward.item()
                exact = exact and not (terminated or truncated)
        if not exact:
            print("note: this environment cannot be put back exactly: not bit for bit from here")
            self.episode_return = 0.0
            self.episode_length = 0
            if hasattr(self.replay, "end_episode"):  # hindsight must not mix the two
                self.replay.end_episode()
            obs = self.reset()
        return obs

    def open_folder(self) -> None:
        """Make the run's folder with args.json and metrics.csv, and say where they are."""
        args = self.args
        about = vars(args) | {"platform": platform.platform(), "python": sys.version}
        about |= {"cores": os.cpu_count(), "torch": torch.__version__}
        about |= {"gymnasium": gym.__version__, "numpy": np.__version__}
        # With the time to the microsecond: some runs begin in the same second.
        name = f"{args.env_id}__{SCRIPT}__{args.seed}__{time.time():.6f}"
        self.dir = Path(args.runs_dir, re.sub(r"[^\w.-]", "-", name))
        if args.resume:
            self.dir = Path(args.resume).resolve().parent
        try:
            self.dir.mkdir(parents=True, exist_ok=bool(args.resume))
            unfinished = self.dir / "args.tmp"
            unfinished.write_text(json.dumps(about, indent=2))
            os.replace(unfinished, self.dir / "args.json")
        except OSError as error:
            with contextlib.suppress(OSError):
                (self.dir / "args.tmp").unlink()
            raise RunError(f"cannot write into {self.dir}: {error}") from error
        self.write_rows()
        if args.track:
            import wandb

            options: dict[str, Any] = {"id": self.dir.name, "dir": self.dir}
            try:
                self.tracker = wandb.init(config=about, resume="allow", **options)
            except Exception as error:
                raise RunError(f"--track: {error!r:.300}") from error
        print(f"{self.dir}: replay takes up to {self.replay.table.nbytes:,} B", flush=True)
        if args.learning_starts >= args.total_timesteps or args.updates_per_step == 0:
            print("note: with these settings there is no update, so nothing is learnt")

    def reset(self) -> np.ndarray:
        """Begin an episode, so that a resumed run can begin it again."""
        self.episode_seed = int(torch.randint(2**31, ()))
        obs, _ = self.env.reset(seed=self.episode_seed)
        self.first_obs = torch.from_numpy(obs)
        return obs

    def record(self, reward: float, ended: bool) -> None:
        """Count a step, the first thing of it that cannot be undone."""
        self.half_done = True
        self.step += 1
        self.episode_return += reward
        self.episode_length += 1
        if ended:
            self.episodes += 1
            self.ended = [*self.ended, (self.episode_return, self.episode_length)]
            self.episode_return = 0.0
            self.episode_length = 0

    def mark_whole(self) -> None:
        """Note what a checkpoint of this step holds: it may be written during the next one."""
        self.seconds = time.perf_counter() - self.began
        generators = [torch.get_rng_state()]
        if self.args.device != "cpu":
            generators.append(getattr(torch, self.args.device).get_rng_state())
        self.whole = {name: getattr(self, name) for name in PROGRESS}
        self.whole["generators"] = generators
        self.half_done = False

    def due(self, every: int) -> bool:
        last = self.step == self.args.total_timesteps
        return last or (every > 0 and self.step % every == 0)

    def after_step(self) -> None:
        """Save, evaluate and log, each when it is due."""
        self.mark_whole()
        if self.due(self.args.checkpoint_frequency):
            self.save()
        if self.stop_asked:
            raise KeyboardInterrupt
        evaluation = {}
        if self.args.eval_episodes > 0 and self.due(self.args.eval_frequency):
            evaluation = self.evaluation()
        if evaluation or self.due(self.args.log_frequency):
            self.log(evaluation)

    def evaluation(self) -> dict[str, float]:
        trajectories = evaluate(self.agent.actor, self.eval_env, self.args)
        returns = [sum(step[2] for step in episode) for episode in trajectories]
        mean = float(np.mean(returns))
        tqdm.write(f"step {self.step}: mean return {mean:.1f} in evaluation", sys.stderr)
        if mean > self.best_return:
            self.best_return = mean
            write_file(self.dir / "best_model.pt", self.agent.state_dict())
        row = {"eval_return_mean": mean, "eval_return_std": float(np.std(returns))}
        return row | {"eval_episodes": len(returns)} | self.judge(trajectories)

    def log(self, evaluation: dict[str, float]) -> None:
        """Add a row to metrics.csv."""
        row = {"global_step": self.step, "seconds": round(self.seconds, 3)}
        row["sps"] = round(self.step / self.seconds, 1)
        row["episodes"] = self.episodes
        if self.ended:
            means = np.mean(self.ended, axis=0).tolist()
            row |= {"episodic_return": means[0], "episodic_length": means[1]}
        self.ended = []
        for name, value in self.metrics.items():
            row[name] = torch.as_tensor(value).float().mean().item()
        row |= evaluation
        for name, value in row.items():
            if not math.isfinite(value):
                raise RunError(f"step {self.step}: {name} is not finite")
        self.rows.append(row)
        self.write_rows()
        if self.tracker is not None:
            self.tracker.log(row, step=self.step)

    def write_rows(self) -> None:
        """Add the new rows to metrics.csv, or write it anew where a column is new."""
        path = self.dir / "metrics.csv"
        if not path.exists():
            self.written = 0
        for row in self.rows[self.written :]:
            new = [name for name in row if name not in self.columns]
            if new:
                self.columns += new
                self.written = 0
        mode = "a" if self.written else "w"
        try:
            with open(path, mode, newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                if mode == "w":
                    writer.writeheader()
                writer.writerows(self.rows[self.written :])
            self.written = len(self.rows)
        except PermissionError:  # a spreadsheet has locked it
            print("note: metrics.csv cannot be written now; its rows are kept until it can")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error}") from error

    def save(self) -> None:
        """Write model.pt (the networks) and checkpoint.pt (all, after the last whole step)."""
        step = self.whole["step"]
        for name, parameter in self.agent.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise RunError(f"step {step}: {name} is not finite; the last checkpoint stays")
        for name, value in self.whole["metrics"].items():
            self.whole["metrics"][name] = torch.as_tensor(value)
        content = {
            "args": vars(self.args),
            "progress": self.whole,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rows": [row for row in self.rows if row["global_step"] < step],
        }
        write_file(self.dir / "model.pt", self.agent.state_dict())
        write_file(self.dir / "checkpoint.pt", content)

    def finish(self) -> dict[str, Any]:
        """Print the line of results; return them and the agent."""
        last = {}  # the last value of each column
        for row in self.rows:
            last |= row
        kind = "eval" if self.args.eval_episodes > 0 else "episod"
        results = {name: value for name, value in last.items() if name.startswith(kind)}
        results |= {"global_step": self.step, "seconds": last["seconds"]}
        results["run_dir"] = self.dir
        print("final", *(f"{name}={value}" for name, value in results.items()), flush=True)
        return results | {"agent": self.agent, "actor": self.agent.actor}


def resume(path: str, **changes: Any) -> dict[str, Any]:
    """Go on with a run, with its settings but for the changes. Returns what train() does."""
    checkpoint = read_checkpoint(path)
    args = Args(**checkpoint["args"] | changes | {"resume": str(path)})
    return train(args, checkpoint)


def main(words: list[str]) -> None:
    """The command line."""
    # A sweep's --autotune=true and --autotune=false are --autotune and --no-autotune.
    words = [re.sub(r"^--([\w-]+)=[Tt]rue$", r"--\1", word) for word in words]
    words = [re.sub(r"^--([\w-]+)=[Ff]alse$", r"--no-\1", word) for word in words]
    sys.path.append(os.getcwd())  # has my_module.py, for --env-id my_module:Mine-v0
    try:
        args = tyro.cli(Args, args=words)
        checkpoint = None
        if args.resume:
            checkpoint = read_checkpoint(args.resume)
            saved = Args(**checkpoint["args"] | {"resume": args.resume})
            args = tyro.cli(Args, args=words, default=check_args(saved))
        train(args, checkpoint)
    except KeyboardInterrupt:
        sys.exit(1)
    except (RunError, MemoryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:] if "__file__" in globals() else [])
