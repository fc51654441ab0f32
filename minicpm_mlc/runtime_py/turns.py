"""Who may compute on an engine: one call at a time. A call holds its turn until it is done; a
stream rests between its pieces, and then any call of any thread may take its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minicpm_mlc.base.errors import EngineError

BUSY = (
    "the engine is busy in another thread; wait for that call to end, close its stream, or open a "
    "second Engine"
)
ENDED = (
    "this stream ended when another call to the same engine began; read it to its end first, or "
    "open a second Engine"
)


class Turns:
    """Hands out turns."""

    def __init__(self) -> None:
        self._inside = threading.Lock()  # held while a call computes; nobody waits for it
        self._owner: Turn | None = None
        self._called_back: int | None = None  # the thread in which a call runs its user's function

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Takes the turn. Raises EngineError while a call runs, except from a function that this
        call has called: that ends it.
        """
        nested = self._called_back == threading.get_ident()
        if not nested and not self._inside.acquire(blocking=False):
            raise EngineError(BUSY)
        turn = self._owner = Turn(self, holds=not nested)
        try:
            yield turn
        finally:
            if self._owner is turn:
                self._owner = None
            turn._leave()


class Turn:
    """The turn of one call."""

    def __init__(self, turns: Turns, holds: bool) -> None:
        self._turns = turns
        self._holds = holds

    def check(self) -> None:
        """Raises EngineError if another call has taken the turn."""
        if self._turns._owner is not self:
            raise EngineError(ENDED)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Other calls may take the turn. Raises EngineError in the end if one did."""
        if not self._holds:
            yield
            return
        self._leave()
        try:
            yield
        finally:  # a stream that is closed goes on to its end without a word
            self._holds = self._turns._inside.acquire(blocking=False)
        if not self._holds:
            raise EngineError(ENDED)
        self.check()

    @contextmanager
    def calling_back(self) -> Iterator[None]:
        """The user's function runs: its calls of the engine may take the turn, no other thread's.
        Raises EngineError in the end if one did.
        """
        self._turns._called_back = threading.get_ident()
        try:
            yield
        finally:
            self._turns._called_back = None
        self.check()

    def _leave(self) -> None:
        if self._holds:
            self._holds = False
            self._turns._inside.release()
