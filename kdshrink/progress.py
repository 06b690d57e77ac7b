"""How long work tells how far it is, without printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Called with what is being done, how much of it is done, the total if known, and figures to show."""


def silent(what: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
    """A `Progress` that tells nothing."""
