"""Fixtures that several test files share. tests/README.md says where a test belongs."""

import importlib
import itertools
import re
import signal

import gymnasium as gym
import pytest
import torch
from helpers import QUICK, SCRIPTS, TINY, main, one_line

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # begun with a shell's `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # there is a process for each core: more threads would wait for each other


@pytest.hookimpl(tryfirst=True)  # before pytest looks who is slow
def pytest_collection_modifyitems(items):
    """@slow_but("sac_continuous"): a test is slow unless one of these words is in its name."""
    for item in items:
        for mark in item.iter_markers("slow_but"):
            if not any(word in item.name for word in mark.args):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def a_test_of_its_own():
    """No test depends on what another one left behind.

    Not on its random numbers; not on a script's signal handler, with which Ctrl-C would end one
    test and not the tests; and not on an environment that it registered under a name that was
    there: her_utils.py run a second time registers a PointReach of its own.
    """
    handler = signal.getsignal(signal.SIGINT)
    registered = dict(gym.registry)
    torch.manual_seed(0)
    yield
    gym.registry.update(registered)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(params=SCRIPTS)
def script(request):
    """A script's name: each of them, unless a test names its own with helpers.scripts."""
    return request.param


@pytest.fixture
def module(script):
    return importlib.import_module(script)


@pytest.fixture
def tiny_run(script, module, tmp_path):
    """Train here and now, tiny unless told otherwise, in a fresh --runs-dir."""
    numbers = itertools.count()

    def tiny_run(env_id="worlds:Endless-v0", **settings):
        settings = {"env_id": env_id, "runs_dir": str(tmp_path / f"runs{next(numbers)}")} | settings
        return module.train(module.Args(**TINY[script] | settings))

    return tiny_run


@pytest.fixture
def failed_run(tiny_run, module):
    """The message of a run that ends in a RunError, as a caller in Python has it."""

    def failed_run(env_id="worlds:Endless-v0", **settings):
        with pytest.raises(module.RunError) as error:
            tiny_run(env_id, **settings)
        return one_line(str(error.value))

    return failed_run


@pytest.fixture
def refused_run(failed_run, tmp_path):
    """The same of a run that is refused before it makes a folder."""

    def refused_run(env_id="worlds:Endless-v0", **settings):
        message = failed_run(env_id, runs_dir=str(tmp_path / "refused"), **settings)
        assert not (tmp_path / "refused").exists()
        return message

    return refused_run


@pytest.fixture
def refused_command(script, tmp_path, capsys):
    """Run the script as a program, in this process, with flags that it must refuse.

    Returns the message, after seeing that it is all there is and that no folder was made.
    """

    def refused_command(*flags):
        with pytest.raises(SystemExit) as stop:
            main(script, *QUICK[script], "--runs-dir", tmp_path / "runs", *flags)
        assert not (tmp_path / "runs").exists()
        printed = capsys.readouterr()
        assert printed.out == ""
        if stop.value.code == 2:  # tyro's, in a box
            return re.sub(r"[\s│╭╮╰╯─]+", " ", printed.err)
        assert printed.err == "", "Python prints the message itself, and exits with status 1"
        assert stop.value.code.startswith("error: ")
        return one_line(stop.value.code)

    return refused_command


@pytest.fixture
def replays(module, monkeypatch):
    """Every replay buffer that the runs of this test make."""
    if not hasattr(module, "ReplayBuffer"):
        return []
    made, original = [], module.ReplayBuffer.__init__

    def remember(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(module.ReplayBuffer, "__init__", remember)
    return made
