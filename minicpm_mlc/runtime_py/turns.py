"""One call at a time: a call ends an older stream of its own thread, never one that another thread
reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minicpm_mlc.base.errors import EngineError

Check = Callable[[], None]  # raises EngineError once another call has taken the turn


class Turns:
    """Hands out turns, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: tuple[int, object] | None = None  # (thread, turn)

    @contextmanager
    def turn(self) -> Iterator[Check]:
        """Takes the turn; yields a check to call after any pause.

        A call from the thread that has the turn takes it over, because that thread has stopped
        reading the older stream. A call from another thread raises EngineError.
        """
        turn = object()
        with self._lock:
            if self._owner and self._owner[0] != threading.get_ident():
                raise EngineError(
                    "the engine is busy in another thread; wait for that call to end, close its "
                    "stream, "
                    "or open a second Engine"
                )
            self._owner = (threading.get_ident(), turn)

        def check() -> None:
            if self._owner is None or self._owner[1] is not turn:
                raise EngineError(
                    "this stream ended when another call to the same engine began; "
                    "read it to its end first, or open a second Engine"
                )

        try:
            yield check
        finally:
            with self._lock:
                if self._owner and self._owner[1] is turn:
                    self._owner = None
