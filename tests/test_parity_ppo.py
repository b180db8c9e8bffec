"""From the same weights and data: the losses, gradients and advantages of Stable-Baselines3's PPO.

Ours are of gradient steps as train() makes them. The policy moves between them, so that ratios
leave 1.
"""

import dataclasses
import itertools
import math

import gymnasium as gym
import numpy as np
import oracles
import pytest
import torch
import tyro
from helpers import QUICK
from oracles import ACT, OBS, WORLD

import ppo_continuous as ppo

stable_baselines3 = pytest.importorskip("stable_baselines3")

HIDDEN, STEPS, ENVS, EPSILON = 8, 15, 2, 0.2


def one_iteration(tmp_path, monkeypatch, **settings):
    """An iteration of train(): what each gradient step began with, and what it came to."""
    seen, parts = {"weights": [], "losses": [], "gradients": []}, []
    start, gradient_step, sample = ppo.Run.start, ppo.gradient_step, ppo.minibatches

    def begin(run, envs, agent):
        parts.extend([agent.actor.log_std, *agent.actor.net.parameters()])
        parts.extend(agent.critic.parameters())
        for parameter in parts:
            torch.nn.init.normal_(parameter, std=0.4)
        return start(run, envs, agent)

    def watch(name):
        real, seen[name] = getattr(ppo, name), []

        def noted(*args):
            result = real(*args)
            seen[name].append((args, result))
            return result

        monkeypatch.setattr(ppo, name, noted)

    def remember_rows(*args):
        seen["rows"] = [*sample(*args)]
        return iter(seen["rows"])

    def step(optimizer, loss, max_grad_norm):
        seen["weights"].append([p.detach().clone() for p in parts])
        with oracles.gradients_of(optimizer) as pairs:
            gradient_step(optimizer, loss, max_grad_norm)
        gradients = dict(pairs)
        seen["losses"].append(loss.item())
        seen["gradients"].append([gradients[p].clone() for p in parts])

    for name in ("surrogate", "value_loss", "gaussian_log_prob", "gae"):
        watch(name)
    monkeypatch.setattr(ppo.Run, "start", begin)
    monkeypatch.setattr(ppo, "minibatches", remember_rows)
    monkeypatch.setattr(ppo, "gradient_step", step)
    fixed = {"env_id": WORLD, "hidden_dim": HIDDEN, "num_steps": STEPS, "num_envs": ENVS}
    fixed |= {"total_timesteps": STEPS * ENVS, "runs_dir": str(tmp_path), "clip_coef": EPSILON}
    args = tyro.cli(ppo.Args, args=QUICK["ppo_continuous"])
    results = ppo.train(dataclasses.replace(args, **fixed | settings))
    return results["actor"], seen


def peer_updates(seen, samples, monkeypatch, **settings):
    """Of the peer's optimizer, given our weights and each of these samples: losses, gradients."""
    from stable_baselines3.common.logger import configure

    peer = stable_baselines3.PPO(
        "MlpPolicy", gym.make(WORLD), n_steps=STEPS * ENVS, batch_size=STEPS, n_epochs=1,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]}, clip_range=EPSILON, device="cpu", **settings,
    )  # fmt: skip
    policy, updates = peer.policy, []
    parts = [policy.log_std]
    for network in (
        (policy.mlp_extractor.policy_net, policy.action_net),
        (policy.mlp_extractor.value_net, policy.value_net),
    ):
        parts += itertools.chain(*(module.parameters() for module in network))
    assert len(parts) == len([*policy.parameters()])
    monkeypatch.setattr(policy.optimizer, "step", lambda: None)
    for weights, sample in zip(seen["weights"], samples, strict=True):
        for part, weight in zip(parts, weights, strict=True):
            part.data.copy_(weight)
        monkeypatch.setattr(peer.rollout_buffer, "get", lambda _, sample=sample: [sample])
        peer.set_logger(configure(None, []))
        peer.train()
        logged = {k.removeprefix("train/"): v for k, v in peer.logger.name_to_value.items()}
        updates.append((logged, [part.grad.clone() for part in parts]))
    return updates


@pytest.mark.parametrize("limit", [0.0, 0.3], ids=["whole", "limited"])
@pytest.mark.parametrize("norm_adv", [False, True], ids=["plain", "normalised"])
def test_losses_and_gradients_are_those_of_the_peer(norm_adv, limit, tmp_path, monkeypatch):
    from stable_baselines3.common.type_aliases import RolloutBufferSamples

    settings = {"norm_adv": norm_adv, "vf_coef": 0.8, "ent_coef": 0.0 if norm_adv else 0.03}
    settings |= {"max_grad_norm": limit, "learning_rate": 0.03, "update_epochs": 4}
    # The peer normalises in every minibatch; where there is just one, so do we.
    settings |= {"num_minibatches": 1 if norm_adv else 2}
    actor, seen = one_iteration(tmp_path, monkeypatch, **settings)

    (((batch, *_), advantage),) = seen["gae"]
    advantage = advantage.flatten()
    fresh = ppo.Actor(OBS, ACT, HIDDEN)
    fresh.moments.update(batch.obs.flatten(0, 1))  # a first iteration's observations are its own
    state = fresh.normalise(batch.obs).flatten(0, 1)
    old_log_prob = seen["gaussian_log_prob"][0][1].flatten()
    for name in ("surrogate", "value_loss"):
        del seen[name][-1]  # of the whole batch, for metrics.csv
    samples, ratios = [], []
    for rows, (of_gain, _), (of_value, _) in zip(
        seen["rows"], seen["surrogate"], seen["value_loss"], strict=True
    ):
        _, ratio, ours, _ = of_gain
        _, returns, old_value, v_limit = of_value
        ratios.append(ratio.detach())
        if not norm_adv:
            assert torch.equal(ours, advantage[rows]) and v_limit == math.inf
        action = batch.action.flatten(0, 1)[rows]
        rest = old_value, old_log_prob[rows], advantage[rows], returns
        samples.append(RolloutBufferSamples(state[rows], action, *rest))
    ratios = torch.cat(ratios)
    assert (ratios < 1 - EPSILON).any() and (ratios > 1 + EPSILON).any()

    # The peer leaves out the 1/2 of the squared error, and divides by the deviation of a sample
    # (B - 1) where we divide by that of the batch (B).
    size = len(samples[0].advantages)
    factor = math.sqrt((size - 1) / size) if norm_adv else 1.0
    settings = {"normalize_advantage": norm_adv, "vf_coef": 0.4, "ent_coef": settings["ent_coef"]}
    expected = peer_updates(seen, samples, monkeypatch, **settings, max_grad_norm=math.inf)
    assert len(expected) == len(seen["losses"]) == (4 if norm_adv else 8)
    log_std = 1
    hidden = len([*actor.net.parameters()])
    for i, (logged, gradients) in enumerate(expected):
        gain, v_loss = seen["surrogate"][i][1].mean().item(), seen["value_loss"][i][1].item()
        assert factor * -gain == pytest.approx(logged["policy_gradient_loss"], abs=1e-5)
        assert 2 * v_loss == pytest.approx(logged["value_loss"], rel=1e-5)
        theirs = logged["policy_gradient_loss"] / factor + 0.4 * logged["value_loss"]
        theirs += settings["ent_coef"] * logged["entropy_loss"]
        assert seen["losses"][i] == pytest.approx(theirs, abs=1e-5)
        gradients = [
            gradient / (factor if j < log_std + hidden else 1)
            for j, gradient in enumerate(gradients)
        ]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        assert norm > 0.3, "the limit limits"
        for got, gradient in zip(seen["gradients"][i], gradients, strict=True):
            shorter = min(1.0, limit / norm) if limit else 1.0
            torch.testing.assert_close(got, shorter * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_advantages_are_those_of_the_peer(lam):
    """Ends of all kinds among them.

    The peer has one flag for an end; at a time limit its caller adds gamma V(s') to the reward.
    """
    from stable_baselines3.common.buffers import RolloutBuffer

    gamma, rng = 0.97, np.random.default_rng(0)
    terminated, truncated = rng.random((2, STEPS, ENVS)) < 0.2
    ended = terminated | truncated
    assert ended[-1].any() != ended[-1].all() and (truncated & ~terminated).any()
    reward, next_value = rng.normal(size=(2, STEPS, ENVS)).astype(np.float32)
    value = rng.normal(size=(STEPS + 1, ENVS)).astype(np.float32)
    next_value = np.where(ended, next_value, value[1:])

    box = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(STEPS, box, box, "cpu", lam, gamma, ENVS)
    starts = np.concatenate([np.ones((1, ENVS)), ended])
    bonus = gamma * next_value * (truncated & ~terminated)
    nothing = np.zeros((ENVS, 1))
    for t in range(STEPS):
        log_prob = torch.zeros(ENVS)
        theirs = torch.from_numpy(value[t])
        buffer.add(nothing, nothing, reward[t] + bonus[t], starts[t], theirs, log_prob)
    buffer.compute_returns_and_advantage(torch.from_numpy(value[-1]), ended[-1])

    flags = (torch.from_numpy(flag).float() for flag in (terminated, ended))
    batch = ppo.Rollout(None, None, torch.from_numpy(reward), None, *flags)
    values = torch.from_numpy(value[:-1]), torch.from_numpy(next_value)
    got = ppo.gae(batch, *values, gamma, lam)
    np.testing.assert_allclose(got, buffer.advantages, atol=1e-5)
    np.testing.assert_allclose(got + values[0], buffer.returns, atol=1e-5)
