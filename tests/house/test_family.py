"""The family rule: what two scripts share is the same to the letter, and the rest is listed."""

import ast
import dataclasses
import difflib
import importlib
import re

import pytest
from helpers import OFF_POLICY, SCRIPTS, source

SAC, V1, TD3, DDPG, PER = OFF_POLICY
PPO, HER = "ppo_continuous", "sac_her_continuous"
ALL = [*SCRIPTS, HER]
REPLAY = {SAC, V1, TD3, DDPG, PER, HER}  # the off-policy ones

# Which scripts share which text of a definition, and why there is more than one.
DIFFERENT = {
    "Actor": (
        [{SAC, V1, HER}, {TD3, DDPG, PER}, {PPO}],
        "squashed Gaussian; deterministic; plain Gaussian",
    ),
    "actor_loss": ([{SAC, V1, HER}, {TD3, DDPG, PER}], "with the entropy; without"),
    "critic_loss": ([REPLAY - {PER}, {PER}], "a mean; a weighted one"),
    "value_loss": ([{V1}, {PPO}], "towards the soft value; towards returns, clipped if asked"),
    "bellman_target": ([{SAC, V1, HER}, {TD3, DDPG, PER}], "a remark on entropy; without"),
    "mlp": ([REPLAY, {PPO}], "PPO's is of tanh, with orthogonal weights"),
    "Agent": (
        [{SAC, HER}, {V1}, {TD3, PER}, {DDPG}, {PPO}],
        "what learns in each algorithm",
    ),
    "update": (
        [{SAC, HER}, {V1}, {TD3}, {DDPG}, {PER}, {PPO}],
        "the algorithm; hindsight changes nothing in it",
    ),
    "FIXED": ([REPLAY, {PPO}], "there is no buffer in PPO, and other switches"),
    "check_args": ([REPLAY, {PPO}], "PPO's batch is not taken from a buffer"),
    "make_env": ([REPLAY - {HER} | {PPO}, {HER}], "HER's flattens goals"),
    "PROGRESS": ([REPLAY, {PPO}], "the unfinished episode is begun anew in PPO"),
    "Run": ([REPLAY, {PPO}], "one environment, put back exactly; several, begun anew"),
}
# Methods of Run that PPO has, too, but otherwise. The rest is the same to the letter.
ITERATIONS = "an iteration of several environments is whole, instead of a step of one"
PPO_METHODS = dict.fromkeys(
    "__init__ on_signal __exit__ start load record mark_whole due after_step save".split(),
    ITERATIONS,
) | {
    "open_folder": "it prints the size of a rollout, instead of that of the replay",
}
# The algorithm itself.
OWN = {"Args", "train"}

# Shared flags with another default, and why.
DEFAULTS = {
    ("total_timesteps", PPO): "on-policy steps are learnt from once, and are cheap",
    ("total_timesteps", DDPG): "a minute, as of SAC, whose updates take longer",
    ("total_timesteps", TD3): "as DDPG; its actor learns at half the rate",
    ("total_timesteps", PER): "as TD3",
    ("env_id", HER): "a task that has goals",
    ("alpha", V1): "it stays, and 0.2 is too much once Pendulum is solved",
    ("hidden_dim", PPO): "the paper's",
    ("max_grad_norm", PPO): "customary there, and off elsewhere",
}
# Shared flags with another text, and why.
TEXTS = {
    ("total_timesteps", PPO): "whole iterations",
    ("total_timesteps", HER): "another example",
    ("seed", PPO): "its environments may be several",
    ("max_grad_norm", PPO): "its optimizer is one",
    ("checkpoint_frequency", PPO): "it has no replay",
    ("env_id", HER): "a task that has goals",
    ("hidden_dim", PPO): "its networks are two",
    ("q_lr", V1): "it serves V too",
    ("alpha", V1): "it is not tuned",
}

# Changed lines of code between siblings at most, and what every changed block has to do with.
SIBLINGS = {
    (DDPG, TD3): (
        60,
        r"double_q|policy_frequency|policy_noise|noise_clip|smooth|q[12]|q_params|number"
        r"|TD3|Critic",
    ),
    (TD3, PER): (
        110,
        r"per_alpha|per_beta|Prioritized|priorit|probability|weight|td_errors|PER",
    ),
    (V1, SAC): (
        110,
        r"temperature|alpha|autotune|entropy|\b[vV]\b|v_|value|Value|reward_scale|policy_reg"
        r"|next_q1|q1_target|Run SAC|a' comes",
    ),
    (SAC, HER): (
        30,
        r"[Gg]oal|end_episode|her_utils|hindsight|success_rate|total_timesteps|FetchReach"
        r"|replay\.ready",
    ),
}


def text(script):
    with open(source(script), encoding="utf-8") as file:
        return file.read()


def without_sources(code):
    """Without the papers in brackets: each script cites its own."""
    return re.sub(r"  ?\[[^\[\]]*(?:\d{4}|CleanRL|slides)[^\[\]]*\]", "", code)


def definitions(script):
    """Text of each function, class and constant at the top level of a script, by name."""
    lines, found = text(script).splitlines(), {}
    for node in ast.parse(text(script)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            name = node.name
        elif isinstance(node, ast.Assign):
            first, name = node.lineno, node.targets[0].id
        elif isinstance(node, ast.AugAssign):
            first, name = node.lineno, node.target.id
        else:
            continue
        part = without_sources("\n".join(lines[first - 1 : node.end_lineno]))
        found[name] = found.get(name, "") + part
    return found


FAMILY = {script: definitions(script) for script in ALL}


@pytest.mark.parametrize("name", sorted(set().union(*FAMILY.values()) - OWN))
def test_same_name_same_text(name):
    groups = {}
    for script in ALL:
        if name in FAMILY[script]:
            groups.setdefault(FAMILY[script][name], set()).add(script)
    having = set().union(*groups.values())
    expected, _ = DIFFERENT.get(name, ([having], ""))
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, expected))


def test_shared_definitions_come_in_the_same_order():
    for script in ALL:
        for other in ALL:
            shared = [name for name in FAMILY[script] if name in FAMILY[other]]
            assert shared == [name for name in FAMILY[other] if name in FAMILY[script]]


def test_bookkeeping_of_the_off_policy_scripts_is_one_text():
    rooms = {text(script).partition("# === 7.")[2] for script in OFF_POLICY}
    assert len(rooms) == 1 and len(rooms.pop()) > 10_000


def methods(script):
    lines = text(script).splitlines()
    (run,) = (n for n in ast.parse(text(script)).body if getattr(n, "name", "") == "Run")
    functions = [node for node in run.body if isinstance(node, ast.FunctionDef)]
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in functions}


def test_bookkeeping_of_ppo_is_as_close_as_it_can_be():
    ours, theirs = methods(PPO), methods(SAC)
    assert {n for n in ours if n in theirs and ours[n] != theirs[n]} == set(PPO_METHODS)
    assert set(ours) <= set(theirs)


def flags(script):
    """Default and text of every flag."""
    args = importlib.import_module(script).Args
    (body,) = (n.body for n in ast.parse(text(script)).body if getattr(n, "name", "") == "Args")
    texts = [without_sources(node.value.value) for node in body[1::2]]
    return {
        field.name: (field.default, field.type, about)
        for field, about in zip(dataclasses.fields(args), texts, strict=True)
    }


@pytest.mark.parametrize("script", ALL[1:])
def test_shared_flags_are_the_same(script):
    """Default, type and meaning; what is listed as another must be another."""
    first = {}
    for earlier in ALL[: ALL.index(script)]:
        first = flags(earlier) | first
    for name, (default, kind, about) in flags(script).items():
        if name in first:
            assert (default != first[name][0]) == ((name, script) in DEFAULTS), name
            assert kind == first[name][1], name
            assert (about != first[name][2]) == ((name, script) in TEXTS), name


def code(script):
    """The lines that count in a diff: neither blank nor comment nor of the docstring."""
    lines = text(script).splitlines()[ast.parse(text(script)).body[0].end_lineno :]
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("pair", SIBLINGS, ids="-".join)
def test_the_diff_of_siblings_is_the_idea(pair, capsys):
    limit, words = SIBLINGS[pair]
    a, b = (code(script) for script in pair)
    changed = 0
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            before, after = "\n".join(a[i:j]), "\n".join(b[k:m])
            if without_sources(before) != without_sources(after):
                assert re.search(words, before + after), f"not the idea:\n{before}\n{after}"
            changed += j - i + m - k
    with capsys.disabled():
        print(f" {changed} of {limit}", end="")
    assert changed <= limit


def test_sources_are_all_that_is_taken_away():
    """What the comparison ignores is a citation and nothing else."""
    assert without_sources('"""y = r [2018, 2019: eq. 2].  (B,)"""') == '"""y = r.  (B,)"""'
    kept = 'x[0] = ["seed", 1]  # [-1, 1]'
    assert without_sources(kept) == kept
