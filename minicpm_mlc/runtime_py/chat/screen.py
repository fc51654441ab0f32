"""Writes what a session says to a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markdown import Markdown

from minicpm_mlc.base.text import harmless
from minicpm_mlc.runtime_py.chat.figures import Reading
from minicpm_mlc.runtime_py.chat.markdown_blocks import MarkdownBlocks
from minicpm_mlc.runtime_py.chat.word_wrap import WordWrap

STYLES = {"thinking": "dim", "answer": None, "note": "dim", "error": "red"}
MARGIN = "| "  # before each line of thinking: a copied transcript shows what was no answer


class Screen:
    """Thinking dimmed behind a margin, or hidden behind a spinner; words wrapped, or Markdown
    rendered block by block.
    """

    def __init__(
        self, console: Console, hide_thinking: bool = False, markdown: bool = False
    ) -> None:
        self.console = console
        self.hide_thinking = hide_thinking
        spinner = "line" if console.options.ascii_only else "dots"
        self._spinner = console.status("", spinner=spinner)
        self._last = ""
        self._reading = Reading(0.0)
        self._wraps = {"thinking": self._wrap(MARGIN), "answer": self._wrap("")}
        self._blocks = MarkdownBlocks() if markdown else None

    def __call__(self, text: str, kind: str) -> None:
        if kind == "thinking" and self.hide_thinking:
            return self._spin("thinking...")
        if kind == "answer" and self._blocks:
            return self._markdown(text, self._blocks)
        self._spinner.stop()
        if kind in ("note", "error"):
            wrap = self._wrap("")
            self._out(wrap.feed(text + "\n") + wrap.finish(), kind)
            self._last = ""
        elif kind == "end":
            self._end()
        else:
            self._stream(text, kind)

    def on_prefill(self, done: int, total: int) -> None:
        """Shows that a prompt is being read, and how far."""
        now = time.monotonic()
        if not total:
            self._reading = Reading(now)
        self._spin(self._reading.text(done, total, now))

    def pause(self) -> None:
        """Leaves the terminal as it should be while the program is stopped."""
        self._spinner.stop()

    def _wrap(self, margin: str) -> WordWrap:
        return WordWrap(lambda: self.console.width, margin)

    def _stream(self, text: str, kind: str) -> None:
        if self._last and self._last != kind:
            self._out(self._wraps[self._last].finish() + "\n\n", self._last)
        self._last = kind
        self._out(self._wraps[kind].feed(text), kind)

    def _end(self) -> None:
        if self._blocks:
            self._render(self._blocks.finish())
        if self._last:
            self._out(self._wraps[self._last].finish() + "\n", self._last)
        self._last = ""

    def _markdown(self, text: str, blocks: MarkdownBlocks) -> None:
        if self._last == "thinking":
            self._spinner.stop()
            self._out(self._wraps["thinking"].finish() + "\n\n", "thinking")
            self._last = ""
        for block in blocks.feed(text):
            self._render(block)
        self._spin("writing...")

    def _render(self, block: str) -> None:
        if block.strip():
            self._spinner.stop()
            self.console.print(Markdown(harmless(block)))
            self.console.print()

    def _spin(self, text: str) -> None:
        self._spinner.update(text)
        self._spinner.start()

    def _out(self, text: str, kind: str) -> None:
        if text:
            self.console.out(harmless(text), style=STYLES[kind], end="", highlight=False)
