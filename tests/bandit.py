"""PPO where the answer can be written down: one state, one action, reward -(a - 1/2)^2."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ppo_by_hand import divergence

import ppo_continuous as ppo

BEST, STEPS, EPSILON = 0.5, 500, 0.2
KINDS = ["clip", "clip-no-min", "kl-penalty", "unclipped"]
ARGS = ppo.Args(num_steps=STEPS, num_minibatches=1, hidden_dim=8, norm_obs=False, norm_reward=False)
ARGS = dataclasses.replace(ARGS, learning_rate=0.01, clip_coef=EPSILON, max_grad_norm=0.0)

Policy = tuple[float, float]  # mean and standard deviation


def kl_between(old: Policy, new: Policy) -> float:
    """KL(old||new)."""
    numbers = (old[0], np.log(old[1]), new[0], np.log(new[1]))
    return float(divergence(*(np.array([x]) for x in numbers)))


class Bandit:
    """An agent with one state, and what it does there."""

    def __init__(self, seed: int, **changes: Any):
        torch.manual_seed(seed)
        self.args = dataclasses.replace(ARGS, **changes)
        self.agent = ppo.Agent(1, 1, self.args)
        self.agent.optimizer.lr.fill_(self.args.learning_rate)

    def policy(self) -> Policy:
        with torch.no_grad():
            mean = self.agent.actor.net(torch.zeros(1, 1)).item()
            return mean, self.agent.actor.log_std.exp().item()

    def update(self, step: Callable = ppo.minibatch_step) -> float:
        """One batch, all epochs. The divergence that this came to, from the two policies."""
        old = old_mean, old_std = self.policy()
        # One draw from each of as many slices that are equally likely: little is left to chance.
        share = (torch.arange(STEPS) + torch.rand(STEPS)) / STEPS
        action = old_mean + old_std * torch.special.ndtri(share).reshape(STEPS, 1, 1)
        reward = -((action[..., 0] - BEST) ** 2)
        nothing, end = torch.zeros(STEPS, 1, 1), torch.ones(STEPS, 1)
        rollout = ppo.Rollout(nothing, action, reward, nothing, end, end)
        metrics = ppo.update(self.agent, rollout, self.args, step)
        kl = kl_between(old, self.policy())
        assert np.isclose(metrics["kl"].item(), kl, rtol=1e-3, atol=1e-6)
        return kl
