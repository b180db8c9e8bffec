"""The wiring of each off-policy script's Agent: its networks, slow copies and optimizers.

And what update() changes, at which of its calls, and what a saved agent brings back.
"""

import copy
import importlib
import itertools

import pytest
import torch
from helpers import OFF_POLICY, same
from oracles import ACT, OBS, gradients_of, numbers, watch
from papers import in_float64, new_agent, new_batch, rest_of_call

HER = "sac_her_continuous"
SCRIPTS = [*OFF_POLICY, HER]
DELAYED = ["td3_continuous", "td3_per_continuous"]
SAC = ["sac_continuous", HER]
DIM = {"hidden_dim": 6}
# Rates that differ from each other and from the defaults.
RATES = {"policy_lr": 0.0123, "q_lr": 0.0234}
TUNED = RATES | {"alpha_lr": 0.0345}

# Which networks an optimizer moves, in their order, and by which flag.
ACTOR = {"actor_optimizer": (["actor"], "policy_lr")}
TWINS = {"q_optimizer": (["q1", "q2"], "q_lr")}
OPTIMIZERS = {
    "ddpg_continuous": ACTOR | {"q_optimizer": (["q"], "q_lr")},
    "td3_continuous": ACTOR | TWINS,
    "td3_per_continuous": ACTOR | TWINS,
    "sac_v1_value_net": ACTOR | TWINS | {"v_optimizer": (["v"], "q_lr")},
    "sac_continuous": ACTOR | TWINS | {"alpha_optimizer": (["log_alpha"], "alpha_lr")},
    HER: ACTOR | TWINS | {"alpha_optimizer": (["log_alpha"], "alpha_lr")},
}
TARGETS = {
    "ddpg_continuous": {"q", "actor"},
    "td3_continuous": {"q1", "q2", "actor"},
    "td3_per_continuous": {"q1", "q2", "actor"},
    "sac_v1_value_net": {"v"},
    "sac_continuous": {"q1", "q2"},
    HER: {"q1", "q2"},
}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


def arguments(script, **settings):
    module = importlib.import_module(script)
    rates = TUNED if script in SAC else RATES
    return module, module.Args(**DIM | rates | settings)


def fresh_agent(script, seed=1, **settings):
    """As train() makes it."""
    module, args = arguments(script, **settings)
    torch.manual_seed(seed)
    return module.Agent(OBS, ACT, args)


def weights_of(agent, name):
    """A network's weights, or the one parameter of this name."""
    part = getattr(agent, name)
    return [part] if isinstance(part, torch.Tensor) else list(part.parameters())


# === Agent ========================================================================================
def test_no_two_networks_start_alike(script):
    """Critics that start alike stay alike: they get the same batches and the same target."""
    agent = fresh_agent(script)
    slow = {f"{name}_target" for name in TARGETS[script]}
    names = {name for name, _ in agent.named_children() if "optimizer" not in name} - slow
    assert {"actor"} < names
    for one, other in itertools.combinations(sorted(names), 2):
        pairs = zip(weights_of(agent, one), weights_of(agent, other), strict=True)
        for weight, another in pairs:
            assert weight.shape != another.shape or not torch.equal(weight, another), (one, other)


def test_the_seed_decides_how_networks_start(script):
    for same_seed in (True, False):
        pair = fresh_agent(script, seed=1), fresh_agent(script, seed=1 if same_seed else 2)
        for (name, weight), (_, another) in zip(*(a.named_parameters() for a in pair), strict=True):
            if name != "log_alpha":
                assert torch.equal(weight, another) == same_seed, name


def test_slow_copies_start_as_copies(script):
    """Equal, and with memory of their own."""
    agent = fresh_agent(script)
    names = {name for name, _ in agent.named_children() if name.endswith("_target")}
    assert names == {f"{name}_target" for name in TARGETS[script]}
    for name in TARGETS[script]:
        slow, fast = weights_of(agent, f"{name}_target"), weights_of(agent, name)
        for copied, weight in zip(slow, fast, strict=True):
            assert torch.equal(copied, weight)
            assert copied.data_ptr() != weight.data_ptr()


def assert_optimizers(agent, args, expected):
    names = {name for name, _ in agent.named_children() if name.endswith("optimizer")}
    assert names == expected.keys()
    for name, (networks, rate) in expected.items():
        optimizer = getattr(agent, name)
        weights = [weight for network in networks for weight in weights_of(agent, network)]
        assert [id(p) for p in optimizer.params] == [id(weight) for weight in weights], name
        assert optimizer.lr.item() == pytest.approx(getattr(args, rate)), name
        assert optimizer.eps == 1e-8, name


def test_optimizers_hold_exactly_these_weights(script):
    """Each with the step size of its own flag, and no slow copy among them."""
    module, args = arguments(script)
    assert_optimizers(module.Agent(OBS, ACT, args), args, OPTIMIZERS[script])


@pytest.mark.parametrize("delayed", DELAYED)
def test_without_a_second_critic_its_weights_are_left_out(delayed):
    module, args = arguments(delayed, double_q=False)
    expected = OPTIMIZERS[delayed] | {"q_optimizer": (["q1"], "q_lr")}
    assert_optimizers(module.Agent(OBS, ACT, args), args, expected)


def test_networks_have_the_shapes_that_were_asked_for(script):
    """Observations, actions and hidden units, all of different number."""
    agent = fresh_agent(script)
    outputs = 2 * ACT if script in (*SAC, "sac_v1_value_net") else ACT
    for name, network in agent.named_children():
        if "optimizer" in name:
            continue
        inputs = OBS if name.split("_")[0] in ("actor", "v") else OBS + ACT
        last = outputs if name.startswith("actor") else 1
        shapes = [tuple(weight.shape) for weight in network.parameters()]
        assert shapes == [(6, inputs), (6,), (6, 6), (6,), (last, 6), (last,)], name


@pytest.mark.parametrize("script", SAC, indirect=True)
@pytest.mark.parametrize("autotune", [True, False])
def test_the_temperature_is_kept_as_a_logarithm(script, autotune):
    """One number, which begins at the flag's; it is trained only where tuning is on."""
    agent = fresh_agent(script, alpha=0.37, autotune=autotune)
    assert agent.log_alpha.shape == ()
    assert agent.log_alpha.exp().item() == pytest.approx(0.37)
    assert agent.log_alpha.requires_grad == autotune


@pytest.mark.parametrize("script", SAC, indirect=True)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_the_target_entropy_is_minus_the_number_of_actions(script, scale):
    """Times the flag's scale; one nat for each dimension by default."""
    assert fresh_agent(script, target_entropy_scale=scale).target_entropy == -scale * ACT
    assert fresh_agent(script).target_entropy == -ACT


# === update =======================================================================================
def settings_of(script, **settings):
    """All networks move by so much that no step can be overlooked."""
    pace = {"policy_lr": 0.02, "q_lr": 0.03, "tau": 0.3, "gamma": 0.9}
    if script in SAC:
        pace |= {"alpha": 0.3, "alpha_lr": 0.05}
    if script in DELAYED:
        pace |= {"policy_frequency": 1}
    return arguments(script, **pace | settings)


def watched(script, updates=2, **settings):
    """Some updates in a row, each as oracles.watch describes it."""
    module, args = settings_of(script, **settings)
    with in_float64():
        agent = new_agent(module, args)
        seen = []
        for number in range(1, updates + 1):
            rest = rest_of_call(module, args, number)
            seen.append(watch(module, module.update, agent, new_batch(module), *rest))
    return seen


def moved(before, after):
    """The names of the networks that differ."""
    names = set()
    for name, weights in before.items():
        for weight, another in zip(weights, after[name], strict=True):
            if not (weight == another).all():
                names.add(name)
    return names


def test_each_step_moves_its_own_networks_and_no_other(script):
    """In the order of the box; each step begins where the one before has ended, and after the last
    one only the slow copies move.
    """
    names = [networks for networks, _ in OPTIMIZERS[script].values()]
    order = [names[1], names[0], *names[2:]]  # the critics come first
    for update in watched(script):
        assert len(update.steps) == len(order)
        states = [*(step.before for step in update.steps), update.after]
        assert not moved(update.before, states[0])
        for step, networks, before, after in zip(
            update.steps, order, states[:-1], states[1:], strict=True
        ):
            assert list(step.gradients) == networks
            slow = {f"{name}_target" for name in TARGETS[script]}
            last = slow if step is update.steps[-1] else set()
            assert moved(before, after) == set(networks) | last


@pytest.mark.parametrize("limit", [0.001, 0.01])
def test_no_gradient_is_longer_than_the_flag_allows(script, limit, monkeypatch):
    """Of each optimizer for itself; cut to that length before its step, in the same direction."""
    module, args = settings_of(script, max_grad_norm=limit)
    _, free = settings_of(script)
    with in_float64():
        agent = new_agent(module, args)
        batch, number = new_batch(module), 2
        rest = rest_of_call(module, args, number)
        rest_free = tuple(free if argument is args else argument for argument in rest)
        for name in OPTIMIZERS[script]:
            gradients = []
            for settings in (rest, rest_free):
                other = copied(module, agent, args)
                torch.manual_seed(number)
                with gradients_of(getattr(other, name)) as pairs:
                    if settings is rest_free:
                        # All steps before this one are clipped, so that it is the same one.
                        limit_all_but(module, monkeypatch, getattr(other, name), limit)
                    module.update(other, batch, *settings)
                    monkeypatch.undo()
                gradients.append([gradient for _, gradient in pairs])
            clipped, whole = gradients
            length = torch.cat([gradient.flatten() for gradient in whole]).norm()
            assert length > 2 * limit, "there is something to cut off"
            for short, long in zip(clipped, whole, strict=True):
                expected = long * (limit / (length + 1e-6))
                torch.testing.assert_close(short, expected, rtol=1e-9, atol=1e-15)


def copied(module, agent, args):
    """Another agent with the same state."""
    other = module.Agent(OBS, ACT, args)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    return other


def limit_all_but(module, monkeypatch, optimizer, limit):
    """The module's gradient_step gets this limit for every optimizer but one."""
    original = module.gradient_step

    def gradient_step(which, loss, max_grad_norm):
        original(which, loss, 0.0 if which is optimizer else limit)

    monkeypatch.setattr(module, "gradient_step", gradient_step)


@pytest.mark.parametrize("script", DELAYED, indirect=True)
@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_actor_and_slow_copies_wait(script, first, frequency):
    """For the updates whose number is a multiple of the flag, wherever the counting begins."""
    module, args = settings_of(script, policy_frequency=frequency)
    with in_float64():
        agent = new_agent(module, args)
        for number in range(first, first + 7):
            before = numbers(agent)
            module.update(agent, new_batch(module), *rest_of_call(module, args, number))
            waiting = {"actor", "actor_target", "q1_target", "q2_target"}
            if number % frequency == 0:
                waiting = set()
            assert moved(before, numbers(agent)) == before.keys() - waiting, number


@pytest.mark.parametrize("script", DELAYED, indirect=True)
@pytest.mark.parametrize("rate, learning", [(1.0, 17), (0.5, 17), (3.0, 7)])
def test_updates_are_numbered_from_one_without_a_gap(script, rate, learning, tmp_path, monkeypatch):
    """Over all steps of a run, so that the delay does not begin anew at each of them."""
    module = importlib.import_module(script)
    given, update = [], module.update

    def noted(*arguments):
        given.append(arguments[-1])
        return update(*arguments)

    monkeypatch.setattr(module, "update", noted)
    args = module.Args(
        env_id="worlds:Endless-v0", total_timesteps=10 + learning, learning_starts=10,
        updates_per_step=rate, hidden_dim=4, batch_size=4, eval_frequency=0, eval_episodes=1,
        num_threads=1, runs_dir=str(tmp_path),
    )  # fmt: skip
    module.train(args)
    assert given == list(range(1, int(learning * rate) + 1))


@pytest.mark.parametrize("script", DELAYED, indirect=True)
def test_the_noise_of_smoothing_is_clipped_and_so_is_the_action(script):
    """What the slow critics are shown: at most the clip away from the action, never beyond 1."""
    module, args = settings_of(script, policy_noise=5.0, noise_clip=0.3)
    shown = []
    with in_float64():
        agent = new_agent(module, args, spread=1.0)
        batch = new_batch(module, 50)
        action = agent.actor_target(batch.next_obs).detach()
        with agent.q2_target.register_forward_hook(lambda _, inputs, __: shown.append(inputs)):
            module.update(agent, batch, *rest_of_call(module, args, 1, 50))
    ((next_obs, smoothed),) = shown
    assert torch.equal(next_obs, batch.next_obs)
    assert smoothed.abs().max() == 1
    distance = (smoothed - action).abs()
    assert distance.max() <= 0.3 + 1e-12
    inside = smoothed.abs() < 1
    assert inside.any() and (distance[inside] > 0.29).float().mean() > 0.8
    for side in (-1, 1):
        assert ((smoothed - action)[inside].sign() == side).any()


# === What is saved ================================================================================
def test_a_loaded_agent_goes_on_as_the_saved_one_would(script):
    """Networks, slow copies, temperature and the moments of every optimizer: bit for bit."""
    module, args = settings_of(script)
    with in_float64():
        agent = new_agent(module, args)
        for number in (1, 2, 3):
            module.update(agent, new_batch(module), *rest_of_call(module, args, number))
        saved = copy.deepcopy(agent.state_dict())
        other = fresh_agent(script, seed=9, **settings_differing(script))
        other.load_state_dict(saved)
        same(dict(other.state_dict()), dict(saved))
        states = []
        for which in (agent, other):
            torch.manual_seed(7)
            for number in (4, 5):
                module.update(which, new_batch(module), *rest_of_call(module, args, number))
            states.append(dict(which.state_dict()))
    same(*states)
    for name in OPTIMIZERS[script]:
        assert states[0][f"{name}.t"] == 5


def settings_differing(script):
    """The rates are the settings', not the file's: they are the same here, and alpha is not."""
    pace = {"policy_lr": 0.02, "q_lr": 0.03}
    return pace | ({"alpha_lr": 0.05, "alpha": 0.9} if script in SAC else {})


def test_step_sizes_are_the_settings_and_not_the_files(script):
    """So that a run which goes on can have others."""
    agent = fresh_agent(script)
    assert not [name for name in agent.state_dict() if name.endswith(".lr")]
    other = fresh_agent(script, policy_lr=0.5, q_lr=0.25)
    other.load_state_dict(agent.state_dict())
    assert other.actor_optimizer.lr.item() == 0.5 and other.q_optimizer.lr.item() == 0.25
