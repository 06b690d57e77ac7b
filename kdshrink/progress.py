"""How long work tells how far it is, without printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Called with what is being done, how much of it is done, the total if known, and figures to show."""


def silent(what: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
    """A `Progress` that tells nothing."""


@dataclass(frozen=True)
class RunState:
    """How far one run of a plan is.

    Attributes:
        state: `elsewhere` is a run that another process does; `blocked` one whose input failed.
        step, steps, figures: Where a training run is, and what it logged last.
        note: Its score, or why it failed.
    """

    name: str
    state: Literal["waiting", "running", "elsewhere", "done", "failed", "blocked"]
    step: int | None = None
    steps: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


Board = Callable[[Sequence[RunState]], None]
"""Called with the states of all runs of a plan, again and again."""


def unseen(states: Sequence[RunState]) -> None:
    """A `Board` that shows nothing."""
