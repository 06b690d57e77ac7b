"""The errors that kdshrink raises on purpose.

    KdshrinkError
    ├── UsageError      options that contradict each other or cannot be read (exit code 2)
    ├── ModelError      a model or tokenizer that is missing, damaged or not supported
    ├── HubError        a Hub that cannot be reached, or refuses
    ├── DataError       a data set, language, split, column or label that is missing or invalid
    │   └── UnlabelledError  data without labels, where they are needed
    ├── ShapeError      a student that cannot be cut from its teacher
    ├── OutputError     a directory that must not or cannot be written
    ├── TrainingError   a run that cannot go on, such as a loss that is not finite
    ├── RefusedError    a result that falls short of what was asked, or whose file was not written
    └── Interrupted     a run that a signal ended (exit code 130 or 143)

A message has one to three lines: what was wrong, what was found, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any


class KdshrinkError(Exception):
    """Base of all errors that kdshrink raises on purpose."""

    exit_code = 1


class UsageError(KdshrinkError):
    """Options contradict each other or cannot be read."""

    exit_code = 2


class ModelError(KdshrinkError):
    """A model or tokenizer is missing, damaged or not supported."""


class HubError(KdshrinkError):
    """The Hub cannot be reached, or refuses."""


class DataError(KdshrinkError):
    """A data set, language, split, column or label is missing or invalid."""


class UnlabelledError(DataError):
    """Labels are needed, and the data has none."""


class ShapeError(KdshrinkError):
    """A student of this shape cannot be cut from its teacher."""


class OutputError(KdshrinkError):
    """A directory must not or cannot be written."""


class TrainingError(KdshrinkError):
    """A training run cannot go on."""


class RefusedError(KdshrinkError):
    """There is a result, and it falls short of what was asked, or its file could not be written.

    Attributes:
        result: The command's result, as it would have been returned; it is printed before the error.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class Interrupted(KdshrinkError):
    """A signal ended the run; `exit_code` is 128 plus its number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(SystemExit):
    """Raised on SIGTERM; not an Exception, so that libraries do not catch it as an error of theirs."""


def listed(values: Iterable[object], most: int = 10) -> str:
    """Values for a message: at most `most` of them, each shortened."""
    remaining = iter(values)
    shown = [short(value, 60) for value in islice(remaining, most)]
    more = sum(1 for _ in remaining)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def short(value: object, most: int = 80) -> str:
    """A value for a message, on one line and shortened to `most` characters."""
    text = " ".join(str(value)[: 10 * most].split())
    return text if len(text) <= most else text[: most - 1] + "…"
