"""Streamed text, broken between words."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.cells import cell_len

FENCE = "```"
# a line end; spaces; a wide character, after which a line may end; a word up to the next of these
_PARTS = re.compile(
    r"\n|[ \t]+|[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\uff60]|."
)


class WordWrap:
    """Breaks lines at `width()` columns, where a word begins. The last word is held back until it
    is whole. Lines of a code block stay as they are. Every line begins with `margin`.
    """

    def __init__(self, width: Callable[[], int], margin: str = "") -> None:
        self._width = width
        self._margin = margin
        self._column = 0  # of the line, without the margin
        self._spaces = ""
        self._word = ""
        self._begun = False  # something is on this line
        self._in_code = False
        self._split = False  # the beginning of this word is shown already

    def feed(self, text: str) -> str:
        """What can be shown."""
        return "".join(self._part(part[0]) for part in _PARTS.finditer(text))

    def finish(self) -> str:
        """What was held back; the next text begins a new line."""
        rest = self._flush()
        self._column, self._spaces = 0, ""
        self._begun = self._in_code = self._split = False
        return rest

    def _part(self, part: str) -> str:
        if part == "\n":
            out = self._flush() + (self._margin if not self._begun else "") + "\n"
            self._column, self._spaces, self._begun, self._split = 0, "", False, False
            return out
        if part.isspace():
            out = self._flush()
            self._spaces += part
            self._split = False
            return out
        wide = len(part) == 1 and cell_len(part) > 1
        out = self._flush() if wide else ""
        self._word += part
        if wide:
            return out + self._flush()
        if cell_len(self._word) >= self._room:  # longer than a line: the terminal breaks it
            out += self._flush()
            self._split = True
        return out

    @property
    def _room(self) -> int:
        return max(1, self._width() - len(self._margin))

    def _flush(self) -> str:
        """The spaces and the word, on this line or the next."""
        word, spaces = self._word, self._spaces
        if not word:
            return ""
        self._word = self._spaces = ""
        if not self._begun and word.startswith(FENCE):
            self._in_code = not self._in_code
        wanted = self._column + cell_len(spaces + word)
        breaks = self._begun and not self._in_code and not self._split
        if breaks and wanted > self._room:
            self._column = cell_len(word)
            return f"\n{self._margin}{word}"
        margin = "" if self._begun else self._margin
        self._column, self._begun = wanted, True
        return margin + spaces + word
