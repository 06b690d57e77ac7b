"""Prints results to stdout, and notes, logs and errors to stderr. Only this folder prints."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import Progress as RichProgress
from rich.text import Text

from ..distributed import is_first, rank


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the program here, before the result is written.
        raise


def stdout() -> Console:
    # Without a terminal a table keeps its natural width: rich would fold it at 80 columns.
    width = None if sys.stdout.isatty() else 200
    return _Console(width=width, highlight=False, markup=False, emoji=False, quiet=not is_first())


def stderr(quiet: bool | None = None) -> Console:
    return Console(
        stderr=True,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        quiet=not is_first() if quiet is None else quiet,
    )


def _labelled(label: str, colour: str, message: str) -> Text:
    return Text.assemble((f"{label}:", colour), " ", message)


_secrets: set[str] = set()


def hide(secret: str | None) -> None:
    """Mask a secret in all output: a server may quote a token in its answer."""
    if secret and len(secret) >= 4:
        _secrets.add(secret)


def masked(text: str) -> str:
    for secret in _secrets:
        text = text.replace(secret, "•••")
    return text


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text: str | Text = masked(self.format(record))
        if record.levelno >= logging.WARNING:
            colour = "yellow" if record.levelno == logging.WARNING else "red"
            text = _labelled(record.levelname.lower(), colour, str(text))
        _active_console().print(text)


def show_log() -> None:
    """Send the library's log to stderr."""
    logger = logging.getLogger("kdshrink")
    if not logger.handlers:
        logger.addHandler(_LogHandler())
        logger.propagate = False


def print_error(message: str) -> None:
    """Print an error, in any process of a distributed run: the others may not have it."""
    label = "error" if is_first() else f"error in process {rank()}"
    stderr(quiet=False).print(_labelled(label, "red", masked(message)))


def print_traceback(error: BaseException) -> None:
    """Print the traceback of a bug, without the values of variables."""
    # The last frames of an endless recursion are enough.
    limit = -12 if isinstance(error, RecursionError) else None
    sys.stderr.write(masked("".join(traceback.format_exception(error, limit=limit))))


def print_line(line: str) -> None:
    stdout().print(line, soft_wrap=True)


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    if not is_first():
        return
    text = masked(json.dumps(result, ensure_ascii=False, allow_nan=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = masked(json.dumps(result, allow_nan=False))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


live: list[RichProgress | Live] = []


def _active_console() -> Console:
    return live[-1].console if live else stderr()
