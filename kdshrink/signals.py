"""SIGINT and SIGTERM caught and handed back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Terminated


@contextmanager
def caught_signals(receive: Callable[[int], None]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to `receive`, by their numbers, in place of what they did before.

    A second signal interrupts at once (KeyboardInterrupt). Outside the main thread, where Python lets
    nobody catch signals, they go on doing what they did.
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


def raise_on_sigterm() -> None:
    """Let SIGTERM raise Terminated from here on, as SIGINT raises KeyboardInterrupt."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, handle)
