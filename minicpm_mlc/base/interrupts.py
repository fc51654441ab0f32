"""Ctrl-C in long work: nothing half-done stays, and it is told as Ctrl-C however it surfaces."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C within the block takes effect at its end: for steps that belong together."""
    if not _receives_signals():
        yield
        return
    waiting: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda _, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting and callable(before):
            before(signal.SIGINT, waiting[0])


@contextmanager
def interrupts_told() -> Iterator[None]:
    """Ctrl-C within the block leaves it as KeyboardInterrupt, even where it lands in a callback of
    a library that swallows exceptions or makes others of them.
    """
    if not _receives_signals() or signal.getsignal(signal.SIGINT) is not _PYTHONS:
        yield
        return
    seen = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException:
        if seen:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, _PYTHONS)
    if seen:
        raise KeyboardInterrupt


_PYTHONS = signal.default_int_handler


def _receives_signals() -> bool:
    """Python handles signals in the main thread alone."""
    return threading.current_thread() is threading.main_thread()
