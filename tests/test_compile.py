"""--compile: the same updates as without it, alone and in whole runs that are stopped and go on."""

import copy
import dataclasses
import importlib

import numpy as np
import pytest
import torch
import worlds  # noqa: F401, registers the environments
from helpers import QUICK, SCRIPTS, main, metrics, run_dir, same
from oracles import ACT, OBS, random_batch

import ppo_continuous as ppo

HER = "sac_her_continuous"
CASES = [
    ("sac_continuous", {}),
    ("sac_continuous", {"max_grad_norm": 0.1}),
    ("sac_continuous", {"autotune": False, "max_grad_norm": 0.1}),
    ("sac_v1_value_net", {"policy_reg": 1e-3}),
    ("td3_continuous", {"max_grad_norm": 0.1}),
    ("td3_continuous", {"double_q": False, "policy_frequency": 3}),
    ("td3_per_continuous", {}),
    ("ddpg_continuous", {}),
    ("ppo_continuous", {"clip_vloss": True}),
    ("ppo_continuous", {"surrogate": "kl-penalty", "max_grad_norm": 0.0}),
    ("ppo_continuous", {"surrogate": "clip-no-min", "norm_obs": False}),
]


@pytest.fixture(autouse=True)
def fresh():
    """Without what earlier tests compiled. No C++ compiler: nothing to test."""
    torch.compiler.reset()
    try:
        ppo.compiled(len, "cpu")
    except ppo.RunError:
        pytest.skip("no C++ compiler")


def minibatch():
    size = 9
    numbers = [torch.randn(size, n).double() for n in (OBS, ACT, ACT, ACT)]
    state, action, mean, log_std = numbers
    rest = [torch.randn(size).double() for _ in range(4)]
    return ppo.Steps(state, action, *rest[:3], mean, 0.1 * log_std, rest[3])


def inputs(script, module, args, number):
    """What follows the agent in a call."""
    if script == "ppo_continuous":
        return minibatch(), args
    batch = module.Batch(*(x.double() for x in random_batch(module)))
    weight = [torch.rand(len(batch.reward)).double()] if "per" in script else []
    numbers = [number] if "td3" in script else []
    return batch, *weight, args, *numbers


@pytest.mark.slow
@pytest.mark.parametrize("script, settings", CASES)
def test_the_same_updates(script, settings):
    """Ten of them, in float64: weights, moments and what is returned, to a billionth."""
    module = importlib.import_module(script)
    args = dataclasses.replace(module.Args(hidden_dim=16), **settings)
    torch.manual_seed(1)
    agent = module.Agent(OBS, ACT, args).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(agent)
    function = module.minibatch_step if script == "ppo_continuous" else module.update
    graph, returned = module.compiled(function, "cpu"), []
    for number in range(1, 11):
        rest = inputs(script, module, args, number)
        for which, does in ((agent, function), (other, graph)):
            torch.manual_seed(number)
            returned.append(does(which, *rest))
            returned.append(torch.rand(3))  # the generator is as far in both
    for name, value in agent.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    moved = [name for name, value in agent.state_dict().items() if name.endswith(".t") and value]
    assert moved
    for i in range(0, len(returned), 4):
        torch.testing.assert_close(returned[i + 2], returned[i], rtol=0, atol=1e-9)
        assert torch.equal(returned[i + 1], returned[i + 3])


def state(folder):
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return content["parts"], content["progress"]["generators"]


@pytest.mark.parametrize(
    "script",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in (SCRIPTS[0], SCRIPTS[-1])),
        *(pytest.param(name, marks=pytest.mark.night) for name in (*SCRIPTS[1:-1], HER)),
    ],
)
def test_a_run_that_goes_on(script, tmp_path):
    """To the bit as one that nothing stopped; nearly as one without the flag."""
    flags = [f for f in QUICK.get(script, []) if not f.startswith("--total")]
    if script == "td3_per_continuous":
        flags.append("--per-beta=1")  # else it depends on the number of steps
    if script == HER:
        flags = ["--learning-starts=60", "--hidden-dim=16", "--batch-size=16", "--eval-frequency=0"]
        flags += ["--eval-episodes=1"]
    folders = {}
    for name, more in {"whole": ["--compile"], "stopped": ["--compile"], "plain": []}.items():
        steps = 100 if name == "stopped" else 200
        place = tmp_path / name
        main(script, *flags, *more, f"--total-timesteps={steps}", "--runs-dir", place)
        folders[name] = run_dir(place)
    main(script, "--resume", folders["stopped"] / "checkpoint.pt", "--total-timesteps=200")
    if script != "ppo_continuous":  # whose environments begin anew
        same(state(folders["stopped"]), state(folders["whole"]))
    last, plain = (metrics(folders[name])[-1] for name in ("whole", "plain"))
    loss = "value_loss" if script == "ppo_continuous" else "critic_loss"
    assert (
        float(last[loss]) == pytest.approx(float(plain[loss]), rel=0.05) and float(last[loss]) > 0
    )


@pytest.mark.slow
def test_on_and_off_again(tmp_path, capsys):
    """The flag is no part of what is learnt: it may change where a run is resumed."""
    flags = [f for f in QUICK["ddpg_continuous"] if not f.startswith("--total")]
    main("ddpg_continuous", *flags, "--total-timesteps=100", "--runs-dir", tmp_path)
    checkpoint = run_dir(tmp_path) / "checkpoint.pt"
    for steps, flag in ((150, "--compile"), (200, "--no-compile")):
        main("ddpg_continuous", "--resume", checkpoint, f"--total-timesteps={steps}", flag)
        assert f"note: compile is now {flag == '--compile'}" in capsys.readouterr().out
    (t,) = (v for k, v in state(run_dir(tmp_path))[0]["agent"].items() if k == "q_optimizer.t")
    assert t == 150 and np.isfinite(float(metrics(run_dir(tmp_path))[-1]["critic_loss"]))


@pytest.mark.parametrize("script", [*SCRIPTS, HER])
def test_without_a_compiler(script, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    with pytest.raises(module.RunError, match="needs a C.. compiler, such as g"):
        module.compiled(module.update, "cpu")
