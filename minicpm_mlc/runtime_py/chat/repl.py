"""The terminal: the line editor reads, a Screen writes, ChatSession does the talking. Also one
question from a pipe.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minicpm_mlc.base.streams import is_terminal, json_text, read_piped, read_text, say
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.prompt.thinking import as_history
from minicpm_mlc.runtime_py.chat.about import banner
from minicpm_mlc.runtime_py.chat.block_lines import block_lines
from minicpm_mlc.runtime_py.chat.figures import roofline_lines, stats_line
from minicpm_mlc.runtime_py.chat.saved import Saved, last_chat, typed_path
from minicpm_mlc.runtime_py.chat.screen import Screen
from minicpm_mlc.runtime_py.chat.session import ChatSession, fitted
from minicpm_mlc.runtime_py.chat.settings import SessionError, check_options
from minicpm_mlc.runtime_py.chat.typed_ahead import TypedAhead

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine


@dataclass(frozen=True)
class Look:
    """What a person wants to see. `stats` None: figures in a conversation, none after one question.
    `debug`: a bug shows its traceback, and the chat goes on all the same.
    """

    hide_thinking: bool = False
    show_blocks: bool = False
    markdown: bool = False
    stats: bool | None = None
    debug: bool = False


LOOK = Look()


def talk(
    engine: Engine,
    *,
    options: dict[str, Any],
    system: str | None = None,
    look: Look = LOOK,
    saved: Saved | None = None,
) -> None:
    """Interactive chat until /quit or Ctrl-D, beginning with a `saved` conversation. Standard input
    and output must be a terminal.
    """
    from minicpm_mlc.runtime_py.chat.line_editor import prompt_session

    screen = Screen(Console(), look.hide_thinking, look.markdown)
    session = ChatSession(engine, screen, options, system, screen.on_prefill)
    session.show_blocks, session.debug = look.show_blocks, look.debug
    session.show_stats = look.stats is not False
    session.kept_in = last_chat()
    screen(banner(engine), "note")
    screen("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves", "note")
    if saved:
        session.load(saved)
        session.options = saved.options | options
        if system:
            session.set_system(system)
        screen(f"going on with {len(saved.messages)} messages; /context lists them", "note")
    prompt = prompt_session()
    typed, more = "", True
    while more:
        try:
            line = prompt.prompt("> ", default=typed)
            with TypedAhead(screen.pause) as ahead:
                more = session.handle(line)
            typed = session.draft or ahead.text
        except KeyboardInterrupt:  # at the prompt: drop what was typed
            typed = ""
        except EOFError:
            more = False


def answer_once(
    engine: Engine,
    question: str,
    *,
    options: dict[str, Any],
    system: str | None = None,
    look: Look = LOOK,
    as_json: bool = False,
    saved: Saved | None = None,
    kept_in: Path | None = None,
) -> None:
    """One answer on standard output, as it streams; thinking goes to standard error, so a pipe gets
    the answer alone. `as_json`: one object {"answer", "thinking", "stats"} at the end instead.
    `saved`: the conversation that the question goes on with; `kept_in`: the file that then has it.

    Raises SessionError for an empty question.
    """
    if not question.strip():
        raise SessionError("the prompt is empty; give --prompt TEXT or pipe text in")
    messages, pinned = _with_question(saved or Saved([], {}), system, question)
    chosen = (saved.options if saved else {}) | options
    sent, given = fitted(engine, messages, pinned, chosen, _note)
    said = {"thinking": "", "answer": ""}
    output = _output(look, as_json)
    try:
        if output.on_prefill:
            output.on_prefill(0, 0)
        with closing(engine.chat_events(sent, on_prefill=output.on_prefill, **given)) as events:
            for kind, piece in events:
                said[kind] += piece
                output(piece, kind)
        output("", "end")
    finally:
        output.pause()
    if as_json:
        say(json_text(said | {"stats": asdict(engine.stats)}))
    _afterwards(engine, look)
    if kept_in and said["answer"]:
        answer = {"role": "assistant", "content": as_history(said["answer"])}
        try:
            Saved.of([*sent, answer], chosen, pinned).write(kept_in)
        except SessionError as error:  # the answer was given all the same
            _note(str(error))


def _with_question(
    saved: Saved, system: str | None, question: str
) -> tuple[list[Message], list[Message]]:
    """A conversation and its next question, with this system prompt if there is one; and those of
    its messages that are pinned.
    """
    before = saved.messages
    if system:
        had = bool(before) and before[0]["role"] == "system"
        before = [{"role": "system", "content": system}, *before[had:]]
    pinned = [saved.messages[place] for place in saved.pinned]
    return [*before, {"role": "user", "content": question}], pinned


def _note(text: str) -> None:
    say(f"note: {text}", stream=sys.stderr)


def _afterwards(engine: Engine, look: Look) -> None:
    """What standard error has after one answer."""
    stats = engine.stats
    if stats.finish_reason in ("length", "context"):
        say(f"(cut at {stats.generated_tokens} tokens)", stream=sys.stderr)
    if look.stats:
        say(stats_line(stats), stream=sys.stderr)
        for line in roofline_lines(engine):
            say(line, stream=sys.stderr)
    for line in block_lines(engine) if look.show_blocks else []:
        say(line, stream=sys.stderr)


class _Quiet:
    """Writes nothing; a spinner on standard error, where that is a terminal, shows how far the
    prompt is read.
    """

    def __init__(self) -> None:
        self._spinner = Screen(Console(stderr=True)) if is_terminal(sys.stderr) else None
        self.on_prefill = self._spinner and self._spinner.on_prefill

    def __call__(self, text: str, kind: str) -> None:
        self.pause()

    def pause(self) -> None:
        """Takes the spinner away."""
        if self._spinner:
            self._spinner.pause()


class _Streams(_Quiet):
    """The answer to standard output, thinking to standard error, as they are."""

    def __init__(self, hide_thinking: bool) -> None:
        super().__init__()
        self._hide_thinking = hide_thinking
        self._thought = self._answered = False

    def __call__(self, text: str, kind: str) -> None:
        super().__call__(text, kind)
        if kind == "end":
            say("")
        elif kind == "thinking" and not self._hide_thinking:
            self._thought = True
            say(text, end="", stream=sys.stderr)
        elif kind == "answer":
            if self._thought and not self._answered:
                say("", stream=sys.stderr)
            self._answered = True
            say(text, end="")


def _output(look: Look, as_json: bool) -> Screen | _Quiet:
    """Who writes the pieces of one answer: a screen where a person looks at both streams."""
    if as_json:
        return _Quiet()
    if is_terminal(sys.stdout) and is_terminal(sys.stderr):
        return Screen(Console(), look.hide_thinking, look.markdown)
    return _Streams(look.hide_thinking)


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The command line's options that were given, checked. Raises SamplingError or SessionError."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if "stop" in given:
        given["stop"] = list(given["stop"])
    check_options(given)
    return given


def text_or_file(text: str | None, file: str | None, option: str) -> str | None:
    """What an option such as --system or --system-file gives. Raises SessionError for both, and
    InputError for a file that can't be read.
    """
    if text is not None and file is not None:
        raise SessionError(f"{option} and {option}-file say the same thing; give one of them")
    return text if file is None else read_text(Path(file))


def conversation_of(file: str | None, go_on: bool) -> Saved | None:
    """The conversation of --load FILE, or the last one of --continue. Raises SessionError."""
    if file is not None and go_on:
        raise SessionError("--load and --continue name two conversations; give one of them")
    if file is not None:
        return Saved.read(typed_path(file, "--load FILE"))
    last = last_chat() if go_on else None
    if go_on and (last is None or not last.exists()):
        raise SessionError("there is no last conversation; chat without --continue")
    return Saved.read(last) if last else None


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
