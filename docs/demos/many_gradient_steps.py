# MIT licence. Part of Marginalia.
"""Many gradient steps on one batch, with PPO's four surrogates, on a bandit.

There is no state. An action earns -(a - 1)^2, and noise of standard deviation 4. The policy is a
Gaussian, N(0, 1) at first. It draws a batch of 64 actions, takes 80 gradient steps on it, draws
the next batch, and so on. The formulas and Adam are those of ppo_continuous.py. Thirty policies
learn side by side, each from batches of its own.
"""

import sys
from pathlib import Path

import torch
from drawing import BLUE, GREEN, ORANGE, PINK, out_flag, panels, save
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))
from ppo_continuous import Adam, gaussian_kl, gaussian_log_prob, gradient_step, surrogate

COLOURS = {"clip": BLUE, "clip-no-min": PINK, "kl-penalty": GREEN, "unclipped": ORANGE}
POLICIES, BATCHES, BATCH, STEPS, STEP_SIZE = 30, 30, 64, 80, 0.03
NOISE, CLIP, BETA = 4.0, 0.2, 1.0


def true_return(mean, log_std):
    """E[-(a - 1)^2], a ~ N(mean, std^2)."""
    return -((mean - 1) ** 2 + (2 * log_std).exp()).flatten()


def learn_from(kind, mean, log_std):
    """All steps on one batch. Returns (steps + 1, 4, policies): promise, gain, KL, true return.

    Promise is what the surrogate says was gained, gain what truly was, both in units of the batch's
    standard deviation of rewards.
    """
    old_mean, old_log_std = mean.detach().clone(), log_std.detach().clone()
    before = true_return(old_mean, old_log_std)
    action = old_mean + old_log_std.exp() * torch.randn(POLICIES, BATCH, 1)
    reward = -((action[..., 0] - 1) ** 2) + NOISE * torch.randn(POLICIES, BATCH)
    unit = reward.std(-1, correction=0, keepdim=True)
    advantage = (reward - reward.mean(-1, keepdim=True)) / unit
    old_log_prob = gaussian_log_prob(action, old_mean, old_log_std)
    optimizer = Adam([mean, log_std], STEP_SIZE)  # it treats every number by itself
    rows = []
    for _ in range(STEPS + 1):
        ratio = (gaussian_log_prob(action, mean, log_std) - old_log_prob).exp()
        promise = surrogate(kind, ratio, advantage, CLIP).mean(-1)
        kl = gaussian_kl(old_mean, old_log_std, mean, log_std)[:, 0]
        result = true_return(mean, log_std)
        rows.append(torch.stack([promise, (result - before) / unit[:, 0], kl, result]).detach())
        objective = promise - BETA * kl if kind == "kl-penalty" else promise
        if len(rows) <= STEPS:
            gradient_step(optimizer, -objective.sum(), max_grad_norm=0.0)
    return torch.stack(rows)


@torch.random.fork_rng([])
def learn(kind, batches=BATCHES):
    """(batches, steps + 1, 4, policies), and the standard deviation of the last policies."""
    torch.manual_seed(0)
    mean = nn.Parameter(torch.zeros(POLICIES, 1, 1))
    log_std = nn.Parameter(torch.zeros(POLICIES, 1, 1))
    history = [learn_from(kind, mean, log_std) for _ in range(batches)]
    return torch.stack(history), log_std.detach().exp().flatten()


def main(out=""):
    torch.set_num_threads(1)  # the numbers are few
    results = {}
    for kind in COLOURS:
        history, std = learn(kind)
        results[kind] = history
        print(f"{kind}: at the end a standard deviation of {std.median():.3f} (median)")
        print("  after batch    promise       gain   KL(old||new)   true return")
        for number in 1, 2, 5, 10, 20, 30:
            promise, gain, kl, result = history[number - 1, -1]
            print(f"  {number:11} {promise.median():10.2f} {gain.median():10.2f}", end="")
            print(f" {kl.median():14.3g} {result.mean():13.2f}")
    if out:
        draw(results, out)
    return results


def draw(results, out):
    figure, (first, second, third) = panels(3)
    for kind in "clip", "unclipped":
        promise, gain = results[kind][0, :, :2].median(dim=-1).values.T
        first.plot(promise, "--", color=COLOURS[kind], label=f"{kind}, promised")
        first.plot(gain, color=COLOURS[kind], label=f"{kind}, true")
    first.set(xlabel="gradient steps", title="the first batch: gain")
    first.legend(frameon=False, fontsize=8)
    for kind, history in results.items():
        batches = range(1, len(history) + 1)
        second.semilogy(batches, history[:, -1, 2].median(dim=-1).values, color=COLOURS[kind])
        third.plot(batches, history[:, -1, 3].mean(dim=-1), color=COLOURS[kind], label=kind)
    second.set(xlabel="batches", title="KL(old||new) of each batch, median")
    third.set(xlabel="batches", title="true return, mean; the best is 0", ylim=(-2, 0.05))
    third.legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
