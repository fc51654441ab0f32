"""The terminal: the line editor reads, rich writes, ChatSession does the talking. Also one question
from a pipe.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minicpm_mlc.base.streams import is_terminal, json_text, read_piped, say
from minicpm_mlc.base.text import harmless, whole_characters
from minicpm_mlc.runtime_py.chat.block_lines import block_lines
from minicpm_mlc.runtime_py.chat.session import (
    ChatSession,
    SessionError,
    check_options,
    stats_line,
)

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine

STYLES = {"thinking": "dim", "answer": None, "note": "dim", "error": "red"}


class Screen:
    """Writes a session's pieces to a terminal: thinking dimmed, or hidden behind a spinner."""

    def __init__(self, console: Console, hide_thinking: bool = False):
        self.console = console
        self.hide_thinking = hide_thinking
        spinner = "line" if console.options.ascii_only else "dots"
        self._spinner = console.status("", spinner=spinner)
        self._last = ""

    def __call__(self, text: str, kind: str) -> None:
        if kind == "thinking" and self.hide_thinking:
            return self._spin("thinking...")
        self._spinner.stop()
        if kind in ("note", "error"):
            self._out(text + "\n", kind)
        elif kind == "end":
            self._out("\n" if self._last else "", "answer")
            kind = ""
        else:
            self._out(("\n\n" if (self._last, kind) == ("thinking", "answer") else "") + text, kind)
        self._last = kind if kind in ("thinking", "answer") else ""

    def on_prefill(self, done: int, total: int) -> None:
        """Shows how far a prompt of more than one chunk has been read."""
        if done < total:
            self._spin(f"reading {done} of {total} tokens")

    def _spin(self, text: str) -> None:
        self._spinner.update(text)
        self._spinner.start()

    def _out(self, text: str, kind: str) -> None:
        self.console.out(harmless(text), style=STYLES[kind], end="", highlight=False)


def talk(
    engine: Engine,
    *,
    options: dict[str, Any],
    system: str | None = None,
    hide_thinking: bool = False,
    show_blocks: bool = False,
    debug: bool = False,
) -> None:
    """Interactive chat until /quit or Ctrl-D. Standard input and output must be a terminal.

    `debug`: a bug shows its traceback, and the chat goes on all the same.
    """
    from minicpm_mlc.runtime_py.chat.line_editor import prompt_session

    screen = Screen(Console(), hide_thinking)
    session = ChatSession(engine, screen, options, system, screen.on_prefill, show_blocks, debug)
    prompt = prompt_session()
    screen("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves", "note")
    more = True
    while more:
        try:
            more = session.handle(prompt.prompt("> "))
        except KeyboardInterrupt:  # at the prompt: drop what was typed
            continue
        except EOFError:
            more = False


def answer_once(
    engine: Engine,
    question: str,
    *,
    options: dict[str, Any],
    system: str | None = None,
    hide_thinking: bool = False,
    as_json: bool = False,
    with_stats: bool = False,
    show_blocks: bool = False,
) -> None:
    """One answer on standard output, as it streams; thinking goes to standard error, so a pipe gets
    the answer alone.

    Args:
        as_json: print one object {"answer", "thinking", "stats"} at the end instead.
        with_stats: one line of numbers on standard error.
        show_blocks: the blocks that the answer read most, on standard error.

    Raises:
        SessionError: the question is empty.
    """
    if not question.strip():
        raise SessionError("the prompt is empty; give --prompt TEXT or pipe text in")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    said = {"thinking": "", "answer": ""}
    hidden = ("thinking", "answer") if as_json else ("thinking",) if hide_thinking else ()
    streams = {"thinking": sys.stderr, "answer": sys.stdout}
    with closing(engine.chat_events(messages, **options)) as events:
        for kind, piece in events:
            if kind == "answer" and said["thinking"] and not said["answer"] and not hidden:
                say("", stream=sys.stderr)
            said[kind] += piece
            if kind not in hidden:
                say(piece, end="", stream=streams[kind])
    say(json_text(said | {"stats": asdict(engine.stats)}) if as_json else "")
    if with_stats:
        say(stats_line(engine.stats), stream=sys.stderr)
    for line in block_lines(engine) if show_blocks else []:
        say(line, stream=sys.stderr)


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The command line's options that were given, checked. Raises SamplingError or SessionError."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if "stop" in given:
        given["stop"] = list(given["stop"])
    check_options(given)
    return given


def read_question(prompt: str | None) -> str | None:
    """The one question to answer: all of a piped standard input, then --prompt, as one message;
    None means a person is typing.

    Raises:
        SessionError: there is no question, and no terminal to ask for one.
    """
    if sys.stdout is None:
        raise SessionError(
            "standard output is closed, so no answer can be shown; send it to a file or a pipe"
        )
    question = None if prompt is None else whole_characters(prompt)
    if sys.stdin is None:
        if question is None:
            raise SessionError(
                "standard input is closed: there is no terminal and no pipe; give --prompt TEXT"
            )
        return question
    if not is_terminal(sys.stdin):
        return _one_message(read_piped(), question or "")
    if question is None and not is_terminal(sys.stdout):
        raise SessionError(
            "a chat needs a terminal for its output; for a pipe or file give --prompt TEXT"
        )
    return question


def _one_message(piped: str, question: str) -> str:
    """The text and the question after it, as it would be asked about a pasted text."""
    if not question.strip():
        return piped
    return f"{piped.rstrip()}\n\n{question}" if piped.strip() else question
