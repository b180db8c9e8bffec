"""Soft policy iteration with a table: SAC where Q and pi need no networks.

A corridor of six cells; the actions are one step to the left and one to the right; a step that ends
in the last cell earns 1. Read it beside "Soft policy iteration" in docs/reading_guide.md.
"""

import numpy as np

GAMMA, ALPHA, CELLS = 0.9, 0.2, 6
cell = np.arange(CELLS)
next_cell = np.stack([cell - 1, cell + 1], axis=1).clip(0, CELLS - 1)  # of left, of right
reward = (next_cell == CELLS - 1).astype(float)


def soft_value(q, pi):
    """V(s) = E[Q(s, a) - alpha log pi(a|s)], a ~ pi  [Haarnoja et al. 2018, 2019: eq. 3]"""
    return (pi * (q - ALPHA * np.log(pi))).sum(axis=1)


def evaluate(pi):
    """Q of this policy: repeat Q <- r + gamma V(s') until it rests  [eq. 2, Lemma 1]"""
    q = np.zeros((CELLS, 2))
    for _ in range(300):
        q = reward + GAMMA * soft_value(q, pi)[next_cell]
    return q


def improve(q):
    """The policy with the smallest KL(pi||exp(Q / alpha) / Z), which is that softmax  [eq. 4]"""
    weight = np.exp((q - q.max(axis=1, keepdims=True)) / ALPHA)
    return weight / weight.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    pi = np.tile([0.99, 0.01], (CELLS, 1))  # a poor start: nearly always to the left
    for number in range(6):
        q = evaluate(pi)
        print(f"round {number}  V {soft_value(q, pi).round(3)}  pi(right|s) {pi[:, 1].round(2)}")
        pi = improve(q)
    for _ in range(300):  # without any policy: V(s) = alpha log sum_a exp(Q(s, a) / alpha)
        v = ALPHA * np.log(np.exp(q / ALPHA).sum(axis=1))
        q = reward + GAMMA * v[next_cell]
    print(f"optimum  V {v.round(3)}")
