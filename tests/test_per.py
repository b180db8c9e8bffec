"""Prioritised replay: the tree, what is drawn from it and how it weighs, and TD3 with it."""

import math
import signal

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from helpers import QUICK, main, metrics, read_checkpoint, run_dir, same
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import (
    ACT,
    OBS,
    WORLD,
    B,
    assert_slopes,
    assert_targets_followed,
    mlp,
    q_value,
    spread_out,
    watch,
)
from processes import at_call, refusal, same_run

import td3_continuous as td3
import td3_per_continuous as per
from td3_per_continuous import PrioritizedReplayBuffer, critic_loss, importance_weight, priority

SCRIPT = "td3_per_continuous"
FLAGS = [*QUICK[SCRIPT], "--buffer-size=180"]
EPSILON = 2.0**-53  # torch.rand draws multiples of it in float64, from 0 to 1 - EPSILON
GAMMA, TAU = 0.9, 0.3


def transition(number):
    """A transition that can be told from every other."""
    return [number, -number], [number / 64], number / 4, [number + 1, 7], number % 2


def filled(capacity, count, priorities=None):
    """A buffer to which so many transitions were added, with these priorities of its rows."""
    replay = PrioritizedReplayBuffer(capacity, 2, 1)
    for number in range(count):
        replay.add(*transition(number))
    if priorities is not None:
        replay.update_priorities(np.arange(len(replay)), np.array(priorities))
    return replay


def leaves(replay):
    return replay.sum[len(replay.sum) // 2 :][: len(replay)].copy()


def spread(count, magnitudes=6):
    """Priorities over so many powers of ten."""
    return 10 ** np.random.default_rng(count).uniform(-magnitudes / 2, magnitudes / 2, count)


def draw(patch, uniform):
    """Let torch.rand give this number, or these."""
    values = torch.tensor(uniform, dtype=torch.float64)
    patch.setattr(torch, "rand", lambda *size, dtype: values.to(dtype).expand(size).clone())


# === The tree =====================================================================================
def check_tree(replay, expected):
    """Leaves are what was last set, exactly; a node is exactly what its two children make."""
    size = 2 ** math.ceil(math.log2(len(replay.table)))
    for tree in (replay.sum, replay.max):
        assert tree.shape == (2 * size,) and tree.dtype == np.float64
        assert tree[size:].tolist() == expected + [0.0] * (size - len(expected))
    for node in range(1, size):
        assert replay.sum[node] == replay.sum[2 * node] + replay.sum[2 * node + 1]
        assert replay.max[node] == max(replay.max[2 * node], replay.max[2 * node + 1])
    assert replay.sum[1] == pytest.approx(math.fsum(expected), rel=1e-12)


PRIORITIES = st.floats(-12, 12).map(lambda exponent: 10**exponent)
# None adds a transition; a list gives priorities to rows, some of them more than once.
HISTORY = st.lists(
    st.none() | st.lists(st.tuples(st.integers(0, 20), PRIORITIES), min_size=1, max_size=6),
    max_size=30,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2, 3, 5, 8, 13]), HISTORY)
def test_the_tree_after_each_step_of_random_histories(capacity, history):
    """Against a list. What is new gets the largest priority that is there now, the first one 1."""
    replay, expected = filled(capacity, 0), []
    for operation in [None, *history]:
        if operation is None:
            row, largest = replay.added % capacity, max(expected, default=1.0)
            replay.add(*transition(replay.added))
            expected[row : row + 1] = [largest]
        else:
            rows, values = zip(*operation, strict=True)
            rows = np.array(rows) % len(expected)
            replay.update_priorities(rows, np.array(values))
            for row, value in zip(rows, values, strict=True):
                expected[row] = value
        check_tree(replay, expected)
        _, rows, probability = replay.sample(5)
        assert rows.min() >= 0 and rows.max() < len(replay) == len(expected)
        total = math.fsum(expected)
        assert probability.tolist() == pytest.approx([expected[row] / total for row in rows])


def test_a_large_priority_that_has_gone_is_forgotten():
    replay = filled(5, 3)
    replay.update_priorities(np.array([1]), np.array([40.0]))
    replay.add(*transition(3))
    replay.update_priorities(np.array([1, 3]), np.array([0.25, 0.5]))
    replay.update_priorities(np.array([0, 2]), np.array([0.125, 0.75]))
    replay.add(*transition(4))
    assert leaves(replay).tolist() == [0.125, 0.25, 0.75, 0.5, 0.75]


@pytest.mark.parametrize("size", [1, 3])
def test_one_row_at_a_time(size):
    """Two numbers will do too; and sums do not drift, however often they are changed."""
    replay, expected, dice = filled(size, size), [1.0] * size, np.random.default_rng(1)
    for row in dice.integers(size, size=300).tolist():
        expected[row] = 10 ** dice.uniform(-9, 9)
        replay.update_priorities(row, expected[row])
    check_tree(replay, expected)


class Counted(np.ndarray):
    calls = 0

    def __getitem__(self, key):
        Counted.calls += 1
        return self.view(np.ndarray)[key]

    def __setitem__(self, key, value):
        Counted.calls += 1
        self.view(np.ndarray)[key] = value


def calls(capacity, batch_size):
    """How often a sample, new priorities for it and a new transition touch the trees."""
    replay = filled(capacity, 0)
    replay.added = capacity
    replay.update_priorities(np.arange(capacity), np.ones(capacity))
    replay.sum, replay.max = replay.sum.view(Counted), replay.max.view(Counted)
    Counted.calls = 0
    _, rows, _ = replay.sample(batch_size)
    replay.update_priorities(rows, np.ones(batch_size))
    replay.add(*transition(0))
    return Counted.calls


def test_the_work_grows_with_the_depth_of_the_tree_alone():
    few, some, many = (calls(2**depth, 32) for depth in (4, 8, 12))
    assert 0 < some - few == many - some
    assert calls(2**8, 1) == calls(2**8, 500) == some


# === Drawing ======================================================================================
DRAWN = {
    "full": (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
    "half empty": (13, 6, [3, 1, 4, 1, 5, 9]),
    "new": (13, 4),
    "one": (1, 1, [0.3]),
    "wrapped": (5, 18, [1.5, 0.5, 2.5, 0.25, 1]),
    "many": (1_000, 700, spread(700, 3)),
    "tiny beside huge": (6, 5, [1e-9, 1e9, 1, 1e-9, 1e9]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_in_proportion_to_priority(name):
    """A row whose priority is m shares' worth of the total has m - 2 shares or more to itself, and
    lies in less than m + 2. Independent draws would be off by hundreds.
    """
    replay, draws = filled(*DRAWN[name]), 200_000
    torch.manual_seed(1)
    _, rows, _ = replay.sample(draws)
    count, expected = np.bincount(rows), draws * leaves(replay) / leaves(replay).sum()
    assert len(count) <= len(replay)
    count = np.pad(count, (0, len(replay) - len(count)))
    assert abs(count - expected).max() < 2
    common = expected > 400
    assert common.any() and abs(count[common] / expected[common] - 1).max() < 0.01


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 2**20), min_size=1, max_size=13),
    st.integers(0, 4),
    st.sampled_from([1, 2, 8, 64]),
    st.lists(st.integers(0, 15), min_size=64, max_size=64),
)
@example([1] * 8, 5, 8, [0] * 64)
def test_each_share_of_the_total_has_one_draw(priorities, empty, batch_size, sixteenths):
    """By bisection of the cumulated priorities; all numbers here are exact, so bounds count too."""
    replay = filled(len(priorities) + empty, len(priorities), np.array(priorities, float))
    uniform = np.array(sixteenths[:batch_size]) / 16
    with pytest.MonkeyPatch.context() as patch:
        draw(patch, uniform)
        _, rows, _ = replay.sample(batch_size)
    target = (np.arange(batch_size) + uniform) * sum(priorities) / batch_size
    assert rows.tolist() == np.searchsorted(np.cumsum(priorities), target, "right").tolist()


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_where_in_its_share_is_drawn_by_torch(batch_size, name):
    """Every share has a number of its own from torch's generator, in float64."""
    replay = filled(*DRAWN[name])
    torch.manual_seed(2)
    _, rows, _ = replay.sample(batch_size)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    uniform = torch.rand(batch_size, dtype=torch.float64).numpy()
    assert torch.equal(torch.get_rng_state(), after)
    cumulated = np.cumsum(leaves(replay))
    target = (np.arange(batch_size) + uniform) / batch_size * cumulated[-1]
    assert rows.tolist() == np.searchsorted(cumulated, target, "right").tolist()


@pytest.mark.parametrize("uniform", [0.0, EPSILON, 1 - EPSILON])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_the_ends_of_the_draw(batch_size, uniform, monkeypatch):
    """The largest number, with rounding, is the whole total: nothing beyond the last is drawn."""
    draw(monkeypatch, uniform)
    beyond = 0
    for count in range(1, 18):
        for capacity in (count, count + 1, 2 * count + 3):
            replay = filled(capacity, count, spread(count, 2))
            _, rows, probability = replay.sample(batch_size)
            last = batch_size - 1
            beyond += (uniform + last) / batch_size * replay.sum[1] >= replay.sum[1]
            assert rows.min() >= 0 and rows.max() < count
            assert uniform < 0.5 or rows[last] == count - 1
            assert uniform > 0.5 or rows[0] == 0
            assert (np.diff(rows) >= 0).all() and (probability > 0).all()
    assert (beyond > 0) == (uniform > 0.5 and batch_size > 1)


@pytest.mark.parametrize("name", DRAWN)
def test_what_a_draw_returns(name):
    """The rows' transitions as they were added, in float32, and each one's share of the total."""
    replay = filled(*DRAWN[name])
    torch.manual_seed(3)
    batch, rows, probability = replay.sample(50)
    p = leaves(replay)
    assert rows.dtype == np.int64 and rows.shape == probability.shape == (50,)
    assert probability.dtype == torch.float32
    np.testing.assert_allclose(probability, p[rows] / p.sum(), rtol=1e-6)
    newest = {n % len(replay.table): n for n in range(replay.added)}
    columns = zip(*(transition(newest[row]) for row in rows), strict=True)
    same([*batch], [torch.tensor(column, dtype=torch.float32) for column in columns])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_priority_that_is_not_finite_leads_to_no_row_that_is_not_there(bad):
    """So that the script ends with its message about the loss and not with an IndexError."""
    for row in range(3):
        replay = filled(5, 3)
        replay.update_priorities(np.array([row]), np.array([bad]))
        for _ in range(3):
            batch, rows, _ = replay.sample(8)
            assert rows.min() >= 0 and rows.max() < len(replay)
            replay.add(*transition(0))


# === Formulas =====================================================================================
def by_hand(p, size, beta):
    """Importance weights in float64."""
    weight = (1 / (size * np.asarray(p, float))) ** beta
    return weight / weight.max()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows", [slice(B), slice(-B, None), slice(None, None, 5)])
def test_importance_weight(rows, beta):
    """Of the least likely, the most likely, and some of all kinds: the largest is always 1."""
    p = np.sort(np.random.default_rng(1).dirichlet(np.ones(5 * B)))[rows]
    weight = importance_weight(torch.tensor(p).float(), 5 * B, beta)
    assert weight.shape == (B,) and weight.dtype == torch.float32
    assert weight.max() == 1 and weight.min() > 0
    np.testing.assert_allclose(weight, by_hand(p, 5 * B, beta), rtol=1e-5)
    assert (weight == 1).all() == (beta == 0)


def test_beta_one_takes_back_what_the_draw_prefers():
    """The exact expectation over draws of w x is the plain mean of x, but for w's divisor."""
    dice = np.random.default_rng(3)
    p, x = dice.dirichlet(np.ones(30)), dice.normal(size=30)
    full, half = (importance_weight(torch.tensor(p), 30, beta).numpy() for beta in (1.0, 0.5))
    assert np.sum(p * full * x) / np.sum(p * full) == pytest.approx(x.mean(), rel=1e-9)
    assert abs(np.sum(p * half * x) / np.sum(p * half) - x.mean()) > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("critics", [1, 2])
def test_priority(critics, alpha):
    """The larger error of the two, whatever its sign; of no error too it is above 0."""
    errors = 3 * np.random.default_rng(critics).normal(size=(critics, B))
    errors[:, 0], errors[:, 1] = 0, -5
    tensors = [torch.tensor(e, dtype=torch.float32) for e in errors]
    p = priority(tensors, alpha)
    assert isinstance(p, np.ndarray) and p.dtype == np.float64 and p.shape == (B,)
    np.testing.assert_allclose(p, [(max(abs(e)) + 0.01) ** alpha for e in errors.T], rtol=1e-6)
    assert (p > 0).all() and (alpha > 0 or p.tolist() == [1.0] * B)
    assert p[1] == pytest.approx(5.01**alpha)


def test_alpha_zero_is_uniform_replay():
    replay, draws = filled(13, 9, spread(9)), 90_000
    replay.update_priorities(np.arange(9), priority([torch.randn(9), torch.randn(9)], 0.0))
    replay.add(*transition(9))
    _, rows, probability = replay.sample(draws)
    assert leaves(replay).tolist() == [1] * 10
    assert (importance_weight(probability, len(replay), 0.7) == 1).all()
    assert abs(np.bincount(rows) - draws / 10).max() < 2


def test_critic_loss():
    """Half the mean of weighted squares: with weights of 1 that of TD3, in value and gradient."""
    dice = np.random.default_rng(4)
    q, y, w = dice.normal(size=B), dice.normal(size=B), dice.uniform(0.1, 1, B)
    prediction, target, weight = map(torch.tensor, (q, y, w))
    prediction.requires_grad_()
    loss = critic_loss(prediction, target, weight)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(0.5 * w * (q - y) ** 2) / B)
    np.testing.assert_allclose(torch.autograd.grad(loss, prediction)[0], w * (q - y) / B)
    ones = critic_loss(prediction, target, torch.ones(B)), td3.critic_loss(prediction, target)
    assert ones[0].item() == pytest.approx(ones[1].item())
    np.testing.assert_allclose(*(torch.autograd.grad(one, prediction)[0] for one in ones))


# === The updates of train() =======================================================================
def watched(tmp_path, **changed):
    """The four updates of a short run on made-up transitions, each as watch() describes it, and

    p_before            priorities at the draw; those of the first are made up, of many magnitudes
    rows, probability   what was drawn
    weight              what update() was given
    errors              what it returned
    p_after             priorities at the update's end
    """
    seen, drawn, dice = [], {}, np.random.default_rng(5)
    start, update, buffer = per.Run.start, per.update, PrioritizedReplayBuffer
    add, sample, update_priorities = buffer.add, buffer.sample, buffer.update_priorities

    def begin(run, env, agent, replay):
        spread_out(agent)
        return start(run, env, agent, replay)

    def made_up(replay, *transition):
        obs, next_obs = dice.normal(size=(2, OBS))
        add(replay, obs, dice.uniform(-1, 1, ACT), 2 * dice.normal(), next_obs, dice.random() < 0.3)

    def noted_sample(replay, batch_size):
        if not seen:
            update_priorities(replay, np.arange(len(replay)), spread(len(replay), 2))
        drawn["p_before"] = leaves(replay)
        batch, drawn["rows"], drawn["probability"] = sample(replay, batch_size)
        return batch, drawn["rows"], drawn["probability"]

    def noted_update(agent, batch, weight, args, number):
        seen.append(watch(per, update, agent, batch, weight, args, number))
        seen[-1].weight = weight
        vars(seen[-1]).update(drawn)
        seen[-1].metrics, seen[-1].errors = seen[-1].returned
        return seen[-1].returned

    def noted_priorities(replay, rows, values):
        update_priorities(replay, rows, values)
        if np.size(rows) > 1:
            seen[-1].p_after = leaves(replay)

    fixed = dict(env_id=WORLD, num_threads=1, hidden_dim=8, eval_episodes=1, log_frequency=1)
    fixed |= dict(learning_starts=14, total_timesteps=18, batch_size=B, gamma=GAMMA, tau=TAU)
    fixed |= dict(q_lr=0.05, policy_lr=0.05, policy_noise=0.0, runs_dir=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(per.Run, "start", begin)
        patch.setattr(per, "update", noted_update)
        patch.setattr(buffer, "add", made_up)
        patch.setattr(buffer, "sample", noted_sample)
        patch.setattr(buffer, "update_priorities", noted_priorities)
        per.train(per.Args(**fixed | changed))
    assert len(seen) == 4
    return seen


KINDS = {
    "default": {},
    "one critic": {"double_q": False},
    "other powers": {"per_alpha": 1.0, "per_beta": 0.9},
    "alpha 0": {"per_alpha": 0.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_by_hand(kind, tmp_path):
    """Weights, losses, gradients and stored priorities of four updates, in NumPy.

    What is stored is of the critics as they were when the batch came, and knows no weights; rows
    that were not drawn keep theirs. The critics' loss is weighted, and the actor's is not.
    """
    args = per.Args(**KINDS[kind])
    critics = ["q1", "q2"][: 1 + args.double_q]
    seen = watched(tmp_path, **KINDS[kind])
    logged = metrics(run_dir(tmp_path))[-4:]
    for number, (update, row) in enumerate(zip(seen, logged, strict=True), start=1):
        nets, (step, *actor_steps) = update.before, update.steps
        obs, action, reward, next_obs, terminated = (x.double().numpy() for x in update.batch)
        p = update.p_before[update.rows] / update.p_before.sum()
        np.testing.assert_allclose(update.probability, p, rtol=1e-5)
        beta = args.per_beta + (1 - args.per_beta) * (14 + number) / 18
        w = by_hand(p, 14 + number, beta)
        np.testing.assert_allclose(update.weight, w, rtol=1e-4)
        assert float(row["weight"]) == pytest.approx(w.mean(), rel=1e-5)

        next_action = np.tanh(mlp(nets["actor_target"], next_obs))
        next_q = [q_value(nets[q + "_target"], next_obs, next_action) for q in critics]
        y = reward + GAMMA * (1 - terminated) * np.min(next_q, axis=0)
        errors = [q_value(nets[q], obs, action) - y for q in critics]
        assert list(step.gradients) == critics
        expected = sum(np.mean(0.5 * w * e**2) for e in errors)
        assert step.loss == update.metrics["critic_loss"] == pytest.approx(expected, rel=1e-4)
        for q, target, got, error in zip(
            critics, update.targets, update.errors, errors, strict=True
        ):
            assert (target == update.batch.reward.numpy())[terminated == 1].all()
            assert not got.requires_grad and got.shape == (B,)
            np.testing.assert_allclose(got, error, atol=1e-4)

            def half_square(q=q, nets=nets, obs=obs, action=action, y=y, w=w):
                return np.mean(0.5 * w * (q_value(nets[q], obs, action) - y) ** 2)

            assert_slopes(half_square, nets[q], step.gradients[q], rel=1e-3, abs=1e-5)

        expected = update.p_before.copy()
        expected[update.rows] = (np.max(np.abs(errors), axis=0) + 0.01) ** args.per_alpha
        np.testing.assert_allclose(update.p_after[update.rows], expected[update.rows], rtol=1e-3)
        others = np.setdiff1d(np.arange(14 + number), update.rows)
        assert len(others) and update.p_after[others].tolist() == update.p_before[others].tolist()
        if number < 4:
            later = seen[number].p_before
            assert later.tolist() == [*update.p_after, update.p_after.max()]

        assert len(actor_steps) == (0 if number % 2 else 1)
        for step in actor_steps:

            def minus_q(nets=step.before, obs=obs):
                return -np.mean(q_value(nets["q1"], obs, np.tanh(mlp(nets["actor"], obs))))

            nets = step.before
            assert list(step.gradients) == ["actor"]
            assert step.loss == pytest.approx(minus_q(), rel=1e-5, abs=1e-6)
            assert_slopes(minus_q, nets["actor"], step.gradients["actor"], rel=1e-3, abs=1e-5)
        assert_targets_followed(update, 0 if number % 2 else TAU)
        assert not any(value.requires_grad for value in update.metrics.values())
    assert seen[0].weight.min() < 0.5


def test_beta_changes_what_is_learnt_and_not_what_is_stored(tmp_path):
    """In the first update; after it the networks, and so the errors, differ."""
    one, other = (watched(tmp_path / name, per_beta=float(name)) for name in ("0", "1"))
    assert not torch.equal(one[0].weight, other[0].weight)
    assert one[0].rows.tolist() == other[0].rows.tolist()
    assert one[0].p_after.tolist() == other[0].p_after.tolist() != one[0].p_before.tolist()
    for q in ("q1", "q2"):
        gradients = (x[0].steps[0].gradients[q] for x in (one, other))
        assert not any(np.array_equal(*pair) for pair in zip(*gradients, strict=True))
        for number, alike in enumerate([True, False]):
            networks = (x[number].before[q] for x in (one, other))
            assert all(np.array_equal(*pair) for pair in zip(*networks, strict=True)) == alike


SMALL = dict(env_id="worlds:Endless-v0", hidden_dim=4, batch_size=4, num_threads=1)
SMALL |= dict(eval_episodes=1, eval_frequency=0)


@pytest.mark.parametrize("first", [0.0, 0.4, 0.9, 1.0])
def test_beta_grows_linearly_from_its_flag_to_exactly_one(first, tmp_path, monkeypatch):
    """And it is given how many transitions there are, which the buffer's size bounds."""
    seen, original = [], per.importance_weight

    def noted(probability, size, beta):
        seen.append((size, beta))
        return original(probability, size, beta)

    monkeypatch.setattr(per, "importance_weight", noted)
    changed = dict(total_timesteps=30, learning_starts=4, buffer_size=20, updates_per_step=2)
    per.train(per.Args(**SMALL | changed, per_beta=first, runs_dir=str(tmp_path)))
    sizes, betas = zip(*seen, strict=True)
    steps = np.repeat(np.arange(5, 31), 2)
    assert betas == pytest.approx(first + (1 - first) * steps / 30)
    assert betas[-1] == 1.0
    assert sizes == tuple(np.minimum(steps, 20))


def test_alpha_zero_weighs_all_alike(tmp_path):
    """Throughout a run whose buffer wraps; with another alpha it would not."""
    changed = dict(total_timesteps=60, learning_starts=10, buffer_size=30, log_frequency=1)
    for alpha in (0.0, 0.6):
        runs = str(tmp_path / str(alpha))
        folder = per.train(per.Args(**SMALL | changed, per_alpha=alpha, runs_dir=runs))["run_dir"]
        stored = read_checkpoint(folder)["parts"]["replay"]["priority"]
        assert stored.shape == (30,) and (stored == 1).all() == (alpha == 0)
        weight = [float(row["weight"]) for row in metrics(folder) if row["weight"]]
        assert len(weight) == 50 and (min(weight) == max(weight) == 1) == (alpha == 0)


@pytest.mark.slow_but("flags0")
@pytest.mark.parametrize("flags", [{}, {"double_q": False, "max_grad_norm": 1.0}])
def test_with_uniform_draws_it_is_td3(flags, tmp_path, monkeypatch):
    """Bit for bit: networks, optimizers, random states. Weights are all 1, and both losses divide
    by a batch that is a power of two, so that gradients are rounded alike; the loss itself, which
    is only logged, may be summed in another order.
    """

    def uniform(replay, batch_size):
        rows = torch.randint(len(replay), (batch_size,))
        return replay.gather(rows), rows.numpy(), torch.full((batch_size,), 1 / len(replay))

    monkeypatch.setattr(PrioritizedReplayBuffer, "sample", uniform)
    fixed = dict(total_timesteps=250, learning_starts=100, hidden_dim=32, batch_size=32)
    fixed |= dict(env_id="Pendulum-v1", num_threads=1, eval_episodes=1, exploration_noise=0.3)
    fixed |= dict(log_frequency=50)
    folders = [
        module.train(module.Args(**fixed | flags | {"runs_dir": str(tmp_path)}))["run_dir"]
        for module in (td3, per)
    ]
    one, other = (read_checkpoint(folder) for folder in folders)
    assert other["parts"]["replay"].pop("priority").std() > 0.1
    same(other["parts"], one["parts"])
    same(other["progress"]["generators"], one["progress"]["generators"])
    for row, expected in zip(*(metrics(folder) for folder in reversed(folders)), strict=True):
        assert row.pop("weight") in ("", "1.0")
        losses = [float(x.pop("critic_loss") or 0) for x in (row, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6) and row == expected


# === Stopping and going on ========================================================================
def go_on(replay, steps):
    """Draws, new priorities and new transitions; all that was drawn."""
    torch.manual_seed(6)
    drawn, dice = [], np.random.default_rng(6)
    for _ in range(steps):
        batch, rows, probability = replay.sample(6)
        drawn.append([*batch, rows.tolist(), probability])
        replay.update_priorities(rows, 10 ** dice.uniform(-3, 3, 6))
        replay.add(*transition(replay.added))
    return drawn


@pytest.mark.parametrize(
    "capacity, count, larger", [(13, 30, 13), (13, 5, 13), (5, 5, 13), (8, 8, 64), (1, 1, 2)]
)
def test_loaded_into_a_new_buffer_of_this_or_a_larger_size(capacity, count, larger):
    """It is the buffer that had that size all along, bit for bit, and goes on as that does."""
    priorities = spread(min(capacity, count))
    saved, expected = (filled(size, count, priorities) for size in (capacity, larger))
    replay = filled(larger, 0)
    replay.load_state_dict(saved.state_dict())
    for _ in range(2):
        assert replay.added == expected.added
        for name in ("sum", "max", "table"):
            assert np.array_equal(getattr(replay, name), getattr(expected, name)), name
        same(go_on(replay, 20), go_on(expected, 20))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that nothing interrupts, whose buffer has begun to forget."""
    folder = tmp_path_factory.mktemp("whole")
    main(SCRIPT, *FLAGS, "--runs-dir", folder)
    return run_dir(folder)


@pytest.mark.slow_but("133")
@pytest.mark.parametrize("step", [30, 133, 230])
def test_stopped_by_a_signal(step, whole, tmp_path, monkeypatch, capsys):
    """While warming up, later, after the buffer has begun to forget: priorities are as they were.

    The run that nothing stopped has many different ones at its end.
    """
    call = 200 + step + 1  # an episode is played before the first step; this is not whole then
    at_call(monkeypatch, PendulumEnv, "step", call, lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match="^1$"):
        main(SCRIPT, *FLAGS, "--runs-dir", tmp_path)
    assert f"\nstopped at step {step}: --resume {run_dir(tmp_path)}" in capsys.readouterr().out
    main(SCRIPT, "--resume", run_dir(tmp_path) / "checkpoint.pt")
    same_run(run_dir(tmp_path), whole)
    assert len(read_checkpoint(whole)["parts"]["replay"]["priority"].unique()) > 60


@pytest.mark.slow
def test_a_longer_run_has_a_larger_tree(tmp_path, capsys):
    """200 steps at once, or 120 and then the rest: the same where beta does not depend on it."""
    flags = [*QUICK[SCRIPT], "--per-beta=1"]
    main(SCRIPT, *flags, "--total-timesteps=200", "--runs-dir", tmp_path / "once")
    main(SCRIPT, *flags, "--total-timesteps=120", "--runs-dir", tmp_path / "twice")
    once, twice = (run_dir(tmp_path / name) for name in ("once", "twice"))
    capsys.readouterr()
    main(SCRIPT, "--resume", twice / "checkpoint.pt", "--total-timesteps=200")
    assert "total_timesteps is now 200, not 120" in capsys.readouterr().out
    same(read_checkpoint(twice)["parts"], read_checkpoint(once)["parts"])
    assert read_checkpoint(once)["parts"]["replay"]["priority"].shape == (200,)


# === Flags ========================================================================================
@pytest.mark.parametrize("flag", ["--per-alpha", "--per-beta"])
@pytest.mark.parametrize("value", ["1.5", "2", "1.0001", "-0.1", "nan", "inf"])
def test_wrong_power(flag, value, tmp_path, capsys):
    message = refusal(SCRIPT, *FLAGS, "--runs-dir", tmp_path / "runs", f"{flag}={value}")
    assert flag in message and str(float(value)) in message and "from 0 to 1" in message
    assert not (tmp_path / "runs").exists() and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("alpha, beta", [(0, 1), (1, 0)])
def test_the_ends_of_both_powers_train(alpha, beta, tmp_path):
    flags = ["--total-timesteps=70", f"--per-alpha={alpha}", f"--per-beta={beta}"]
    main(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path)
    last = metrics(run_dir(tmp_path))[-1]
    assert last["global_step"] == "70" and float(last["critic_loss"]) > 0


def test_a_run_that_diverges_ends_with_a_message(tmp_path):
    """Dozens of updates after the first error that is not a number, when it is time to log."""
    flags = ["--env-id=worlds:Endless-v0", "--q-lr=1e12", "--log-frequency=100"]
    message = refusal(SCRIPT, *FLAGS, *flags, "--runs-dir", tmp_path)
    assert "step 100: critic_loss is not finite" in message
