"""A model's answer, cut into its thinking and the answer proper while it streams."""

from __future__ import annotations

OPEN = "<think>"
CLOSE = "</think>"

Event = tuple[str, str]  # (kind, text), kind is "thinking" or "answer"


def opens_thinking(prompt: str) -> bool:
    """True when the chat template itself opened the block, so that the model's first word is
    already a thought.
    """
    return prompt.rstrip().endswith(OPEN)


def without_thinking(text: str, opened: bool = False) -> str:
    """The answer of a whole assistant message: a leading think block, closed or not, is left out.

    `opened`: the template had opened the block, so that the message begins with thinking and has
    only the closing marker. Any other marker is text about thinking, and stays.
    """
    body = text.lstrip()
    if body.startswith(OPEN):
        return body.partition(CLOSE)[2].lstrip()
    head, close, answer = text.partition(CLOSE)
    return answer.lstrip() if opened and close and OPEN not in head else text


def as_history(answer: str) -> str:
    """An answer as the content of a past message: behind an empty think block where its own markers
    would be read as thinking.
    """
    return f"{OPEN}\n\n{CLOSE}\n\n{answer}" if OPEN in answer or CLOSE in answer else answer


class ThinkSplitter:
    """Feed pieces of text in any sizes, get (kind, text) events.

    Only a block at the very start is thinking; a later `<think>` is text about thinking and stays
    in the answer. The markers, and the white space beside them, belong to neither kind.

    Args:
        opened: the prompt ended inside a block (`opens_thinking`).
    """

    def __init__(self, opened: bool = False):
        self._held = ""  # text that may still turn out to be white space or a marker to drop
        self._fresh = True  # nothing of the current kind has been emitted
        self._closed = False  # a block has ended: white space before the answer is dropped
        self._state = "thinking" if opened else "start"

    @property
    def thinking(self) -> bool:
        """True while inside an open block."""
        return self._state == "thinking"

    @property
    def unsure(self) -> bool:
        """True while what came may still become a block's opening marker."""
        return self._state == "start"

    def feed(self, text: str) -> list[Event]:
        """Events that `text` completes; what could be the beginning of a marker is held back."""
        self._held += text
        events: list[Event] = []
        if self._state == "start":
            self._start()
        if self._state == "thinking":
            self._think(events)
        if self._state == "answer":
            self._answer(events)
        return events

    def finish(self) -> list[Event]:
        """The held-back rest, when no more text comes. Trailing white space of an unclosed block is
        dropped.
        """
        held = self._held
        self._held = ""
        if self._state == "thinking":
            held = (held.lstrip() if self._fresh else held).rstrip()
            return [("thinking", held)] if held else []
        if self._closed and self._fresh:
            held = held.lstrip()
        return [("answer", held)] if held else []

    def _start(self) -> None:
        body = self._held.lstrip()
        if body.startswith(OPEN):
            self._held = body[len(OPEN) :]
            self._state = "thinking"
        elif not OPEN.startswith(body):
            self._state = "answer"

    def _think(self, events: list[Event]) -> None:
        if self._fresh:
            self._held = self._held.lstrip()
        before, close, after = self._held.partition(CLOSE)
        keep = before.rstrip() if close else self._held[: _safe_length(self._held)]
        if keep:
            events.append(("thinking", keep))
            self._fresh = False
        if close:
            self._held = after
            self._state = "answer"
            self._fresh = True
            self._closed = True
        else:
            self._held = self._held[len(keep) :]

    def _answer(self, events: list[Event]) -> None:
        if self._closed and self._fresh:
            self._held = self._held.lstrip()
        if self._held:
            events.append(("answer", self._held))
            self._held = ""
            self._fresh = False


def _safe_length(text: str) -> int:
    """Length of the part that is certainly thought: not a beginning of CLOSE, nor white space that
    may precede it.
    """
    for n in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:n]):
            return len(text[:-n].rstrip())
    return len(text.rstrip())
