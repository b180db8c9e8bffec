# MIT licence. Part of Marginalia.
"""Maximisation bias: the largest of several estimates is too large, and three remedies.

All actions are truly worth 0. An estimate has an error of standard deviation 1. In the second part
the estimates are learnt: each target contains the value of the next action, with its error.
"""

import numpy as np
from drawing import BLUE, GREEN, ORANGE, PINK, out_flag, panels, save

COLOURS = {"max": ORANGE, "lagging copy": PINK, "double": BLUE, "minimum": GREEN}
GAMMA, STEP_SIZE, ACTIONS = 0.9, 0.1, 10


def once(actions, samples=40_000, seed=0):
    """The mean value that each rule gives to the action which Q1 likes best."""
    rng = np.random.default_rng(seed)
    q1, q2 = rng.normal(size=(2, samples, actions))
    lagging = q1 + 0.1 * rng.normal(size=q1.shape)  # a target network, a little behind Q1
    row, best = np.arange(samples), q1.argmax(axis=1)
    return {
        "max": q1[row, best].mean(),
        "lagging copy": lagging[row, best].mean(),
        "double": q2[row, best].mean(),  # Q2, which did not choose
        "minimum": np.minimum(q1, q2)[row, best].mean(),
    }


def learn(rule, updates=8000, runs=100, seed=0):
    """Mean of Q1 over all actions and runs, after each update. Rewards are noise around 0."""
    rng = np.random.default_rng(seed)
    q1, q2 = np.zeros((2, runs, ACTIONS))
    run = np.arange(runs)
    means = np.zeros(updates)
    for number in range(updates):
        best1, best2 = q1.argmax(axis=1), q2.argmax(axis=1)
        if rule == "max":
            next1, next2 = q1[run, best1], q2[run, best2]
        elif rule == "double":
            next1, next2 = q2[run, best1], q1[run, best2]
        else:  # as in TD3: the actor climbs Q1, and both critics have the same target
            next1 = next2 = np.minimum(q1, q2)[run, best1]
        action = rng.integers(ACTIONS, size=runs)  # of a replayed transition
        reward = rng.normal(size=(2, runs))  # each critic has errors of its own
        q1[run, action] += STEP_SIZE * (reward[0] + GAMMA * next1 - q1[run, action])
        q2[run, action] += STEP_SIZE * (reward[1] + GAMMA * next2 - q2[run, action])
        means[number] = q1.mean()
    return means


def main(out=""):
    table = {actions: once(actions) for actions in (2, 5, 10, 50, 200)}
    print("actions   " + "   ".join(f"{name:>12}" for name in COLOURS))
    for actions, row in table.items():
        print(f"{actions:7}   " + "   ".join(f"{row[name]:+12.2f}" for name in COLOURS))
    curves = {rule: learn(rule) for rule in ("max", "double", "minimum")}
    print("\nlearnt with gamma 0.9, mean of Q1 after 8,000 updates; the truth is 0")
    for rule, means in curves.items():
        print(f"{rule:8} {means[-2000:].mean():+.2f}")
    if out:
        draw(table, curves, out)
    return {"once": table, "learnt": {rule: x[-2000:].mean() for rule, x in curves.items()}}


def draw(table, curves, out):
    figure, (left, right) = panels(2)
    for name, colour in COLOURS.items():
        style = "s--" if name == "lagging copy" else "o-"
        left.plot(
            list(table), [row[name] for row in table.values()], style, color=colour, label=name
        )
    left.set(xscale="log", xticks=list(table), xticklabels=list(table))
    left.minorticks_off()
    left.set(xlabel="number of actions", title="value given to the action chosen by Q1")
    left.legend(frameon=False, fontsize=8)
    for rule, means in curves.items():
        right.plot(means, color=COLOURS[rule], label=rule)
    right.set(xlabel="updates", title="the same errors, learnt from: mean of Q1")
    for ax in left, right:
        ax.axhline(0, color="black", linewidth=0.8)
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
