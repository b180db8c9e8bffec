# MIT licence. Part of Marginalia.
"""Values from a replay buffer: V is that of the old policies, Q that of the current one.

One state. Action 0 earns 0 and action 1 earns 1, for ever. The current policy always takes action
1, so its value is 1 / (1 - gamma) = 10. The buffer was filled by older policies.
"""

import numpy as np
from drawing import BLUE, GREEN, GREY, ORANGE, out_flag, panels, save

GAMMA, STEP_SIZE = 0.9, 0.1


def fit(share, updates=3000, seed=0):
    """V, Q(s, 1), and V from a fresh action, fitted to a buffer with this share of action 1."""
    rng = np.random.default_rng(seed)
    action = (np.arange(1000) < 1000 * share).astype(int)
    reward = action.astype(float)
    v, q, v_fresh = 0.0, np.zeros(2), 0.0
    history = []
    for _ in range(updates):
        rows = rng.integers(1000, size=32)
        a, r = action[rows], reward[rows]
        v += STEP_SIZE * (r + GAMMA * v - v).mean()  # the replayed action's reward
        for number in 0, 1:
            if (a == number).any():  # Q learns where there is data, towards a' = 1
                q[number] += STEP_SIZE * (r[a == number] + GAMMA * q[1] - q[number]).mean()
        v_fresh += STEP_SIZE * (q[1] - v_fresh)  # Q at the current policy's action
        history.append((v, q[1], v_fresh))
    return np.mean(history[updates // 2 :], axis=0)


def main(out=""):
    shares = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    fits = np.array([fit(share) for share in shares])
    print("share of action 1   V of r + gamma V(s')   Q(s, 1)   V of Q at a fresh action")
    for share, (v, q, v_fresh) in zip(shares, fits, strict=True):
        print(f"{share:17.2f}   {v:20.2f}   {q:7.2f}   {v_fresh:24.2f}")
    if out:
        draw(shares, fits, out)
    return dict(zip(shares, fits, strict=True))


def draw(shares, fits, out):
    figure, (ax,) = panels(1, height=3.4)
    ax.axhline(10, color=GREY, linestyle=":", label="true value of the current policy")
    ax.plot(shares, fits[:, 0], "o-", color=ORANGE, label="V fitted to $r + \\gamma V(s')$")
    ax.plot(shares, fits[:, 1], "s", color=BLUE, markersize=10, fillstyle="none", label="Q(s, 1)")
    ax.plot(
        shares, fits[:, 2], "x", color=GREEN, markersize=8, label="V fitted to Q at a fresh action"
    )
    ax.legend(frameon=False, fontsize=8)
    ax.set(xlabel="share of action 1 in the buffer", ylim=(-0.5, 11), ylabel="value")
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
