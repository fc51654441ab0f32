"""From tokens to text while they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.text import quoted, whole_characters
from minicpm_mlc.prompt.tokenizer import Tokenizer

MARKS = range(0xFDD0, 0xFDF0)  # never characters: no text has them


class TextStream:
    """Turns token ids into pieces of text that never split a character.

    Bytes are decoded as they complete a character, so a long run of byte tokens streams too. The
    joined pieces are `Tokenizer.decode` of all ids; only in a run of byte-fallback tokens that is
    not UTF-8 (no trained model writes one) do they keep the valid characters that `decode` gives
    up.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """`after`: the tokens before the stream; a text's first space is dropped if they hold no
        text.
        """
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space and not any(
            tokenizer.token_bytes(i) for i in after
        )

    @property
    def at_border(self) -> bool:
        """Whether the tokens so far end with a whole character."""
        return not self._utf8.getstate()[0]

    def feed(self, token_id: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._first_space(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character cut in half."""
        return self._first_space(self._utf8.decode(b"", final=True))

    def _first_space(self, piece: str) -> str:
        if self._strip and piece:
            self._strip = False
            return piece.removeprefix(" ")
        return piece


def pieces_of(
    tokenizer: Tokenizer, token_ids: Sequence[int], size: int, after: Sequence[int] = ()
) -> Iterator[str]:
    """The text of every `size` tokens; joined they are the whole text, spaces at their borders and
    all. `after`: the tokens before.
    """
    stream = TextStream(tokenizer, after)
    for start in range(0, len(token_ids), size):
        text = "".join(map(stream.feed, token_ids[start : start + size]))
        yield text if start + size < len(token_ids) else text + stream.finish()


class StopStrings:
    """Cuts a stream of text before the stop string that is complete first, wherever the pieces'
    borders lie.

    A stop string may name tokens that give no text: the stream has a mark in their place.
    """

    def __init__(
        self, stop: str | Sequence[str] | None, hidden: Mapping[int, str] | None = None
    ) -> None:
        """`hidden`: id -> name of the tokens that give no text. Raises SamplingError for a stop
        string that is none, or empty.
        """
        stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
            raise SamplingError(
                f"stop is {quoted(stop)}; it must be a text, or a list of texts, none of them empty"
            )
        if broken := [s for s in stops if s != whole_characters(s)]:
            raise SamplingError(
                f"stop is {quoted(broken[0])}, which is not whole text; give it as UTF-8"
            )
        named = [(i, name) for i, name in (hidden or {}).items() if any(name in s for s in stops)]
        self._marks = {i: chr(MARKS[0] + n % len(MARKS)) for n, (i, _) in enumerate(named)}
        self._unmarked = dict.fromkeys(map(ord, self._marks.values()))
        marked = stops
        for i, name in named:
            marked = [s.replace(name, self._marks[i]) for s in marked]
        self._stops = {mark: s for mark, s in zip([*stops, *marked], [*stops, *stops], strict=True)}
        self._held = ""
        self._cut = 0
        self.stop: str | None = None  # the stop string that came

    @property
    def withheld(self) -> int:
        """Characters at the end that are held back, or were cut off."""
        return self._cut or len(self._held)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    def mark(self, token_id: int) -> str:
        """What stands for a token that gives no text; none if no stop string names it."""
        return self._marks.get(token_id, "")

    def feed(self, piece: str) -> str:
        """The text that can be shown; what may be the start of a stop string is held back."""
        text = self._held + piece
        hits = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if hits:
            _, at, found = min(hits)
            self.stop = self._stops[found]
            self._held = ""
            self._cut = len(text) - at
            return text[:at].translate(self._unmarked)
        keep = max((overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep].translate(self._unmarked)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held = self._held.translate(self._unmarked)
        self._held = ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
