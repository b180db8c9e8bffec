"""Several updates of PPO, with real steps: the weights of Stable-Baselines3, and of a second PPO.

From the same weights, rollouts and shuffles. The peer has no KL penalty, and none of its own
minimum; for these and for all options together the formulas are in ppo_by_hand.py once more.

Where the peer differs, as it is known:
    its squared error is not halved: our --vf-coef is twice its vf_coef;
    it normalises advantages in each minibatch, by the deviation of a sample (B - 1), we once per
    iteration by that of all (B): with one minibatch that is a factor;
    its clip_range_vf takes the limited V alone, we the larger of two errors: the same as long as V
    goes towards its target.
"""

import dataclasses
import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from oracles import WORLD
from ppo_by_hand import (
    ByHand,
    Learner,
    in_float64,
    made_up_rollout,
    numbers,
    small,
    wild_agent,
)

import ppo_continuous as ppo

OBS, ACT = 5, 3  # of the peer's world
UPDATES = 3
SETTINGS: dict[str, Any] = {
    "num_steps": 20,
    "num_envs": 2,
    "num_minibatches": 4,
    "update_epochs": 4,
}
SETTINGS |= {"learning_rate": 0.01, "clip_coef": 0.1, "vf_coef": 0.8, "max_grad_norm": 0.5}


def remember_rows(monkeypatch):
    """The rows of all minibatches of an update, which stay those of the script."""
    chunks, real = [], ppo.minibatches

    def remembered(*sizes):
        chunks[:] = list(real(*sizes))
        return iter(chunks)

    monkeypatch.setattr(ppo, "minibatches", remembered)
    return chunks


# === Stable-Baselines3 ============================================================================
PEER_NAMES = ["actor.log_std"]
PEER_NAMES += [f"actor.net.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
PEER_NAMES += [f"critic.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]


def make_peer(agent, args, dtype, monkeypatch, **more):
    """The peer with the weights of this agent, and its parameters by our names."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    # It would make float32 of all observations.
    as_it_is = lambda obs, *_, **__: obs  # noqa: E731
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", as_it_is)
    peer = stable_baselines3.PPO(
        "MlpPolicy", gym.make(WORLD), n_steps=40, batch_size=10, device="cpu",
        policy_kwargs={"net_arch": [args.hidden_dim] * 2}, learning_rate=args.learning_rate,
        n_epochs=args.update_epochs, clip_range=args.clip_coef, vf_coef=args.vf_coef / 2,
        ent_coef=args.ent_coef, max_grad_norm=args.max_grad_norm, **more,
    )  # fmt: skip
    peer.set_logger(configure(None, []))
    policy = peer.policy.to(dtype)
    parts = [policy.log_std]
    for modules in (
        (policy.mlp_extractor.policy_net, policy.action_net),
        (policy.mlp_extractor.value_net, policy.value_net),
    ):
        parts += itertools.chain(*(module.parameters() for module in modules))
    assert len(parts) == len(PEER_NAMES) == len([*policy.parameters()])
    ours = dict(agent.named_parameters())
    for name, part in zip(PEER_NAMES, parts, strict=True):
        part.data.copy_(ours[name].detach())
    return peer, dict(zip(PEER_NAMES, parts, strict=True))


def peer_update(peer, steps, chunks, epochs, dtype, monkeypatch):
    """One train() of the peer on these steps, in the order of our minibatches.

    V and log-probabilities of the policy that acted are its own.
    """
    from stable_baselines3.common.type_aliases import RolloutBufferSamples

    state, action, advantage, returns = (
        torch.tensor(x, dtype=dtype)
        for x in (steps.state, steps.action, steps.advantage, steps.returns)
    )
    with torch.no_grad():
        value, log_prob, _ = peer.policy.evaluate_actions(state, action)
    columns = (state, action, value.flatten(), log_prob, advantage, returns)
    samples = [RolloutBufferSamples(*(x[rows] for x in columns)) for rows in chunks]
    epoch = len(samples) // epochs
    parts = iter([samples[i : i + epoch] for i in range(0, len(samples), epoch)])
    monkeypatch.setattr(peer.rollout_buffer, "get", lambda _: next(parts))
    peer.train()
    assert next(parts, None) is None


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    "changes, more",
    [
        ({"norm_adv": False}, {}),
        ({"norm_adv": False, "ent_coef": 0.05}, {}),
        ({"norm_adv": False, "clip_vloss": True}, {"clip_range_vf": 0.1}),
        ({"norm_adv": True, "num_minibatches": 1}, {}),
        ({"norm_adv": True, "num_minibatches": 1, "ent_coef": 0.05}, {}),
    ],
    ids=["plain", "entropy", "limited-v", "normalised", "normalised-entropy"],
)
def test_weights_are_those_of_stable_baselines3(changes, more, dtype, tolerance, monkeypatch):
    """After each of three updates of four epochs, on rollouts of their own."""
    args = small(norm_obs=False, norm_reward=False, **SETTINGS | changes)
    if dtype == torch.float32:
        args = dataclasses.replace(args, learning_rate=0.0003)
    agent = wild_agent(args, OBS, ACT).to(dtype)
    more = more | {"normalize_advantage": args.norm_adv}
    peer, theirs = make_peer(agent, args, dtype, monkeypatch, **more)
    chunks, begun = remember_rows(monkeypatch), numbers(agent)
    plain = dataclasses.replace(args, norm_adv=False)
    beyond_ratio, beyond_v = [], []  # shares of the steps beyond a limit
    for number in range(UPDATES):
        rollout = made_up_rollout(args, agent, seed=number)
        if args.clip_vloss:  # all V have to go up
            rollout = rollout._replace(reward=rollout.reward + 30)
        before = numbers(agent)
        steps = ByHand(plain).look_back(in_float64(rollout), before)
        spread = steps.advantage.std(), steps.advantage.std(ddof=1)
        factor = (spread[0] + 1e-8) / (spread[1] + 1e-8) if args.norm_adv else 1.0

        def step(agent, steps, args, factor=factor):
            with torch.no_grad():
                moved = agent.critic(steps.state) - steps.value
            beyond_v.append((moved > args.clip_coef).double().mean().item())
            assert not args.clip_vloss or (moved > -args.clip_coef).all()
            scaled = steps._replace(advantage=steps.advantage * factor)
            ppo.minibatch_step(agent, scaled, args)

        rollout = ppo.Rollout(*(x.to(dtype) for x in rollout))
        metrics = ppo.update(agent, rollout, args, step)
        peer_update(peer, steps, chunks, args.update_epochs, dtype, monkeypatch)
        beyond_ratio.append(metrics["clip_fraction"].mean().item())
        if args.clip_vloss:
            assert (steps.returns > steps.value + 5).all(), "towards its target is up"
        for name, parameter in agent.named_parameters():
            difference = (parameter - theirs[name]).abs().max().item()
            assert difference < tolerance, (number, name)
    after = numbers(agent)
    for name in PEER_NAMES:
        assert abs(after[name] - begun[name]).max() > args.learning_rate, name
    if dtype == torch.float64:
        assert any(0.05 < share < 0.95 for share in beyond_ratio), "the clip is at work"
        if args.clip_vloss:
            assert any(0.05 < share < 0.95 for share in beyond_v), "and the limit of V"


# === The formulas once more =======================================================================
OPTIONS = {
    "as-it-is": {},
    "clip-vloss": {"clip_vloss": True},
    "entropy": {"ent_coef": 0.05},
    "no-norm-adv": {"norm_adv": False},
    "no-norm-obs": {"norm_obs": False},
    "no-norm-reward": {"norm_reward": False},
    "short-gradients": {"max_grad_norm": 0.02},
    "long-gradients": {"max_grad_norm": 0.0},
    "other-numbers": {"gamma": 0.8, "gae_lambda": 0.4, "vf_coef": 2.0, "num_minibatches": 2},
}


@pytest.mark.slow_but("as-it-is", "other-numbers", "kl-penalty")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("surrogate", ["clip", "clip-no-min", "kl-penalty", "unclipped"])
def test_weights_are_those_of_a_second_ppo(surrogate, option, monkeypatch):
    """After each of three updates, in float64: the weights, and the penalty's own weight."""
    changes = SETTINGS | {"kl_coef": 1.5, "kl_coef_target": 0.03} | OPTIONS[option]
    args = small(surrogate=surrogate, **changes)
    agent, by_hand = wild_agent(args), ByHand(args)
    learner, chunks = Learner(numbers(agent), args), remember_rows(monkeypatch)
    weights = []
    for number in range(UPDATES):
        rollout = made_up_rollout(args, agent, seed=number)
        before = numbers(agent)
        steps = by_hand.look_back(in_float64(rollout), before)
        metrics = ppo.update(agent, rollout, args)
        for rows in chunks:
            learner.step(steps, rows.numpy(), by_hand.beta)
        after = numbers(agent)
        for name, weight in learner.weights.items():
            expected = weight.detach().numpy()
            np.testing.assert_allclose(after[name], expected, 0, 1e-9, err_msg=name)
        weights.append(by_hand.beta)
        columns = by_hand.columns(steps, after)
        assert metrics.keys() == columns.keys()
        for name, value in columns.items():
            got = metrics[name].double().mean().item()
            assert got == pytest.approx(value, rel=1e-7, abs=1e-7), name
        assert agent.kl_coef.item() == pytest.approx(by_hand.beta)
    if surrogate == "kl-penalty":
        assert len({*weights, by_hand.beta}) > 1, "it adapts"
