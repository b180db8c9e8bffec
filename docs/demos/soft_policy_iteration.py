# MIT licence. Part of Marginalia.
"""Soft policy iteration with a table: SAC where Q and pi need no networks.

A corridor of six cells; the actions are one step to the left and one to the right; a step that ends
in the last cell earns 1. It begins with a poor policy, nearly always to the left.
"""

import numpy as np
from drawing import BLUE, GREEN, GREY, ORANGE, PINK, out_flag, panels, save

GAMMA, CELLS = 0.9, 6
cell = np.arange(CELLS)
next_cell = np.stack([cell - 1, cell + 1], axis=1).clip(0, CELLS - 1)  # of left, of right
reward = (next_cell == CELLS - 1).astype(float)


def soft_value(q, pi, alpha):
    """V(s) = E[Q(s, a) - alpha log pi(a|s)], a ~ pi  [Haarnoja et al. 2018, 2019: eq. 3]"""
    return (pi * (q - alpha * np.log(pi))).sum(axis=1)


def evaluate(pi, alpha):
    """Q of this policy: repeat Q <- r + gamma V(s') until it rests  [eq. 2, Lemma 1]"""
    q = np.zeros((CELLS, 2))
    for _ in range(300):
        q = reward + GAMMA * soft_value(q, pi, alpha)[next_cell]
    return q


def improve(q, alpha):
    """The policy with the smallest KL(pi||exp(Q / alpha) / Z), which is that softmax  [eq. 4]"""
    weight = np.exp((q - q.max(axis=1, keepdims=True)) / alpha)
    weight = np.maximum(weight, 1e-300)  # so that its logarithm is finite
    return weight / weight.sum(axis=1, keepdims=True)


def rounds_of(alpha, number=6):
    """V and pi(right|s) of each round."""
    pi = np.tile([0.99, 0.01], (CELLS, 1))
    found = []
    for _ in range(number):
        q = evaluate(pi, alpha)
        found.append((soft_value(q, pi, alpha), pi[:, 1]))
        pi = improve(q, alpha)
    return found


def optimum(alpha):
    """V of the best soft policy, found without any: V(s) = alpha log sum_a exp(Q(s, a) / alpha)"""
    v = np.zeros(CELLS)
    for _ in range(300):
        q = reward + GAMMA * v[next_cell]
        v = q.max(axis=1) + alpha * np.log(np.exp((q - q.max(axis=1)[:, None]) / alpha).sum(axis=1))
    return v


def main(out=""):
    rounds = rounds_of(alpha=0.2)
    for number, (v, right) in enumerate(rounds):
        print(f"round {number}  V {v.round(3)}  pi(right|s) {right.round(2)}")
    best = optimum(alpha=0.2)
    print(f"optimum  V {best.round(3)}")
    plain = 10 * GAMMA ** np.array([4, 3, 2, 1, 0, 0])  # always to the right: 1 for ever, later
    print(f"\nwithout entropy  V {plain.round(3)}")
    for alpha in 1.0, 0.2, 0.02:
        v, right = rounds_of(alpha, number=30)[-1]
        print(f"alpha {alpha:<4}  V {v.round(3)}  pi(right|s) {right.round(2)}")
    if out:
        draw(rounds, best, out)
    return {"rounds": rounds, "optimum": best, "plain": plain}


def draw(rounds, best, out):
    figure, (left, right) = panels(2)
    for number, colour in enumerate([GREY, ORANGE, BLUE, GREEN]):
        v, probability = rounds[number]
        left.plot(cell, v, "o-", color=colour, label=f"round {number}")
        right.plot(cell, probability, "o-", color=colour)
    left.plot(cell, best, "x", color=PINK, markersize=10, label="optimum")
    left.legend(frameon=False)
    left.set(xlabel="cell", title="soft value V of the round's policy")
    right.set(xlabel="cell", ylim=(-0.05, 1.05), title="its probability of a step to the right")
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
