# MIT licence. Part of Marginalia.
"""Score function or reparameterisation: the same gradient, with more noise or less.

Q(a) = -(a - 1)^2, summed over the dimensions of the action; a ~ N(mu, sigma^2) with mu = 0. The
gradient of E[Q] is 2 in each mu and -2 sigma in each sigma.
"""

import numpy as np
from drawing import BLUE, GREEN, ORANGE, out_flag, panels, save

METHODS = "score function", "with a baseline", "reparameterised"


def gradients(sigma, dims=1, samples=400_000, seed=0):
    """One estimate per sample of the slope in the first mu, and in the first sigma."""
    rng = np.random.default_rng(seed)
    q = np.zeros(samples)
    for number in range(dims):
        noise = rng.normal(size=samples)
        if number == 0:
            epsilon = noise
        q -= (sigma * noise - 1) ** 2
    action = sigma * epsilon
    baseline = -dims * (1 + sigma**2)  # E[Q]
    in_mu = {
        "score function": q * epsilon / sigma,  # Q d log N(a) / d mu
        "with a baseline": (q - baseline) * epsilon / sigma,
        "reparameterised": -2 * (action - 1),  # dQ/da da/dmu, and da/dmu = 1
    }
    in_sigma = {
        "score function": q * (epsilon**2 - 1) / sigma,  # Q d log N(a) / d sigma
        "with a baseline": (q - baseline) * (epsilon**2 - 1) / sigma,
        "reparameterised": -2 * (action - 1) * epsilon,  # da/dsigma = epsilon
    }
    return in_mu, in_sigma


def variances(sigma):
    """The same in closed form, for one dimension: in mu, in sigma."""
    s = sigma**2
    in_mu = {
        "score function": 1 / s + 14 + 15 * s,
        "with a baseline": 8 + 10 * s,
        "reparameterised": 4 * s,
    }
    in_sigma = {
        "score function": 2 / s + 60 + 74 * s,
        "with a baseline": 40 + 56 * s,
        "reparameterised": 4 + 8 * s,
    }
    return in_mu, in_sigma


def main(out=""):
    results = {}
    print("sigma   slope in   method              mean   variance   in closed form")
    for sigma in 1.0, 0.1:
        exact = variances(sigma)
        for number, name in enumerate(["mu", "sigma"]):
            for method, estimates in gradients(sigma)[number].items():
                mean, variance = estimates.mean(), estimates.var()
                results[sigma, name, method] = mean, variance
                print(f"{sigma:<5}   {name:8}   {method:16} {mean:7.2f}", end="")
                print(f"   {variance:8.2f}   {exact[number][method]:8.2f}")
    print("\ndimensions   variance in the first mu, sigma = 1")
    for dims in 1, 3, 6, 17:
        row = {name: x.var() for name, x in gradients(1.0, dims)[0].items()}
        results[dims] = row
        print(f"{dims:10}   " + "   ".join(f"{name} {x:.1f}" for name, x in row.items()))
    if out:
        draw(out)
    return results


def draw(out):
    figure, axes = panels(2)
    sigmas = np.geomspace(0.03, 3, 60)
    for ax, number, name in zip(axes, [0, 1], ["\\mu", "\\sigma"], strict=True):
        for method, colour in zip(METHODS, [ORANGE, GREEN, BLUE], strict=True):
            curve = [variances(sigma)[number][method] for sigma in sigmas]
            ax.loglog(sigmas, curve, color=colour, label=method)
        for sigma in 0.1, 1.0:
            for method, x in gradients(sigma)[number].items():
                ax.plot(sigma, x.var(), "o", color=[ORANGE, GREEN, BLUE][METHODS.index(method)])
        ax.set(
            xlabel="$\\sigma$ of the policy", title=f"variance of an estimate, slope in ${name}$"
        )
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
