"""Standard streams that survive closed pipes, closed descriptors and characters that they cannot encode."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Notes:
    """A stream for notes: write errors, such as of a closed pipe, are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device: else its buffer would fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _occupy_closed() -> None:
    """Open the standard descriptors that are closed, so that no file opened later becomes stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Make the standard streams always writable.

    Output to a closed stream is dropped, and a character that a stream cannot encode is escaped.
    """
    before = sys.stdout, sys.stderr
    _occupy_closed()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Garbage collection must not close it: a library may write to the descriptor later.
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Notes(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush_stdout() -> None:
    """Flush stdout.

    Raises:
        OSError: It cannot be written; the rest is dropped.
    """
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        raise
