"""Stop strings of a chat: they end the answer, and are only text while the model thinks."""

from __future__ import annotations

from minicpm_mlc.prompt.thinking import CLOSE, OPEN
from minicpm_mlc.runtime_py.chat.text import StopStrings, overlap


class AnswerStops:
    """StopStrings for text that may begin with a think block. They look at what follows the block
    and the white space after it; nothing of the text is lost.
    """

    def __init__(self, stops: StopStrings, opened: bool) -> None:
        """`opened`: the prompt ended inside a block."""
        self._stops = stops
        self._held = ""
        self._state = "thinking" if opened else "start"

    @property
    def stop(self) -> str | None:
        """The stop string that came."""
        return self._stops.stop

    @property
    def withheld(self) -> int:
        """Characters at the end that are held back, or were cut off."""
        return len(self._held) + self._stops.withheld

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.stopped

    def mark(self, token_id: int) -> str:
        """As StopStrings.mark, behind the think block."""
        return "" if self._state == "thinking" else self._stops.mark(token_id)

    def feed(self, piece: str) -> str:
        """The text that can be shown."""
        self._held += piece
        shown = self._start() if self._state == "start" else ""
        if self._state == "thinking":
            shown += self._think()
        if self._state == "gap":
            shown += self._skip_space()
        if self._state == "answer":
            shown += self._stops.feed(self._take(len(self._held)))
        return shown

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        if self._state == "start":
            return self._stops.feed(self._take(len(self._held))) + self._stops.finish()
        return self._take(len(self._held)) + self._stops.finish()

    def _start(self) -> str:
        body = self._held.lstrip()
        if body.startswith(OPEN):
            self._state = "thinking"
            return self._take(len(self._held) - len(body) + len(OPEN))
        if not OPEN.startswith(body):
            self._state = "answer"
        return ""

    def _think(self) -> str:
        before, close, _ = self._held.partition(CLOSE)
        if close:
            self._state = "gap"
            return self._take(len(before) + len(CLOSE))
        return self._take(len(before) - overlap(before, CLOSE))

    def _skip_space(self) -> str:
        space = self._take(len(self._held) - len(self._held.lstrip()))
        if self._held:
            self._state = "answer"
        return space

    def _take(self, length: int) -> str:
        """That much from the beginning of what is held."""
        taken, self._held = self._held[:length], self._held[length:]
        return taken
