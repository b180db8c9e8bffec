"""Several updates with real steps, in float64 and to 1e-9: against the papers and a peer.

The papers are those of papers.py. The peer is Stable-Baselines3; test_parity.py compares single
losses and gradients with it, and this file what six updates make of the weights.
"""

import collections
import importlib

import gymnasium as gym
import pytest
import torch
from oracles import ACT, WORLD, B
from papers import PAPERS, in_float64, new_agent, new_batch, rest_of_call

UPDATES = 6
# Every network moves at a pace of its own, so that no two rates can be mistaken for each other.
PACE = {"hidden_dim": 8, "batch_size": B, "gamma": 0.9, "tau": 0.3, "policy_lr": 0.02, "q_lr": 0.03}


@pytest.fixture(autouse=True)
def float64():
    with in_float64():
        yield


def assert_weights(agent, expected, number):
    """These are the agent's, of all networks, to 1e-9."""
    got = collections.defaultdict(list)
    for name, parameter in agent.named_parameters():
        got[name.split(".")[0]].append(parameter.detach())
    assert got.keys() == expected.keys()
    for name, weights in got.items():
        for weight, other in zip(weights, expected[name], strict=True):
            where = f"{name} after update {number}"
            torch.testing.assert_close(
                weight, other.detach(), rtol=1e-9, atol=1e-9, msg=lambda m, w=where: f"{w}: {m}"
            )


# === The papers ===================================================================================
SAC = {"alpha": 0.3, "alpha_lr": 0.05, "target_entropy_scale": 0.5}
V1 = {"alpha": 0.3, "reward_scale": 2.5}
NOISY = {"policy_noise": 0.6}  # so that the clip at 0.5 is met
# By script and variant: the settings that differ from PACE.
CASES = {
    "ddpg_continuous": {},
    "ddpg_continuous-clipped": {"max_grad_norm": 0.1},
    "td3_continuous": NOISY,
    "td3_continuous-clipped": NOISY | {"max_grad_norm": 0.1},
    "td3_continuous-no_delay": NOISY | {"policy_frequency": 1},
    "td3_continuous-long_delay": NOISY | {"policy_frequency": 3},
    "td3_continuous-one_critic": NOISY | {"double_q": False},
    "td3_continuous-narrow_noise": {"policy_noise": 0.4, "noise_clip": 0.1},
    "td3_continuous-no_noise": {"policy_noise": 0.0},
    "td3_per_continuous": NOISY,
    "td3_per_continuous-clipped": NOISY | {"max_grad_norm": 0.1},
    "td3_per_continuous-no_delay": NOISY | {"policy_frequency": 1},
    "td3_per_continuous-long_delay": NOISY | {"policy_frequency": 3},
    "td3_per_continuous-one_critic": NOISY | {"double_q": False},
    "td3_per_continuous-narrow_noise": {"policy_noise": 0.4, "noise_clip": 0.1},
    "td3_per_continuous-no_noise": {"policy_noise": 0.0},
    "sac_v1_value_net": V1,
    "sac_v1_value_net-clipped": V1 | {"max_grad_norm": 0.1},
    "sac_v1_value_net-regularised": V1 | {"policy_reg": 0.1},
    "sac_v1_value_net-no_entropy": {"alpha": 0.0},
    "sac_continuous": SAC,
    "sac_continuous-clipped": SAC | {"max_grad_norm": 0.1},
    "sac_continuous-fixed": SAC | {"autotune": False},
    "sac_continuous-no_entropy": {"autotune": False, "alpha": 0.0},
    "sac_her_continuous": SAC,
    "sac_her_continuous-clipped": SAC | {"max_grad_norm": 0.1},
    "sac_her_continuous-fixed": SAC | {"autotune": False},
}


@pytest.mark.slow_but("-1]")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_paper(case, seed):
    """All weights after each update, and as many random numbers drawn."""
    script, settings = case.split("-")[0], CASES[case]
    module = importlib.import_module(script)
    args = module.Args(**PACE | settings, seed=seed)
    agent = new_agent(module, args)
    paper = PAPERS[script](agent, args)
    assert_weights(agent, paper.networks, 0)
    for number in range(1, UPDATES + 1):
        batch = new_batch(module)
        rest = rest_of_call(module, args, number)
        torch.manual_seed(number)
        returned = module.update(agent, batch, *rest)
        drawn = torch.get_rng_state()
        torch.manual_seed(number)
        if script == "td3_per_continuous":
            errors = paper.update(batch, number, rest[0])
            for got, error in zip(returned[1], errors, strict=True):
                torch.testing.assert_close(got, error, rtol=1e-9, atol=1e-9)
        else:
            paper.update(batch, number)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert_weights(agent, paper.networks, number)
        torch.manual_seed(100 * seed + number)  # of the next batch


# === The peer =====================================================================================
RATES = {"actor": PACE["policy_lr"], "critic": PACE["q_lr"], "ent_coef": SAC["alpha_lr"]}


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def copy_layers(source, target):
    for ours, theirs in zip(linears(source), linears(target), strict=True):
        theirs.load_state_dict(ours.state_dict())


def weights_of(*layers):
    return [weight for layer in layers for weight in (layer.weight, layer.bias)]


class Peer:
    """Stable-Baselines3's algorithm of this name, with the weights of our agent."""

    def __init__(self, name, agent, patch, **settings):
        stable_baselines3 = pytest.importorskip("stable_baselines3")
        from stable_baselines3.common import policies

        # It turns every observation into float32.
        patch.setattr(policies, "preprocess_obs", lambda obs, *_, **__: obs)
        self.name = name
        self.model = getattr(stable_baselines3, name)(
            "MlpPolicy", gym.make(WORLD), gamma=PACE["gamma"], tau=PACE["tau"], batch_size=B,
            buffer_size=10, policy_kwargs={"net_arch": [8, 8]}, device="cpu", **settings,
        )  # fmt: skip
        self.critics = [q for q in ("q", "q1", "q2") if hasattr(agent, q)]
        for suffix, critic in (("", self.model.critic), ("_target", self.model.critic_target)):
            for q, net in zip(self.critics, critic.q_networks, strict=True):
                copy_layers(getattr(agent, q + suffix), net)
        self.set_rates(patch)
        if name == "SAC":
            self.copy_gaussian(agent.actor)
        else:
            copy_layers(agent.actor, self.model.actor)
            copy_layers(agent.actor_target, self.model.actor_target)
            # The peer's TD3 leaves out the 1/2 of the squared error.
            for parameter in self.model.critic.parameters():
                parameter.register_hook(lambda gradient: gradient / 2)
        self.samples, self.noise = collections.deque(), collections.deque()
        patch.setattr(self.model.replay_buffer, "sample", lambda *_, **__: self.samples.popleft())
        self.replace_noise(patch)

    def set_rates(self, patch):
        """A learning rate for each optimizer, where the peer has one for all."""
        optimizers = {"actor": self.model.actor.optimizer, "critic": self.model.critic.optimizer}
        if getattr(self.model, "ent_coef_optimizer", None) is not None:
            optimizers["ent_coef"] = self.model.ent_coef_optimizer
            # The peer has log alpha for alpha in this loss: its gradient lacks a factor alpha.
            log_alpha = self.model.log_ent_coef
            log_alpha.register_hook(lambda gradient: gradient * log_alpha.detach().exp())
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = RATES[name]
        patch.setattr(self.model, "_update_learning_rate", lambda _: None)

    def copy_gaussian(self, actor):
        """Its mean and log standard deviation are two layers; it adds 1e-6 to the slope of tanh."""
        theirs = self.model.actor
        theirs.action_dist.epsilon = 0.0
        *hidden, head = linears(actor)
        for ours, layer in zip(hidden, linears(theirs.latent_pi), strict=True):
            layer.load_state_dict(ours.state_dict())
        for layer, rows in ((theirs.mu, slice(ACT)), (theirs.log_std, slice(ACT, None))):
            layer.load_state_dict({"weight": head.weight[rows], "bias": head.bias[rows]})

    def replace_noise(self, patch):
        def rsample(normal, *_):
            return normal.loc + normal.scale * self.noise.popleft()

        def normal_(tensor, mean, std):
            return tensor.copy_(mean + std * self.noise.popleft())

        patch.setattr(torch.distributions.Normal, "rsample", rsample)
        patch.setattr(torch.Tensor, "normal_", normal_)

    def update(self, batch, noise):
        from stable_baselines3.common.logger import configure
        from stable_baselines3.common.type_aliases import ReplayBufferSamples

        obs, action, reward, next_obs, terminated = batch
        column = {"dones": terminated.unsqueeze(1), "rewards": reward.unsqueeze(1)}
        sample = ReplayBufferSamples(obs, action, next_obs, **column, discounts=None)
        self.samples.append(sample)
        self.noise.extend(noise)
        self.model.set_logger(configure(None, []))
        self.model.train(gradient_steps=1, batch_size=B)
        assert not self.samples and not self.noise
        return self.model.logger.name_to_value

    def weights(self):
        """By our names."""
        model, found = self.model, {}
        for suffix, critic in (("", model.critic), ("_target", model.critic_target)):
            for q, net in zip(self.critics, critic.q_networks, strict=True):
                found[q + suffix] = weights_of(*linears(net))
        if self.name != "SAC":
            found["actor"] = weights_of(*linears(model.actor))
            found["actor_target"] = weights_of(*linears(model.actor_target))
            return found
        heads = [model.actor.mu, model.actor.log_std]
        head = [torch.cat([layer.weight for layer in heads])]
        head += [torch.cat([layer.bias for layer in heads])]
        found["actor"] = [*weights_of(*linears(model.actor.latent_pi)), *head]
        if model.ent_coef_optimizer is not None:
            found["log_alpha"] = [model.log_ent_coef[0]]
        else:
            found["log_alpha"] = [model.ent_coef_tensor.log()]
        return found


TUNED = {"ent_coef": "auto_0.3", "target_entropy": -0.5 * ACT}
SMOOTHED = {"target_policy_noise": 0.6, "target_noise_clip": 0.5}
# By script and variant: our settings, and the peer's for the same.
PEERS = {
    "sac_continuous": (SAC, TUNED),
    "sac_continuous-fixed": (SAC | {"autotune": False}, {"ent_coef": 0.3}),
    "sac_her_continuous": (SAC, TUNED),
    "td3_continuous": (NOISY, SMOOTHED),
    "td3_continuous-no_delay": (NOISY | {"policy_frequency": 1}, SMOOTHED | {"policy_delay": 1}),
    "td3_continuous-long_delay": (NOISY | {"policy_frequency": 3}, SMOOTHED | {"policy_delay": 3}),
    "ddpg_continuous": ({}, {}),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", PEERS)
def test_updates_are_those_of_the_peer(case, seed, monkeypatch):
    """All weights after each update, and the losses and the temperature that both log."""
    script, (settings, peers_settings) = case.split("-")[0], PEERS[case]
    module = importlib.import_module(script)
    args = module.Args(**PACE | settings, seed=seed)
    agent = new_agent(module, args, spread=0.2)
    name = script.split("_")[0].upper()
    peer = Peer(name, agent, monkeypatch, **peers_settings)
    assert_weights(agent, peer.weights(), 0)
    torch.manual_seed(seed)
    for number in range(1, UPDATES + 1):
        batch, noise = new_batch(module), torch.randn(2, B, ACT)
        drawn = iter(noise)
        monkeypatch.setattr(torch, "randn_like", lambda _, drawn=drawn: next(drawn))
        metrics = module.update(agent, batch, *rest_of_call(module, args, number))
        left = len(list(drawn))
        if name == "SAC":  # we act on s' first, then on s; the peer the other way round
            assert left == 0
            logged = peer.update(batch, noise.flip(0))
        else:  # DDPG's noise is drawn by the peer alone, which clips it to nothing
            assert left == (2 if name == "DDPG" else 1)
            logged = peer.update(batch, noise[:1])
        assert_weights(agent, peer.weights(), number)
        factor = 1 if name == "SAC" else 2
        loss = factor * metrics["critic_loss"].item()
        assert loss == pytest.approx(logged["train/critic_loss"], rel=1e-9)
        if "actor_loss" in metrics:
            loss = metrics["actor_loss"].item()
            assert loss == pytest.approx(logged["train/actor_loss"], rel=1e-9, abs=1e-9)
        assert ("actor_loss" in metrics) == ("train/actor_loss" in logged)
        if name == "SAC":
            assert metrics["alpha"].item() == pytest.approx(logged["train/ent_coef"], rel=1e-9)
