"""Reads train_log.jsonl, the curves of a training run."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..output import CHECKPOINTS, LOG

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    step: int
    value: float


@dataclass(frozen=True)
class _Log:
    """The readable part of a log.

    Attributes:
        path: The log file.
        entries: The lines, each with its step and the figures that are finite numbers.
        damaged: The number of lines of which something could not be read.
    """

    path: Path
    entries: Sequence[Mapping[str, Any]]
    damaged: int


def _read_log(directory: Path) -> _Log | None:
    """The log of a finished or running run; None without one.

    Raises:
        DataError: It cannot be read.
    """
    for path in (directory / LOG, directory / CHECKPOINTS / LOG):
        try:
            *lines, last = path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{path}: it cannot be read: {error.strerror}.") from error
        # A running run may have written part of a line, which is not damage.
        lines += [last] if last.endswith(b"}") else []
        read = [_read_line(line) for line in lines if line.strip()]
        entries = [entry for entry, _ in read if entry is not None]
        return _Log(path, entries, sum(damaged for _, damaged in read))
    return None


def _read_line(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """A line's step and figures, or None without a step; and whether any part of it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None, True
    step = entry.get("step") if isinstance(entry, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
        return None, True
    figures = {
        name: value
        for name, value in entry.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    }
    # The metric's name is not a figure, and a figure may be null.
    others = {name for name, value in entry.items() if value is None} | {"metric"}
    return figures, bool(entry.keys() - figures.keys() - others)


def last_entry(directory: Path) -> dict[str, Any]:
    """The latest value of each logged figure of a run; empty without a readable log."""
    try:
        log = _read_log(directory)
    except DataError:
        return {}
    merged: dict[str, Any] = {}
    for entry in () if log is None else log.entries:
        merged |= entry
    return merged


def read_curve(directory: Path, term: str = "loss") -> list[Point]:
    """A logged figure by step, of a finished or running run.

    Damaged lines are left out, with a warning.

    Raises:
        DataError: There is no log, it cannot be read, or it has no such figure.
    """
    log = _read_log(directory)
    if log is None:
        raise DataError(
            f"{directory}: there is no {LOG} here.\nGive a directory that finetune or distill wrote."
        )
    curve = [Point(entry["step"], entry[term]) for entry in log.entries if term in entry]
    if not curve:
        known = sorted({name for entry in log.entries for name in entry} - {"step"})
        found = f"It has: {', '.join(known[:10])}" if known else "It has no readable line"
        damaged = f"; damaged lines: {log.damaged}" if log.damaged else ""
        raise DataError(f"{log.path}: it has no {term!r}.\n{found}{damaged}.")
    if log.damaged:
        logger.warning(
            "%s: damaged lines, left out in whole or in part: %d",
            log.path,
            log.damaged,
        )
    return curve
