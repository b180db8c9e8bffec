"""CPU threads: as many as asked for, and afterwards as before."""

import pytest
import torch
from helpers import (
    after_each_step,
    each_kind,
)


def test_threads_are_as_before_afterwards(module):
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), module.processor_settings(before + 2):
        assert torch.get_num_threads() == before + 2
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@each_kind
def test_num_threads(tiny_run, module, monkeypatch):
    """As many as was asked for, and afterwards as before."""
    before, seen = torch.get_num_threads(), []
    after_each_step(module, monkeypatch, lambda run: seen.append(torch.get_num_threads()))
    for threads in (1, 3):
        tiny_run(num_threads=threads, total_timesteps=10)
        assert seen.pop() == threads
        assert torch.get_num_threads() == before
