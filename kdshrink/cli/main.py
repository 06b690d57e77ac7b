"""The entry point: runs the command line and turns errors into messages and exit codes."""

from __future__ import annotations

import logging
import os
import platform
import sys

from .. import __version__
from ..errors import KdshrinkError, Terminated
from ..signals import cause_of, raise_on_sigterm
from . import console
from .app import app
from .faults import known_fault
from .streams import flush_stdout, steady_streams


def _quiet_libraries() -> None:
    """Silence the libraries' progress bars, notes and warnings, unless the environment says otherwise."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
        ("DATASETS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
        ("TF_CPP_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.getLogger("kdshrink").setLevel(logging.INFO)


def main() -> None:
    """Run the command line; a known error ends with its exit code and without a traceback."""
    with steady_streams():
        try:
            if "_KDSHRINK_COMPLETE" not in os.environ:
                _prepare()
            app()
            code = 0
        except BaseException as error:
            code = _report_error(cause_of(error))
        try:
            flush_stdout()
        except BrokenPipeError:
            code = code or 1
        except OSError as error:
            if not code:
                console.print_error(f"stdout cannot be written: {error.strerror}.")
            code = code or 1
    sys.exit(code)


def _prepare() -> None:
    _quiet_libraries()
    console.show_log()
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        console.hide(os.environ.get(variable))
    raise_on_sigterm()


def _report_error(error: BaseException) -> int:
    """Print the error that ended a command, and return its exit code."""
    if isinstance(error, SystemExit):
        if isinstance(error, Terminated):
            console.print_error("Stopped by SIGTERM; no result was written.")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        console.print_error("Stopped by Ctrl-C; no result was written.")
        return 130
    if isinstance(error, KdshrinkError):
        console.print_error(str(error))
        return error.exit_code
    if message := known_fault(error):
        console.print_error(message)
        return 1
    console.print_traceback(error)
    console.print_error(
        f"This is a bug in kdshrink {__version__} (Python {platform.python_version()}).\n"
        "Please report it, with the command and the lines above."
    )
    return 1
