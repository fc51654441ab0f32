"""Who computes on an engine: a step of its scheduler, or a call on its own sequence. Never two at
once: the first of those who want a step computes it, for all of them, and the others wait.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.base.interrupts import interrupts_wait

BUSY = (
    "the engine is busy with another call on its own sequence (logits, prefill, decode, truncate, "
    "steps); wait for that call to end, or open a second Engine"
)
ENDED = (
    "this stream ended when another call took the engine's own sequence (logits, prefill, decode, "
    "truncate, steps); read it to its end first, or open a second Engine"
)


class Turns:
    """Hands out turns. `changed` is told whenever one ends."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._inside: tuple[int, int] | None = None  # the process and thread that compute
        self._call = False  # they are in a call on the engine's own sequence
        self._callers = 0  # who wait for such a call: steps let them go first
        _of_this_process.add(self)

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call on the engine's own sequence; waits for the step that is being computed. Raises
        EngineError while another such call runs.
        """
        with self.changed:
            self._callers += 1
            try:
                while self._busy:
                    if self._call or self._inside == _here():
                        raise EngineError(BUSY)
                    self.changed.wait()
            finally:
                self._callers -= 1
            self._enter(call=True)
        try:
            yield
        finally:
            self._leave()

    def until(self, done: Callable[[], bool], step: Callable[[], None]) -> None:
        """Returns when `done`; until then computes steps, or waits while another thread does.
        Raises EngineError where this thread is in a call on the engine's own sequence.
        """
        while True:
            with self.changed:
                while (self._busy or self._callers) and not done():
                    if self._inside == _here():
                        raise EngineError(BUSY)
                    self.changed.wait()
                if done():
                    return
                self._enter(call=False)
            try:
                with interrupts_wait():  # a step is whole, or was not begun
                    step()
            finally:
                self._leave()

    def now(self, action: Callable[[], None]) -> None:
        """Does it, unless somebody computes."""
        with self.changed:
            if self._busy:
                return
            self._enter(call=False)
        try:
            action()
        finally:
            self._leave()

    def begin_anew(self) -> None:
        """Nobody waits, and no lock is taken."""
        self.changed, self._callers = threading.Condition(), 0

    @property
    def _busy(self) -> bool:
        """Whether a thread of this process computes; a forked one has only the thread that
        forked.
        """
        return self._inside is not None and self._inside[0] == os.getpid()

    def _enter(self, call: bool) -> None:
        self._inside = _here()
        self._call = call

    def _leave(self) -> None:
        with self.changed:
            self._inside = None
            self.changed.notify_all()


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


_of_this_process: weakref.WeakSet[Turns] = weakref.WeakSet()


def _begin_anew() -> None:
    """In a forked child, where its parent's threads, which may have held a lock, are not."""
    for turns in _of_this_process:
        turns.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
