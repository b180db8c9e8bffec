"""From the same weights, batch and noise: the losses and gradients of Stable-Baselines3.

Ours are of two calls of update(), so that the delayed actor of TD3 is among them.
Gradients, not the parameters after a step: Adam hides a gradient's scale.
"""

import collections
import copy
import importlib

import gymnasium as gym
import pytest
import torch
from oracles import ACT, WORLD, B, record

import sac_continuous as sac

stable_baselines3 = pytest.importorskip("stable_baselines3")

GAMMA, ALPHA, HIDDEN = 0.97, 0.3, 8


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def copy_weights(source, target):
    for a, b in zip(source, target, strict=True):
        b.load_state_dict(a.state_dict())


def make_peer(name, networks, **settings):
    """The peer's model `name` with the weights of these networks."""
    torch.manual_seed(0)
    peer = getattr(stable_baselines3, name)(
        "MlpPolicy", gym.make(WORLD), gamma=GAMMA, batch_size=B, buffer_size=10, tau=0.0,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]}, device="cpu", learning_rate=0.0, **settings,
    )  # fmt: skip
    for suffix, critic in (("", peer.critic), ("_target", peer.critic_target)):
        ours = [networks[q + suffix] for q in ("q", "q1", "q2") if q in networks]
        for network, net in zip(ours, critic.q_networks, strict=True):
            copy_weights(linears(network), linears(net))
    if name == "SAC":
        *hidden, head = linears(networks["actor"])
        copy_weights(hidden, linears(peer.actor.latent_pi))
        for layer, rows in ((peer.actor.mu, slice(ACT)), (peer.actor.log_std, slice(ACT, None))):
            layer.load_state_dict({"weight": head.weight[rows], "bias": head.bias[rows]})
    else:
        copy_weights(linears(networks["actor"]), linears(peer.actor))
        copy_weights(linears(networks["actor_target"]), linears(peer.actor_target))
    return peer


def updates_of(peer, batches, noise, monkeypatch):
    """What each optimizer of the peer is given: its name, the loss logged, the gradients."""
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    samples, noise, steps = collections.deque(), collections.deque(noise), []
    for obs, action, reward, next_obs, terminated in batches:
        reward, terminated = reward.unsqueeze(1), terminated.unsqueeze(1)
        samples.append(ReplayBufferSamples(obs, action, next_obs, terminated, reward, None))
    monkeypatch.setattr(peer.replay_buffer, "sample", lambda *_, **__: samples.popleft())
    draw = lambda mean, std: mean + std * torch.as_tensor(noise.popleft()).float()  # noqa: E731
    normal = torch.distributions.Normal
    monkeypatch.setattr(normal, "rsample", lambda self, *_: draw(self.loc, self.scale))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *of: self.copy_(draw(*of)))
    optimizers = {"actor": peer.actor.optimizer, "critic": peer.critic.optimizer}
    if hasattr(peer, "ent_coef_optimizer"):
        optimizers["ent_coef"] = peer.ent_coef_optimizer
    for name, optimizer in optimizers.items():

        def step(name=name, optimizer=optimizer):
            steps.append((name, [p.grad.clone() for p in optimizer.param_groups[0]["params"]]))

        monkeypatch.setattr(optimizer, "step", step)
    updates = []
    for _ in batches:
        peer.set_logger(configure(None, []))
        peer.train(gradient_steps=1, batch_size=B)
        logged = peer.logger.name_to_value
        updates += [(name, logged[f"train/{name}_loss"], gradients) for name, gradients in steps]
        steps.clear()
    assert not samples and not noise
    return updates


# Smoothing so wide that the noise is cut off, and then the action.
TD3 = {"policy_noise": 1.5, "noise_clip": 1.2}
PEERS_TD3 = {"target_policy_noise": 1.5, "target_noise_clip": 1.2}
CASES = {
    "SAC": ({"alpha": ALPHA, "alpha_lr": 0.0}, {"ent_coef": f"auto_{ALPHA}"}),
    "TD3": (TD3, PEERS_TD3),
    "TD3 without delay": (TD3 | {"policy_frequency": 1}, PEERS_TD3 | {"policy_delay": 1}),
    "DDPG": ({}, {}),
}


@pytest.mark.parametrize("seed", [1, 2, 3])  # so that each critic is the smaller one somewhere
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_peer(case, seed, monkeypatch):
    name, (settings, peers_settings) = case.split()[0], CASES[case]
    module = importlib.import_module(f"{name.lower()}_continuous")
    # Narrow, for where tanh saturates the peer's SAC is wrong: it adds 1e-6 to the slope.
    settings = settings | {"gamma": GAMMA, "hidden_dim": HIDDEN, "spread": 0.2, "seed": seed}
    agent, updates = record(module, **settings)  # at a learning rate of 0: its weights stay

    noise = [noise for update in updates for noise in update.noise]
    if name == "SAC":  # we act on s' first, then on s; the peer the other way round
        noise = [noise[i] for i in (1, 0, 3, 2)]
    if name == "DDPG":  # the peer draws, but clips the noise to nothing
        noise = [torch.ones(B, ACT)] * 2
    peer = make_peer(name, dict(agent.named_children()), **peers_settings)
    expected = updates_of(peer, [update.batch for update in updates], noise, monkeypatch)
    kinds, ours = {"actor": "actor", "log_alpha": "ent_coef"}, []
    for step in [step for update in updates for step in update.steps]:
        first, *_ = step.gradients
        ours.append((kinds.get(first, "critic"), step.loss, step.gradients.values()))
    counts = collections.Counter(kind for kind, *_ in ours)
    assert counts == collections.Counter(kind for kind, *_ in expected)
    assert counts["critic"] == 2 and counts["actor"] == (1 if case == "TD3" else 2)

    for kind in counts:
        pairs = [[x for x in updates if x[0] == kind] for updates in (ours, expected)]
        for (_, loss, networks), (_, expected_loss, expected_gradients) in zip(*pairs, strict=True):
            gradients = [torch.as_tensor(g).float() for network in networks for g in network]
            factor = 1.0
            if kind == "critic" and name != "SAC":
                factor = 2.0  # the peer's TD3 leaves out the 1/2 of the squared error
            if kind == "ent_coef":
                # The peer has log alpha for alpha in this loss: its gradient lacks a factor alpha.
                gradients, factor = [gradients[0].reshape(1)], 1 / ALPHA
                loss *= torch.tensor(ALPHA).log().item()
            if kind == "actor" and name == "SAC":
                # The peer has the actor's two heads apart, the log standard deviation's last.
                *gradients, weight, bias = gradients
                gradients += [weight[:ACT], bias[:ACT], weight[ACT:], bias[ACT:]]
            close = {"rtol": 1e-3, "atol": 1e-4} if name == "SAC" else {"rtol": 1e-5, "atol": 1e-6}
            assert factor * loss == pytest.approx(expected_loss, rel=close["rtol"])
            for got, gradient in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(factor * got, gradient, **close)


def test_target_networks_are_those_of_the_peer():
    from stable_baselines3.common.utils import polyak_update

    torch.manual_seed(0)
    q, target = sac.Critic(2, 1, HIDDEN), sac.Critic(2, 1, HIDDEN)
    expected = copy.deepcopy(target)
    polyak_update(q.parameters(), expected.parameters(), 0.3)
    sac.update_target(target, q, 0.3)
    for got, theirs in zip(target.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, theirs)
