"""Callbacks by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Called with the name of the work, how much of it is done, the total if known, and figures to show."""


def silent(what: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class RunState:
    """The state of one run of a plan.

    Attributes:
        state: `elsewhere` if another process does the run; `blocked` if a run that it needs failed.
        step, steps, figures: The current step of a training run, their total, and the last logged figures.
        note: Its score, or the reason why it failed.
    """

    name: str
    state: Literal["waiting", "running", "elsewhere", "done", "failed", "blocked"]
    step: int | None = None
    steps: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def duration(seconds: float) -> str:
    """A time for people: two figures of it, in the largest unit of which there is one."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"


Board = Callable[[Sequence[RunState]], None]
"""Called repeatedly with the states of all runs of a plan."""


def unseen(states: Sequence[RunState]) -> None:
    """A `Board` that shows nothing."""
