"""From the same weights, batch and noise: the losses and gradients of Stable-Baselines3's SAC.

Gradients, not the parameters after a step: Adam hides a gradient's scale.
"""

import collections
import copy

import gymnasium as gym
import pytest
import torch

import sac_continuous as sac

stable_baselines3 = pytest.importorskip("stable_baselines3")

GAMMA, ALPHA, BATCH, HIDDEN = 0.97, 0.3, 7, 16


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def copy_weights(source, target):
    for a, b in zip(source, target, strict=True):
        b.load_state_dict(a.state_dict())


@pytest.fixture
def both(monkeypatch):
    """Our networks, a peer with the same weights, a batch, and the same noise for both."""
    torch.manual_seed(0)
    env = gym.make("MountainCarContinuous-v0")  # 2 observations, 1 action in [-1, 1]
    obs_dim, action_dim = 2, 1
    actor = sac.Actor(obs_dim, action_dim, HIDDEN)
    critics = [sac.Critic(obs_dim, action_dim, HIDDEN) for _ in range(4)]  # q1, q2, two targets
    peer = stable_baselines3.SAC(
        "MlpPolicy", env, gamma=GAMMA, batch_size=BATCH, ent_coef=f"auto_{ALPHA}", tau=0.0,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]}, device="cpu", learning_rate=0.0,
    )  # fmt: skip
    *hidden, head = linears(actor)
    copy_weights(hidden, linears(peer.actor.latent_pi))
    for layer, rows in (
        (peer.actor.mu, slice(None, action_dim)),
        (peer.actor.log_std, slice(action_dim, None)),
    ):
        layer.load_state_dict({"weight": head.weight[rows], "bias": head.bias[rows]})
    for critic, net in zip(
        critics, (*peer.critic.q_networks, *peer.critic_target.q_networks), strict=True
    ):
        copy_weights(linears(critic), linears(net))

    noise = torch.randn(2, BATCH, action_dim)
    observations = torch.randn(2, BATCH, obs_dim)
    terminated = (torch.rand(BATCH) < 0.4).float()
    action = torch.rand(BATCH, action_dim) * 2 - 1
    batch = sac.Batch(observations[0], action, torch.randn(BATCH), observations[1], terminated)
    assert 0 < batch.terminated.sum() < BATCH
    return actor, critics, peer, batch, noise


def peer_gradients(peer, batch, noise, monkeypatch):
    """One peer update at learning rate 0; the gradients that each of its optimisers steps with."""
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    column = lambda x: x.unsqueeze(1)  # noqa: E731
    samples = ReplayBufferSamples(
        batch.obs,
        batch.action,
        batch.next_obs,
        column(batch.terminated),
        column(batch.reward),
        None,
    )
    monkeypatch.setattr(peer.replay_buffer, "sample", lambda *_, **__: samples)
    queue = collections.deque([noise[0], noise[1]])  # it acts on s first, then on s'
    monkeypatch.setattr(
        torch.distributions.Normal,
        "rsample",
        lambda self, *_: self.loc + self.scale * queue.popleft(),
    )
    peer.set_logger(configure(None, []))
    kept = {}
    optimizers = {"actor": peer.actor.optimizer, "critic": peer.critic.optimizer}
    for name, optimizer in (optimizers | {"alpha": peer.ent_coef_optimizer}).items():

        def step(name=name, optimizer=optimizer):
            kept[name] = [p.grad.clone() for p in optimizer.param_groups[0]["params"]]

        monkeypatch.setattr(optimizer, "step", step)
    peer.train(gradient_steps=1, batch_size=BATCH)
    assert not queue
    return kept, peer.logger.name_to_value


def test_losses_and_gradients_are_those_of_the_peer(both, monkeypatch):
    actor, (q1, q2, q1_target, q2_target), peer, batch, noise = both
    theirs, logged = peer_gradients(peer, batch, noise, monkeypatch)

    temperature = sac.Temperature(ALPHA, trainable=True)
    alpha, ours = temperature().detach(), {}
    monkeypatch.setattr(torch, "randn_like", lambda _: noise[1])
    with torch.no_grad():
        next_action, next_log_prob = actor.sample(batch.next_obs)
        next_q = q1_target(batch.next_obs, next_action), q2_target(batch.next_obs, next_action)
        value = sac.soft_value(*next_q, next_log_prob, alpha)
        y = sac.bellman_target(batch.reward, batch.terminated, value, GAMMA)
    q_loss = sum(sac.critic_loss(q(batch.obs, batch.action), y) for q in (q1, q2))
    ours["critic"] = torch.autograd.grad(q_loss, [*q1.parameters(), *q2.parameters()])
    monkeypatch.setattr(torch, "randn_like", lambda _: noise[0])
    action, log_prob = actor.sample(batch.obs)
    pi_loss = sac.actor_loss(log_prob, q1(batch.obs, action), q2(batch.obs, action), alpha)
    ours["actor"] = torch.autograd.grad(pi_loss, list(actor.parameters()))
    alpha_loss = sac.temperature_loss(temperature(), log_prob.detach(), float(peer.target_entropy))
    ours["alpha"] = torch.autograd.grad(alpha_loss, list(temperature.parameters()))

    # The peer adds 1e-6 to the slope of tanh: that is all there may be between us.
    close = {"rtol": 1e-3, "atol": 1e-5}
    assert q_loss.item() == pytest.approx(logged["train/critic_loss"], rel=1e-4)
    assert pi_loss.item() == pytest.approx(logged["train/actor_loss"], rel=1e-4)
    for got, expected in zip(ours["critic"], theirs["critic"], strict=True):
        torch.testing.assert_close(got, expected, **close)

    # The peer's actor has its two heads apart, the log standard deviation's last.
    head = {"weight": ours["actor"][-2], "bias": ours["actor"][-1]}
    split = [
        part
        for rows in (slice(None, 1), slice(1, None))
        for part in (head["weight"][rows], head["bias"][rows])
    ]
    for got, expected in zip([*ours["actor"][:-2], *split], theirs["actor"], strict=True):
        torch.testing.assert_close(got, expected, **close)

    # The peer has log alpha for alpha in this loss: its gradient lacks the factor alpha.
    torch.testing.assert_close(ours["alpha"][0], ALPHA * theirs["alpha"][0].squeeze(), **close)


def test_target_networks_are_those_of_the_peer():
    from stable_baselines3.common.utils import polyak_update

    torch.manual_seed(0)
    q, target = sac.Critic(2, 1, HIDDEN), sac.Critic(2, 1, HIDDEN)
    expected = copy.deepcopy(target)
    polyak_update(q.parameters(), expected.parameters(), 0.3)
    sac.update_targets([*target.parameters()], [*q.parameters()], 0.3)
    for got, theirs in zip(target.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, theirs)
