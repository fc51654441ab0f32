"""Which messages of a conversation are kept when it is longer than the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from itertools import chain

from minicpm_mlc.base.choices import OVERFLOW
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.prompt.template import Message

Count = Callable[[Sequence[Message]], int]  # tokens of a prompt


def kept_messages(
    messages: Sequence[Message],
    count: Count,
    context: int,
    pinned: Collection[int] = (),
    max_tokens: int | None = None,
) -> list[int]:
    """The places of the messages that are kept: all, unless no room for an answer is left; then the
    oldest turns go until a quarter of the context is free, as each cut has the rest computed anew.

    A turn is a user's message and what follows it. System messages, turns with a message of
    `pinned`, and the last turn stay; what they need may still be too much.
    """
    room = context // 4
    everything = list(range(len(messages)))
    if count(messages) + min(room, max_tokens or room) <= context:
        return everything
    turns = _turns(messages)
    droppable = [turn for turn in turns[:-1] if not set(turn) & set(pinned)]

    def after(dropped: int) -> list[int]:
        gone = set(chain.from_iterable(droppable[:dropped]))
        return [i for i in everything if i not in gone]

    def fits(dropped: int) -> bool:
        return count([messages[i] for i in after(dropped)]) + room <= context

    return after(bisect_left(range(len(droppable)), True, key=fits))


def check_overflow(overflow: str) -> None:
    """Raises EngineError for a word that says nothing."""
    if overflow not in OVERFLOW:
        raise EngineError(f"overflow is {overflow!r}; choose {', '.join(OVERFLOW)}")


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """The places of each turn's messages; system messages belong to none."""
    turns: list[list[int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "user" or (not turns and message["role"] != "system"):
            turns.append([])
        if message["role"] != "system":
            turns[-1].append(i)
    return turns
