"""The terminal: prompt_toolkit reads, rich writes, ChatSession does the talking. Also one question
from a pipe.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minicpm_mlc.runtime_py.chat.block_lines import block_lines
from minicpm_mlc.runtime_py.chat.session import (
    ChatSession,
    SessionError,
    check_options,
    needs_more,
    stats_line,
)

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from minicpm_mlc.runtime_py.engine import Engine

STYLES = {"thinking": "dim", "answer": None, "note": "dim", "error": "red"}
# A model's text must not drive the terminal: control characters other than tab and line feed are
# shown as a mark.
HARMLESS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(9), *range(11, 32), *range(127, 160))
}


class Screen:
    """Writes a session's pieces to a terminal: thinking dimmed, or hidden behind a spinner."""

    def __init__(self, console: Console, hide_thinking: bool = False):
        self.console = console
        self.hide_thinking = hide_thinking
        self._spinner = console.status("")
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
        self.console.out(text.translate(HARMLESS), style=STYLES[kind], end="", highlight=False)


def talk(
    engine: Engine,
    *,
    options: dict[str, Any],
    system: str | None = None,
    hide_thinking: bool = False,
    show_blocks: bool = False,
) -> None:
    """Interactive chat until /quit or Ctrl-D. Standard input and output must be a terminal."""
    screen = Screen(Console(), hide_thinking)
    session = ChatSession(engine, screen, options, system, screen.on_prefill, show_blocks)
    prompt = _prompt_session(history_path())
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
    said = {"thinking": "", "answer": ""}
    with closing(
        engine.chat_events([*messages, {"role": "user", "content": question}], **options)
    ) as events:
        for kind, piece in events:
            if (
                kind == "answer"
                and said["thinking"]
                and not said["answer"]
                and not (hide_thinking or as_json)
            ):
                print(file=sys.stderr, flush=True)
            said[kind] += piece
            if not as_json and not (kind == "thinking" and hide_thinking):
                print(
                    piece, end="", flush=True, file=sys.stderr if kind == "thinking" else sys.stdout
                )
    if as_json:
        print(json.dumps(said | {"stats": asdict(engine.stats)}, ensure_ascii=False))
    else:
        print(flush=True)
    if with_stats:
        print(stats_line(engine.stats), file=sys.stderr)
    if show_blocks:
        print(*block_lines(engine), sep="\n", file=sys.stderr)


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The command line's options that were given, checked. Raises SamplingError or SessionError."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if "stop" in given:
        given["stop"] = list(given["stop"])
    check_options(given)
    return given


def read_question(prompt: str | None) -> str | None:
    """The one question to answer: --prompt, else all of a piped standard input; None means a person
    is typing.

    Raises:
        SessionError: input is a terminal and output is not.
    """
    if prompt is not None:
        return prompt
    if not sys.stdin.isatty():
        return sys.stdin.read()
    if not sys.stdout.isatty():
        raise SessionError(
            "a chat needs a terminal for its output; for a pipe or file give --prompt TEXT"
        )
    return None


def history_path() -> Path:
    """Where typed lines are kept between sessions: the user's state folder of this system."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "minicpm-mlc" / "history"


def _prompt_session(path: Path) -> PromptSession[str]:
    from prompt_toolkit import PromptSession

    return PromptSession(
        history=_history(path),
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation=lambda *_: ". ",
    )


def _history(path: Path) -> History:
    """A file that only its owner may read; memory where no file can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    """Enter sends a finished message and continues an unfinished one; Alt-Enter (Esc, Enter) always
    continues.
    """
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if needs_more(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
