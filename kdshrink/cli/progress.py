"""Shows the progress of a command, or of several runs, on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ..distributed import is_first
from ..progress import RunState
from .console import live, masked, stderr

_PLAIN_SECONDS = 15.0


class ProgressBar:
    """A `kdshrink.progress.Progress`: a live bar on a terminal, else a plain line every few seconds."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()
        self._began: dict[str, float] = {}

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty() and is_first():
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=stderr(),
                transient=True,
            )
            self._bar.start()
            live.append(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            live.remove(self._bar)
            self._bar.stop()

    def __call__(
        self, what: str, done: int, total: int | None, figures: Mapping[str, float]
    ) -> None:
        shown = "".join(f" {name} {value:.4f}" for name, value in figures.items())
        began = self._began.setdefault(what, time.monotonic())
        seconds = time.monotonic() - began
        rate = f"{done / seconds:.1f}/s" if seconds > 1 else ""
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, figures="", rate="")
            fields: dict[str, Any] = {"figures": shown} if figures else {}
            self._bar.update(self._tasks[what], completed=done, total=total, rate=rate, **fields)
            if total is not None and done >= total:
                self._bar.remove_task(self._tasks.pop(what))
                self._began.pop(what)
        elif figures or time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            of = f"/{total}" if total else ""
            stderr().print(f"{what} {done}{of}{shown} {rate}".rstrip())


class RunTable:
    """A `kdshrink.progress.Board`: a live table on a terminal, else a line at each change."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._shown: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> RunTable:
        if sys.stderr.isatty():
            self._live = Live(console=stderr(), transient=True, refresh_per_second=4)
            self._live.start()
            live.append(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            live.remove(self._live)
            self._live.stop()

    def __call__(self, states: Sequence[RunState]) -> None:
        if self._live is not None:
            self._live.update(_board_table(states, self._live.console.height - 4))
            return
        for state in states:
            changed = self._shown.get(state.name) != state.state
            due = time.monotonic() - self._last.get(state.name, 0.0) > 4 * _PLAIN_SECONDS
            if (changed and state.state != "waiting") or (state.state == "running" and due):
                self._shown[state.name] = state.state
                self._last[state.name] = time.monotonic()
                done = sum(one.state == "done" for one in states)
                line = f"[{done}/{len(states)}] {state.name}: {state.state} {_reached(state)}"
                stderr().print(masked(line.rstrip()))


def _reached(state: RunState) -> str:
    of = f"/{state.steps}" if state.steps else ""
    step = "" if state.step is None else f"step {state.step}{of} "
    figures = " ".join(f"{name} {value:.4f}" for name, value in state.figures.items())
    return f"{step}{figures}{' ' if state.note else ''}{state.note}".strip()


_STATE_COLOURS = {"running": "cyan", "elsewhere": "magenta", "done": "green", "failed": "red"}


def _board_table(states: Sequence[RunState], height: int) -> Table:
    """The table of as many runs as fit the height: failed and running ones first, then waiting ones."""
    order = {"failed": 0, "running": 1, "elsewhere": 1, "done": 3, "waiting": 2, "blocked": 4}
    shown = sorted(states, key=lambda state: order[state.state])[: max(3, height - 3)]
    chosen = {state.name for state in shown}
    counts = Counter(state.state for state in states)
    title = ", ".join(f"{count} {state}" for state, count in counts.items())
    table = Table("run", "state", "reached", title=title, title_justify="left")
    for state in states:
        if state.name in chosen:
            colour = _STATE_COLOURS.get(state.state, "")
            table.add_row(state.name, Text(state.state, colour), masked(_reached(state)))
    return table
