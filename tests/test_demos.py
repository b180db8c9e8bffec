"""The demonstrations in docs/demos print what is true, and their pages show what they print."""

import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

DEMOS = Path(__file__).parent.parent / "docs" / "demos"
NAMES = sorted(path.stem for path in DEMOS.glob("*.py") if path.stem != "drawing")


@pytest.fixture(scope="module", autouse=True)
def folder():
    """A demonstration finds drawing.py beside itself."""
    sys.path.insert(0, str(DEMOS))
    yield
    sys.path.remove(str(DEMOS))


@pytest.fixture
def picture(tmp_path):
    """Where to draw. The picture has to be small."""
    path = tmp_path / "picture.png"
    yield str(path)
    assert 1000 < path.stat().st_size < 60_000


def test_there_are_six():
    assert len(NAMES) == 6


def test_soft_policy_iteration(capsys, picture):
    found = importlib.import_module("soft_policy_iteration").main(picture)
    values = np.array([v for v, _ in found["rounds"]])
    assert (np.diff(values, axis=0) >= -1e-12).all()  # no round makes any cell worse
    np.testing.assert_allclose(values[-1], found["optimum"], atol=1e-6)
    assert_page_shows(capsys, "soft_policy_iteration")


@pytest.mark.slow
def test_replay_v_or_q(capsys, picture):
    found = importlib.import_module("replay_v_or_q").main(picture)
    for share, (v, q, v_fresh) in found.items():
        assert v == pytest.approx(10 * share, abs=0.1)
        assert [q, v_fresh] == pytest.approx([10 if share > 0 else 0] * 2, abs=1e-3)
    assert_page_shows(capsys, "replay_v_or_q")


@pytest.mark.slow
def test_gradient_variance(capsys, picture):
    """Within four standard errors of the closed forms, which are held against quadrature."""
    demo = importlib.import_module("gradient_variance")
    found = demo.main(picture)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    for sigma in 1.0, 0.1:
        q = -((sigma * nodes - 1) ** 2)
        baseline = (weights * q).sum()
        score = {"mu": nodes / sigma, "sigma": (nodes**2 - 1) / sigma}
        slope = {"mu": -2 * (sigma * nodes - 1), "sigma": -2 * (sigma * nodes - 1) * nodes}
        truth = {"mu": 2.0, "sigma": -2 * sigma}
        for number, name in enumerate(["mu", "sigma"]):
            estimates = {
                "score function": q * score[name],
                "with a baseline": (q - baseline) * score[name],
                "reparameterised": slope[name],
            }
            for method, x in estimates.items():
                mean = (weights * x).sum()
                variance = (weights * (x - mean) ** 2).sum()
                assert mean == pytest.approx(truth[name])
                assert variance == pytest.approx(demo.variances(sigma)[number][method])
                sampled_mean, sampled_variance = found[sigma, name, method]
                assert abs(sampled_mean - mean) < 4 * math.sqrt(variance / 400_000)
                assert sampled_variance == pytest.approx(variance, rel=0.03)
    for dims in 1, 3, 6, 17:  # each further dimension adds its Q's variance, 6, to the baseline's
        assert found[dims]["with a baseline"] == pytest.approx(18 + 6 * (dims - 1), rel=0.03)
        assert found[dims]["reparameterised"] == pytest.approx(4, rel=0.03)
    assert_page_shows(capsys, "gradient_variance")


def normal_maximum(actions, value):
    """The mean of value(largest of so many standard normal numbers), by quadrature."""
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    below = np.cumsum(density) * (x[1] - x[0])
    return (value(x) * actions * below ** (actions - 1) * density).sum() * (x[1] - x[0])


def smaller(x):
    """E[min(x, z)], z ~ N(0, 1): x (1 - Phi(x)) - phi(x)."""
    phi = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    upper = np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in x])
    return x * upper - phi


@pytest.mark.slow
def test_maximisation_bias(capsys, picture):
    found = importlib.import_module("maximisation_bias").main(picture)
    for actions, row in found["once"].items():
        assert row["max"] == pytest.approx(normal_maximum(actions, lambda x: x), abs=0.02)
        assert row["lagging copy"] == pytest.approx(row["max"], abs=0.01)
        assert row["double"] == pytest.approx(0, abs=0.02)
        assert row["minimum"] == pytest.approx(normal_maximum(actions, smaller), abs=0.02)
    error = math.sqrt(0.1 / 1.9)  # of a running mean of noise, with a step size of 0.1
    bias = 0.9 * error * normal_maximum(10, lambda x: x) / (1 - 0.9)
    assert found["learnt"]["max"] == pytest.approx(bias, rel=0.1)
    assert abs(found["learnt"]["double"]) < 0.1 and abs(found["learnt"]["minimum"]) < 0.1
    assert_page_shows(capsys, "maximisation_bias")


def test_entropy_in_bits(capsys, picture):
    found = importlib.import_module("entropy_in_bits").main(picture)
    bits = [found[name][1] for name in list(found)[:7]]
    assert bits == pytest.approx([1, 2, 0, math.log2(3), 1.5, math.log2(6), 0])
    assert found["3 answers, 1/3 each"][2] == pytest.approx(5 / 3)  # the slide's 1.667
    assert found["52 cards"][1] == pytest.approx(math.log2(math.factorial(52)))
    for length in range(1, 9):  # never below the entropy, nor a whole question above it
        assert math.log2(3) < found[length] < math.log2(3) + 1 / length
    assert found["Gaussian", 1.0] == pytest.approx(0.5 * math.log(2 * math.pi * math.e))
    assert_page_shows(capsys, "entropy_in_bits")


@pytest.mark.slow
def test_many_gradient_steps(picture):
    """Only the first batches: the rest takes many seconds. Digits depend on the processor here."""
    demo = importlib.import_module("many_gradient_steps")
    last, results = {}, {}
    for kind in demo.COLOURS:
        history, std = demo.learn(kind, batches=2)
        results[kind] = history
        promise, gain, kl, _ = history[:, -1].median(dim=-1).values.T.tolist()
        last[kind] = {"promise": promise, "gain": gain, "kl": kl, "std": std.median().item()}
        start = history[0, 0]  # nothing is gained yet
        np.testing.assert_allclose(start[:3], 0, atol=1e-5)
        np.testing.assert_allclose(start[3], -2)
    for kind in "clip", "kl-penalty":
        assert max(last[kind]["kl"]) < 0.15 and last[kind]["std"] > 0.5
    assert last["clip"]["promise"][0] < last["clip"]["gain"][0]
    assert min(last["unclipped"]["kl"]) > 10 and last["unclipped"]["std"] < 0.1
    assert last["unclipped"]["promise"][0] > 2 * last["unclipped"]["gain"][0]
    assert 0.15 < last["clip-no-min"]["kl"][0] < 1
    demo.draw(results, picture)


def assert_page_shows(capsys, name):
    """The page's block of numbers is what the program prints before it draws, digit by digit."""
    printed = capsys.readouterr().out.rstrip("\n").rpartition("\n")[0]
    page = (DEMOS / f"{name}.md").read_text(encoding="utf-8")
    assert f"```text\n{printed}\n```" in page


@pytest.mark.parametrize("name", NAMES)
def test_page(name):
    """It has a command that exists, and a small picture."""
    page = (DEMOS / f"{name}.md").read_text(encoding="utf-8")
    assert f"python docs/demos/{name}.py --out {name}.png" in page
    assert re.search(rf"!\[[^\]]+\]\({name}\.png\)", page)
    assert (DEMOS / f"{name}.png").stat().st_size < 60_000
