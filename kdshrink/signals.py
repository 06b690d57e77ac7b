"""Handlers of SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted, Terminated


@contextmanager
def caught_signals(receive: Callable[[int], None]) -> Iterator[None]:
    """Call `receive` with the number of a SIGINT or SIGTERM, instead of the former handlers.

    A second signal raises KeyboardInterrupt at once. Outside the main thread, where Python allows no
    signal handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True
        receive(number)

    former = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


_ended_by: list[Terminated] = []


def raise_on_sigterm() -> None:
    """Make SIGTERM raise Terminated, as SIGINT raises KeyboardInterrupt."""

    def handle(number: int, frame: FrameType | None) -> None:
        _ended_by.append(Terminated(128 + number))
        raise _ended_by[-1]

    _ended_by.clear()
    signal.signal(signal.SIGTERM, handle)


def cause_of(error: BaseException) -> BaseException:
    """The Terminated of a SIGTERM that came before an error, else the error itself.

    A library may turn what is raised within it into an error of its own. Interrupted is ours, and says more.
    """
    return _ended_by[-1] if _ended_by and not isinstance(error, Interrupted) else error
