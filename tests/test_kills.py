"""A few of the kills of benchmarks/kills.py; by hand it does many."""

from __future__ import annotations

import pytest

from .benchmarks.kills import COMMANDS, run


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_killed_command_leaves_is_whole_or_absent(command: str) -> None:
    tally = run(2, [command], seed=1)[command]
    assert tally.faults == []
    assert sum(tally.left.values()) == 2
