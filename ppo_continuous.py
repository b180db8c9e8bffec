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
     3     ratio = pi_theta(a|s) / pi_theta_old(a|s)
           theta, phi <- ascend mean min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)
                               - c_1 mean 1/2 (V(s) - R)^2 + c_2 mean H(pi_theta(.|s))

Beyond the paper, as common code does (docs/ppo_details.md): observations and rewards are normalised
and cut at 10, advantages normalised, gradients clipped, weights begin orthogonal, those of the
policy's last layer small, and Adam's epsilon is 1e-5.

Notation    s, a, r, s'     obs, action, reward, next_obs     ratio            ratio
            d, c            terminated, ended                 epsilon          clip_coef
            A, R            advantage, returns                c_1, c_2         vf_coef, ent_coef
            V(s), V(s')     value, next_value                 pi_theta, V_phi  actor, critic
Shapes: T steps, N environments, B steps in a minibatch, O = dim(S), A = dim(A).
Sibling: sac_continuous.py, which learns from all former policies' steps, by Q instead of V.
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
    total_timesteps: Count = 102_400
    """steps of all environments together, rounded up to whole iterations (MuJoCo: 1_000_000)"""
    seed: Annotated[int, (0, 2**32 - 1)] = 1
    """seed of PyTorch, random, numpy.random and the training environments"""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """where the networks are; a step is hundreds of small operations, so expect little of a GPU"""
    num_threads: Annotated[int, (1, 256)] = 1
    """PyTorch's CPU threads; 2 may be faster where no other run needs them"""
    num_envs: Annotated[int, (1, 10_000)] = 1
    """environments that are run side by side"""
    async_envs: bool = False
    """a process for each of them; pays where a step takes much longer than a millisecond"""
    num_steps: Annotated[int, (1, 10**6)] = 2048
    """steps in each environment per iteration; at its end all that is due is done [2017; slides]"""
    num_minibatches: Count = 32
    """minibatches per epoch, here of 64 steps [2017, table 3; slides]; must divide the batch"""
    update_epochs: Annotated[int, (1, 10_000)] = 10
    """how often each step is learnt from [2017, table 3; slides]"""
    hidden_dim: Annotated[int, (1, 10_000)] = 64
    """units in each of the two hidden layers of both networks [2017, sec. 6.1]"""
    learning_rate: Amount = 3e-4
    """Adam's step size [2017, table 3]"""
    anneal_lr: bool = False
    """let it fall linearly to 0 over the run [2017, table 5, for Atari; CleanRL: on]"""
    gamma: Share = 0.99
    """discount factor per step [2017, table 3]"""
    gae_lambda: Share = 0.95
    """0 takes one reward and then V, 1 takes all rewards of the rollout [2017, table 3]"""
    surrogate: Literal["clip", "clip-no-min", "kl-penalty", "unclipped"] = "clip"
    """what keeps the policy near: see room 5"""
    clip_coef: Amount = 0.2
    """epsilon: how far the ratio may go before it earns no more [2017, sec. 6.1]"""
    kl_coef: Amount = 1.0
    """beta of --surrogate kl-penalty at the start; it adapts"""
    kl_coef_target: Amount = 0.01
    """KL divergence per iteration, in nats, that beta aims at [2017, sec. 6.1]"""
    clip_vloss: bool = False
    """keep V within clip_coef of its old value too, in units of scaled reward [CleanRL: on]"""
    norm_obs: bool = True
    """shift and scale observations by the mean and deviation of those seen so far [CleanRL]"""
    norm_reward: bool = True
    """divide rewards by the deviation of the discounted return so far [CleanRL]"""
    norm_adv: bool = True
    """shift and scale the advantages of each iteration to mean 0 and standard deviation 1"""
    ent_coef: Amount = 0.0
    """c_2: weight of the entropy [2017, sec. 6.1: none]; actions are cut, entropy is not"""
    vf_coef: Amount = 0.5
    """c_1: weight of 1/2 (V - R)^2 [CleanRL]; Stable-Baselines3's is of (V - R)^2, half as large"""
    max_grad_norm: Amount = 0.5
    """largest norm of all gradients of the optimizer together; longer ones are scaled; 0 = off"""
    target_kl: Amount = 0.0
    """end the iteration where a minibatch's mean KL is above this (SB3: 1.5 times it); 0 = off"""
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
    """steps between two checkpoints; 0 = only where the run ends"""
    resume: str = ""
    """a run's checkpoint.pt: go on with that run, in its folder, with its settings"""
    runs_dir: str = "runs"
    """where the run's folder is made"""
    track: bool = False
    """send the metrics to Weights & Biases too; WANDB_PROJECT names the project"""


# === 3. Networks ==================================================================================
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
        """Join the moments of samples (B, ...) to those of all before [Chan et al. 1979]."""
        self.count += len(samples)
        share, shift = len(samples) / self.count, samples.mean(0) - self.mean
        self.var.lerp_(samples.var(0, correction=0), share).add_(share * (1 - share) * shift**2)
        self.mean += share * shift


class Actor(nn.Module):
    """pi_theta(a|s): a Gaussian with diagonal covariance, on normalised observations."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int, norm_obs: bool = True):
        super().__init__()
        self.norm_obs = norm_obs
        self.moments = Moments(obs_dim)
        self.net = mlp(obs_dim, hidden_dim, action_dim, gain=0.01)
        # One for all states [2017, sec. 6.1]; SAC's depends on s, and learns more than this needs.
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def normalise(self, obs: Tensor) -> Tensor:
        if not self.norm_obs:
            return obs
        return ((obs - self.moments.mean) / (self.moments.var + 1e-8).sqrt()).clamp(-10, 10)

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action of evaluation, the mean: (N, O) -> (N, A)."""
        return self.net(self.normalise(obs)).clamp(-1, 1)

    @torch.no_grad()
    def sampler(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function that draws actions, (N, O) -> (N, A), from the policy as it is now.

        It computes in NumPy: of a few observations at a time, PyTorch's calls take longer than the
        products. An action may leave [-1, 1]; the environment gets it clipped.
        """
        now = copy.deepcopy(self).cpu()
        layers = [(layer.weight.T.numpy(), layer.bias.numpy()) for layer in now.net[::2]]
        seen_mean, seen_std = now.moments.mean.numpy(), (now.moments.var + 1e-8).sqrt().numpy()
        std = now.log_std.exp().numpy()

        def sample(obs: np.ndarray) -> np.ndarray:
            x = obs
            if self.norm_obs:
                x = np.clip((obs - seen_mean) / seen_std, -10, 10)
            for weight, bias in layers[:-1]:
                x = np.tanh(x @ weight + bias)
            weight, bias = layers[-1]
            return x @ weight + bias + std * torch.randn(len(x), len(std)).numpy()

        return sample


# === 4. Rollout storage ===========================================================================
class Rollout(NamedTuple):
    obs: Tensor  # (T, N, O)
    action: Tensor  # (T, N, A), as drawn, not as clipped: the ratio is of its densities
    reward: Tensor  # (T, N)
    next_obs: Tensor  # (T, N, O), at an episode's end its last observation
    terminated: Tensor  # (T, N), 1.0 at a true end, 0.0 at a time limit
    ended: Tensor  # (T, N), 1.0 at either


class Steps(NamedTuple):
    """The steps of a rollout, in any order, as the policy that acted saw them."""

    state: Tensor  # (B, O), normalised observations
    action: Tensor  # (B, A)
    advantage: Tensor  # (B,)
    returns: Tensor  # (B,)
    value: Tensor  # (B,)
    mean: Tensor  # (B, A), of the Gaussian
    log_std: Tensor  # (B, A)
    log_prob: Tensor  # (B,), of the action


# === 5. The algorithm =============================================================================
def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(a; mean, std^2), summed over dimensions.  (..., A) -> (...,)"""
    noise = (action - mean) / log_std.exp()
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(old||new) of two Gaussians in closed form, summed over dimensions.  (..., A) -> (...,)"""
    squares = (2 * old_log_std).exp() + (old_mean - mean).square()
    return (log_std - old_log_std + 0.5 * squares / (2 * log_std).exp() - 0.5).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """H of a Gaussian: sum_j log std_j + 1/2 log(2 pi e).  (A,) -> ()"""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()


def gae(rollout: Rollout, value: Tensor, next_value: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = delta_t + gamma lambda (1 - c_t) A_t+1 with delta_t = r + gamma (1 - d) V(s') - V(s).

    That weighs the n-step advantages by (1 - lambda) lambda^(n-1), the last of N by lambda^(N-1)
    [2016, eq. 16; 2017, eq. 11]. A time limit ends the sum, and V of the last observation stands
    for the rest; after termination there is no rest.  (T, N) -> (T, N)
    """
    delta = rollout.reward + gamma * (1 - rollout.terminated) * next_value - value
    decay = gamma * lam * (1 - rollout.ended)
    advantage, later = [], torch.zeros_like(delta[0])
    for delta_t, decay_t in zip(reversed(delta.unbind()), reversed(decay.unbind()), strict=True):
        later = delta_t + decay_t * later
        advantage.append(later)
    return torch.stack(advantage[::-1])


def discounted_return(
    reward: Tensor, ended: Tensor, before: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """G_t = r_t + gamma (1 - c_t-1) G_t-1: what each episode has brought until now.

    Its deviation is the unit of reward. `before` is gamma (1 - c) G of the rollout before, so that
    the unit does not depend on T.  (T, N), (T, N), (N,) -> (T, N), (N,)
    """
    returns = []
    for reward_t, ended_t in zip(reward, ended, strict=True):
        returns.append(reward_t + before)
        before = gamma * (1 - ended_t) * returns[-1]
    return torch.stack(returns), before


def surrogate(kind: str, ratio: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """L(theta), to be maximised [2017, eq. 6, 7; eq. 8 less its - beta KL].  (B,) -> (B,)

    Clipped, a ratio beyond 1 +- epsilon earns no more. The minimum keeps the slope where the ratio
    went the wrong way (below 1 with A > 0, above 1 with A < 0), so that the policy comes back.
    """
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage
    if kind == "clip":
        return torch.minimum(ratio * advantage, clipped)
    return clipped if kind == "clip-no-min" else ratio * advantage


def adapted(beta: float, kl: float, goal: float) -> float:
    """The penalty's weight for the next iteration [2017, sec. 4]."""
    if kl > 1.5 * goal:
        return 2 * beta
    return beta / 2 if kl < goal / 1.5 else beta


def value_loss(value: Tensor, returns: Tensor, old_value: Tensor, limit: float) -> Tensor:
    """mean 1/2 (V(s) - R)^2 [2017, eq. 9]; with a limit, the larger of that and that of V moved by
    at most the limit from its old value, as common code has it.  (B,) -> ()
    """
    error = (value - returns).square()
    if limit < math.inf:
        near = old_value + (value - old_value).clamp(-limit, limit)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error.mean()


def minibatches(size: int, number: int, epochs: int) -> Iterator[Tensor]:
    """Row numbers: in every epoch each row once, shuffled anew."""
    for _ in range(epochs):
        yield from torch.randperm(size).chunk(number)


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


# === 6. Training loop =============================================================================
class Agent(nn.Module):
    """All that learns: networks, moments of what was seen, and the optimizer."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args):
        super().__init__()
        self.actor = Actor(obs_dim, action_dim, args.hidden_dim, args.norm_obs)
        self.critic = mlp(obs_dim, args.hidden_dim, 1).append(nn.Flatten(-2))
        self.return_moments = Moments()  # of the discounted return so far
        self.register_buffer("return_before", torch.zeros(args.num_envs), persistent=False)
        self.register_buffer(
            "kl_coef", torch.tensor(args.kl_coef * (args.surrogate == "kl-penalty"))
        )
        self.to(args.device)
        params = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = Adam(params, args.learning_rate, eps=1e-5)


def collect(agent: Agent, envs: Any, obs: np.ndarray, args: Args, run: Any) -> tuple:
    """Line 1: a Rollout, and the observations (N, O) with which the next one begins."""
    steps, sample = [], agent.actor.sampler()
    for _ in range(args.num_steps):
        action = sample(obs)
        next_obs, reward, terminated, truncated, info = envs.step(action)
        ended = terminated | truncated
        last_obs = next_obs.copy()
        if ended.any():  # there, next_obs is the first observation of the next episode
            last_obs[ended] = np.stack(info["final_obs"][ended])
        steps.append((obs, action, reward, last_obs, terminated, ended))
        run.record(reward, ended)
        obs = next_obs
    columns = (np.stack(x, dtype=np.float32) for x in zip(*steps, strict=True))
    return Rollout(*(torch.from_numpy(x).to(args.device) for x in columns)), obs


def look_back(agent: Agent, rollout: Rollout, args: Args) -> Steps:
    """Line 2: what the policy that acted did, and how good that was, all steps at once."""
    actor, critic = agent.actor, agent.critic
    if args.norm_reward:
        returns, agent.return_before = discounted_return(
            rollout.reward, rollout.ended, agent.return_before, args.gamma
        )
        agent.return_moments.update(returns.flatten())
        unit = (agent.return_moments.var + 1e-8).sqrt()
        rollout = rollout._replace(reward=(rollout.reward / unit).clamp(-10, 10))
    state = actor.normalise(rollout.obs)  # (T, N, O)
    value = critic(state)  # (T, N), as all that follow
    next_value = critic(actor.normalise(rollout.next_obs))
    advantage = gae(rollout, value, next_value, args.gamma, args.gae_lambda)
    returns = advantage + value
    if args.norm_adv:
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    mean = actor.net(state)  # (T, N, A)
    log_std = actor.log_std.expand_as(mean)
    log_prob = gaussian_log_prob(rollout.action, mean, log_std)
    columns = (state, rollout.action, advantage, returns, value, mean, log_std, log_prob)
    return Steps(*(x.flatten(0, 1).clone() for x in columns))


def losses(agent: Agent, steps: Steps, args: Args, with_kl: bool) -> tuple[Tensor, ...]:
    """Policy loss and value loss (), ratio (B,) and KL(old||new) () of these steps."""
    mean = agent.actor.net(steps.state)
    log_std = agent.actor.log_std
    kl = torch.zeros(())
    if with_kl:
        kl = gaussian_kl(steps.mean, steps.log_std, mean, log_std).mean()
    ratio = (gaussian_log_prob(steps.action, mean, log_std) - steps.log_prob).exp()
    gain = surrogate(args.surrogate, ratio, steps.advantage, args.clip_coef).mean()
    if args.surrogate == "kl-penalty":
        gain = gain - agent.kl_coef * kl
    limit = args.clip_coef if args.clip_vloss else math.inf
    v_loss = value_loss(agent.critic(steps.state), steps.returns, steps.value, limit)
    return -gain, v_loss, ratio, kl


def minibatch_step(agent: Agent, steps: Steps, args: Args) -> None:
    """A gradient step on the loss of a minibatch [2017, eq. 9]."""
    with_kl = args.surrogate == "kl-penalty"
    pi_loss, v_loss, _, _ = losses(agent, steps, args, with_kl)
    entropy = gaussian_entropy(agent.actor.log_std)
    loss = pi_loss + args.vf_coef * v_loss - args.ent_coef * entropy
    gradient_step(agent.optimizer, loss, args.max_grad_norm)


def update(
    agent: Agent, rollout: Rollout, args: Args, step: Callable = minibatch_step
) -> dict[str, Tensor]:
    """Lines 2 and 3 of the algorithm, once. Returns what metrics.csv shows, of the whole batch."""
    actor = agent.actor
    first = actor.moments.count == 0
    if args.norm_obs and first:  # nothing has been normalised yet
        actor.moments.update(rollout.obs.flatten(0, 1))

    # 2  Look back.
    with torch.no_grad():
        steps = look_back(agent, rollout, args)

    # 3  Learn.
    for rows in minibatches(len(steps.state), args.num_minibatches, args.update_epochs):
        minibatch = Steps(*(x[rows] for x in steps))
        if args.target_kl > 0:
            with torch.no_grad():
                _, _, _, kl = losses(agent, minibatch, args, with_kl=True)
            if kl > args.target_kl:
                break  # before a step on a minibatch that has moved too far; ends all epochs
        step(agent, minibatch, args)

    # What became of the policy, on all steps.
    with torch.no_grad():
        pi_loss, v_loss, ratio, kl = losses(agent, steps, args, with_kl=True)
        error = (steps.returns - steps.value).var(correction=0)
        spread = steps.returns.var(correction=0)
        metrics = {"policy_loss": pi_loss, "value_loss": v_loss, "v": steps.value}
        metrics["explained_variance"] = 1 - error / (spread + 1e-8)
        metrics["entropy"] = gaussian_entropy(actor.log_std)
        metrics["kl"] = kl
        metrics["kl_coef"] = agent.kl_coef.clone()
        metrics["clip_fraction"] = ((ratio - 1).abs() > args.clip_coef).float()
        agent.kl_coef.fill_(adapted(agent.kl_coef.item(), kl.item(), args.kl_coef_target))
        if args.norm_obs and not first:  # not before: all above saw the same
            actor.moments.update(rollout.obs.flatten(0, 1))
    return metrics


def train(args: Args, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run PPO; return its results, its folder and the agent. Raises RunError."""
    run = Run(args, checkpoint)  # room 7: folder, metrics, checkpoints, Ctrl-C
    args = run.args
    size = args.num_envs * args.num_steps
    if size % args.num_minibatches != 0:
        raise RunError(f"--num-minibatches {args.num_minibatches} does not divide the {size} steps")
    if args.surrogate == "kl-penalty" and args.kl_coef == 0:
        raise RunError("--kl-coef 0 would stay 0, so that nothing keeps the policy near")
    with run, processor_settings(args.num_threads):
        envs = make_envs(args, run.env_options)
        obs_dim = envs.single_observation_space.shape[0]
        agent = Agent(obs_dim, envs.single_action_space.shape[0], args)
        step = compiled(minibatch_step, args.device) if args.compile else minibatch_step
        obs = run.start(envs, agent)
        iterations = math.ceil(args.total_timesteps / size)
        for iteration in trange(run.step // size, iterations, disable=None):
            remaining = 1 - args.anneal_lr * iteration / iterations
            agent.optimizer.lr.fill_(remaining * args.learning_rate)
            rollout, obs = collect(agent, envs, obs, args, run)
            run.metrics = update(agent, rollout, args, step)
            run.after_step()
        return run.finish()


# === 7. Bookkeeping (skip on first reading) =======================================================
import contextlib
import csv
import importlib.util
import json
import multiprocessing
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
FIXED = "env_id env_kwargs max_episode_steps seed hidden_dim".split()
FIXED += "surrogate kl_coef norm_obs".split()  # --resume cannot change these
ANSWER_SECONDS = 300  # after which a worker process counts as stuck


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


def make_envs(args: Args, options: dict[str, Any]) -> gym.vector.VectorEnv:
    """Several of them; where an episode ends, the next one begins within the same step."""
    # The ended episode's last observation is in info["final_obs"].
    mode = gym.vector.AutoresetMode.SAME_STEP
    if args.async_envs:
        pid = os.getpid()
        envs = [lambda: worker_env(args, options, pid)] * args.num_envs
        return Workers(envs, autoreset_mode=mode)
    envs = [lambda: WithoutInfo(make_env(args.env_id, **options))] * args.num_envs
    return gym.vector.SyncVectorEnv(envs, autoreset_mode=mode)


class WithoutInfo(gym.Wrapper):
    """Without info, of which a vector environment would make arrays; it may not fit into any."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs, {}

    def step(self, action: np.ndarray) -> tuple:
        return *self.env.step(action)[:4], {}


def worker_env(args: Args, options: dict[str, Any], main_pid: int) -> gym.Env:
    """An environment in a process of its own, which ends with the main one and leaves it Ctrl-C."""
    if os.getpid() != main_pid:  # gymnasium makes one in the main process too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=end_with_parent, daemon=True).start()
    return WithoutInfo(make_env(args.env_id, **options))


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Workers(gym.vector.AsyncVectorEnv):
    """Environments in processes of their own. One that is dead or stuck is a RunError."""

    def step(self, actions: np.ndarray) -> tuple:
        return self.ask(self.step_async, self.step_wait, actions)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple:
        return self.ask(self.reset_async, self.reset_wait, seed, options)

    def ask(self, send: Callable, wait: Callable, *arguments: Any) -> tuple:
        try:
            send(*arguments)
            return wait(ANSWER_SECONDS)
        except (EOFError, ConnectionError, multiprocessing.TimeoutError) as error:
            raise RunError(f"a process of --async-envs has ended or is stuck: {error!r}") from error

    def close_extras(self, **kwargs: Any) -> None:
        """Let the processes close their environments; end those that do not within a second."""
        for pipe in self.parent_pipes:
            with contextlib.suppress(Exception):
                pipe.send(("close", None))
        deadline = time.monotonic() + 1
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()


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
        # A checkpoint has the next six under their names.
        self.step = 0
        self.seconds = 0.0
        self.metrics = {}  # of the last update
        self.episodes = 0  # that have ended
        self.ended = []  # (return, length) of those since the last row of metrics.csv
        self.best_return = -math.inf
        self.whole = {}  # a copy of what a checkpoint of the last whole iteration holds
        self.size = args.num_envs * args.num_steps  # steps per iteration
        self.returns = np.zeros(args.num_envs)  # of the running episodes
        self.lengths = np.zeros(args.num_envs)
        self.rows = []  # of metrics.csv
        self.written = 0  # how many of them are in the file
        self.columns = list(COLUMNS)
        self.judge = lambda trajectories: {}  # a script's own columns of an evaluation
        self.tracker = None  # Weights & Biases
        self.envs = []  # to be closed
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
        """Stop at once. The next signal is no longer ours."""
        self.restore_signals()
        raise KeyboardInterrupt

    def restore_signals(self) -> None:
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """After an exception, write the last whole iteration; then close everything."""
        if error is not None and self.whole:
            step = self.whole["progress"]["step"]
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

    def start(self, envs: gym.vector.VectorEnv, agent: nn.Module) -> np.ndarray:
        """Open everything, load the checkpoint, and only then write. First observations."""
        self.agent = agent
        self.envs.append(envs)
        try:
            if self.args.eval_episodes > 0:
                self.eval_env = make_env(self.args.env_id, **self.env_options)
                self.envs.append(self.eval_env)
                once = dataclasses.replace(self.args, eval_episodes=1)
                self.judge(evaluate(agent.actor, self.eval_env, once))
        except Exception as error:
            reason = str(error) if isinstance(error, RunError) else f"{error!r:.300}"
            advice = "--eval-episodes 0: no evaluation"
            raise RunError(f"evaluation fails: {reason} ({advice})") from error
        if self.checkpoint:
            self.load()
        obs, _ = envs.reset(seed=torch.randint(2**31, (self.args.num_envs,)).tolist())
        self.began = time.perf_counter() - self.seconds
        self.open_folder()
        self.mark_whole()
        if self.step > 0:
            self.after_step()
        return obs

    def load(self) -> None:
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
            self.agent.load_state_dict(self.checkpoint["parts"]["agent"])
            if self.step - self.size >= self.args.total_timesteps:
                raise ValueError(f"it is of step {self.step}")
            generators = self.checkpoint["progress"]["generators"]
            torch.set_rng_state(generators[0])
            if self.args.device != "cpu" and len(generators) > 1:
                getattr(torch, self.args.device).set_rng_state(generators[1])
        except Exception as error:
            raise RunError(f"--resume {self.args.resume} does not fit: {error!r:.300}") from error
        print("note: every environment begins a new episode: not bit for bit from here")

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
        print(f"{self.dir}: rollouts of {self.size:,} steps", flush=True)

    def record(self, reward: np.ndarray, ended: np.ndarray) -> None:
        """Count a step of every environment, and the episodes that ended in it."""
        self.step += len(reward)
        self.returns += reward
        self.lengths += 1
        for i in np.flatnonzero(ended):
            self.episodes += 1
            self.ended = [*self.ended, (float(self.returns[i]), int(self.lengths[i]))]
            self.returns[i] = 0
            self.lengths[i] = 0

    def mark_whole(self) -> None:
        """Copy what a checkpoint of this iteration holds: it may be written during the next."""
        self.seconds = time.perf_counter() - self.began
        generators = [torch.get_rng_state()]
        if self.args.device != "cpu":
            generators.append(getattr(torch, self.args.device).get_rng_state())
        progress = {name: getattr(self, name) for name in PROGRESS}
        progress["generators"] = generators
        parts = {"agent": copy.deepcopy(self.agent.state_dict())}
        self.whole = {"progress": progress, "parts": parts}

    def due(self, every: int) -> bool:
        """Whether this iteration reached a multiple of `every`, or the end."""
        passed = every > 0 and self.step // every > (self.step - self.size) // every
        return self.step >= self.args.total_timesteps or passed

    def after_step(self) -> None:
        """Save, evaluate and log, each when it is due."""
        self.mark_whole()
        if self.due(self.args.checkpoint_frequency):
            self.save()
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
        """Write model.pt (the networks) and checkpoint.pt (all, after the last whole iteration)."""
        progress = self.whole["progress"]
        for name, value in self.whole["parts"]["agent"].items():
            if not value.isfinite().all():
                raise RunError(f"step {progress['step']}: {name} is not finite")
        for name, value in progress["metrics"].items():
            progress["metrics"][name] = torch.as_tensor(value)
        content = self.whole | {"args": vars(self.args)}
        step = progress["step"]
        content["rows"] = [row for row in self.rows if row["global_step"] < step]
        write_file(self.dir / "model.pt", self.whole["parts"]["agent"])
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
