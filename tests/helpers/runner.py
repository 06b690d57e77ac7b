"""The command line, run in this process as in one of its own: to start Python with torch takes seconds.

What needs a process of its own is tested in one: signals and kills, closed descriptors and pipes, what is
imported, how much memory is held, several processes at once.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import datasets.config
import huggingface_hub.constants
import transformers
import typer.rich_utils
from huggingface_hub import HfFileSystem, close_session

from kdshrink.cli import console
from kdshrink.cli.main import main

# These read the environment as they are imported, in this order.
_READ_ONCE = (huggingface_hub.constants, datasets.config, typer.rich_utils)
_LIBRARIES = ("transformers", "huggingface_hub", "datasets")


def run(
    *typed: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `kdshrink typed…`.

    Args:
        env: The whole environment, as of a process; this process's by default.
        cwd: The working directory.

    Returns:
        The exit code and what was written to stdout and stderr.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    environment = {**os.environ} if env is None else {**env}
    contexts: tuple[AbstractContextManager[object], ...] = (
        mock.patch.dict(os.environ, environment, clear=True),
        _directory(cwd),
        mock.patch.multiple(sys, argv=["kdshrink", *typed], stdout=stdout, stderr=stderr),
        # Typer takes the program's name from sys.argv only where no package was started.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
        mock.patch.object(console, "_secrets", set()),
        _signals(),
        _logs(stderr),
        _settings(environment),
    )
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        assert isinstance(code, int)
    shown = [_content(stream) for stream in (stdout, stderr)]
    return subprocess.CompletedProcess(["kdshrink", *typed], code, *shown)


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


@contextmanager
def _directory(path: Path | None) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path or before)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGINT as a terminal's processes have them: a test run in the background ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logs(stderr: io.TextIOWrapper) -> Iterator[None]:
    """The logs as a new process has them, with the libraries as quiet as the program makes them."""
    names = ("kdshrink", "py.warnings", *_LIBRARIES)
    loggers = {name: logging.getLogger(name) for name in names}
    before = [(log, log.level, log.handlers[:], log.propagate) for log in loggers.values()]
    bars = transformers.logging.is_progress_bar_enabled()
    loggers["kdshrink"].handlers.clear()
    transformers.logging.disable_progress_bar()
    for name in _LIBRARIES:
        loggers[name].handlers[:] = [logging.StreamHandler(stderr)]
        loggers[name].setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        if bars:
            transformers.logging.enable_progress_bar()
        for log, level, handlers, propagate in before:
            log.setLevel(level)
            log.handlers[:] = handlers
            log.propagate = propagate


@contextmanager
def _settings(environment: Mapping[str, str]) -> Iterator[None]:
    """What the libraries read of the environment as they are imported, read of this one."""
    before = [{**vars(module)} for module in _READ_ONCE]
    for module in _READ_ONCE:
        importlib.reload(module)
    if "HF_HOME" not in environment:
        datasets.config.HF_DATASETS_CACHE = before[1]["HF_DATASETS_CACHE"]
    _forget_connections()
    try:
        yield
    finally:
        for module, values in zip(_READ_ONCE, before, strict=True):
            vars(module).clear()
            vars(module).update(values)
        _forget_connections()


def _forget_connections() -> None:
    close_session()
    HfFileSystem.clear_instance_cache()
