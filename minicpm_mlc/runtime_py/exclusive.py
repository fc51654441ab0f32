"""One call at a time: a later call ends a stream that was left lying, never one that another thread
reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minicpm_mlc.base.errors import EngineError


class Exclusive:
    """Hands out turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: tuple[int, object] | None = None  # (thread, turn)

    @contextmanager
    def turn(self) -> Iterator[Callable[[], None]]:
        """Yields a check to call after any pause: it raises EngineError if another call took over
        meanwhile.

        A call from the same thread takes over, for whoever makes it isn't reading the older stream
        any more. One from another thread is refused with EngineError.
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
