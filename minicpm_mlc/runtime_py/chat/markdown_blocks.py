"""Streamed Markdown, a paragraph, list or code block at a time."""

from __future__ import annotations

FENCE = "```"


class MarkdownBlocks:
    """Feed pieces of text, get blocks once they are whole: at an empty line outside of code."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._in_code = False

    def feed(self, text: str) -> list[str]:
        """The blocks that this text completes."""
        *whole, self._line = (self._line + text).split("\n")
        return [block for line in whole if (block := self._add(line))]

    def finish(self) -> str:
        """What is left, perhaps nothing."""
        rest = "\n".join([*self._lines, self._line]).strip("\n")
        self._lines, self._line, self._in_code = [], "", False
        return rest

    def _add(self, line: str) -> str:
        if line.lstrip().startswith(FENCE):
            self._in_code = not self._in_code
        if line.strip() or self._in_code:
            self._lines.append(line)
            return ""
        block, self._lines = "\n".join(self._lines), []
        return block
