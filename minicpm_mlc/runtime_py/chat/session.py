"""A conversation without a terminal: lines go in, (text, kind) pieces go out."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.errors import ContextError, PromptTooLongError
from minicpm_mlc.base.explain import explain, is_expected, leaves
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.prompt.thinking import as_history
from minicpm_mlc.runtime_py.chat.block_lines import block_lines
from minicpm_mlc.runtime_py.chat.commands import run_command
from minicpm_mlc.runtime_py.chat.figures import stats_row
from minicpm_mlc.runtime_py.chat.saved import Saved
from minicpm_mlc.runtime_py.chat.settings import SessionError, check_options
from minicpm_mlc.runtime_py.overflow import kept_messages

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine

# (text, kind): kind is "thinking", "answer" or "end" (of an answer) while one streams, else "note"
# or "error".
Writer = Callable[[str, str], None]


def join_lines(text: str) -> str:
    '''The message meant by typed text: without enclosing """ and blank lines around it. One line
    loses the spaces around it, several keep theirs.'''
    body = text.strip()
    if len(body) >= 6 and body.startswith('"""') and body.endswith('"""'):
        return body[3:-3].strip("\n")
    return text.strip("\n") if "\n" in body else body


def open_quotes(text: str) -> bool:
    '''True while typed text can't be sent yet: it begins with a """ that is open.'''
    return text.lstrip().startswith('"""') and text.count('"""') % 2 == 1


@dataclass
class ChatSession:
    """Messages and settings of one conversation with `engine`.

    `handle` raises nothing but KeyboardInterrupt and its like: every error is one line of kind
    "error", and the conversation stays as it was.
    """

    engine: Engine
    write: Writer
    options: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    # (tokens done, tokens to do), called while a prompt is read, first with (0, 0)
    on_prefill: Callable[[int, int], None] | None = None
    show_blocks: bool = False  # after each answer, the blocks that it read most
    debug: bool = False  # a bug shows its traceback
    show_stats: bool = True  # figures after each answer
    kept_in: Path | None = None  # the file that has the conversation after each answer
    messages: list[Message] = field(init=False)
    pinned: list[Message] = field(init=False)  # those of `messages` that hold documents
    documents: list[str] = field(init=False)  # texts that go before the next message
    # the questions that had documents: message, documents, and what was typed
    _parts: list[tuple[Message, list[str], str]] = field(init=False)
    draft: str = field(init=False, default="")  # what the next prompt begins with

    def __post_init__(self) -> None:
        check_options(self.options)
        self.system = self.system and whole_characters(self.system)
        self.reset()

    def handle(self, typed: str) -> bool:
        """Runs a command or answers a message. False ends the session."""
        self.draft = ""
        try:
            if typed.startswith("/") and "\n" not in typed.strip():
                return run_command(self, typed.strip())
            if message := join_lines(whole_characters(typed)):
                self.ask(message)
        except BaseException as error:
            if leaves(error):
                raise
            if self.debug and not is_expected(error):
                self.write(traceback.format_exc(), "error")
            self.write(explain(error), "error")
        return True

    def ask(self, text: str) -> str:
        """Streams the answer and keeps it, also when Ctrl-C cuts it short. A question without any
        answer is dropped.

        Raises:
            MiniCPMError: from the engine, e.g. a full context; the conversation stays as it was.
        """
        question = {"role": "user", "content": "\n\n".join([*self.documents, text])}
        pinned = [*self.pinned, question] if self.documents else self.pinned
        answer = self._answer([*self.messages, question], pinned)
        if answer and self.documents:
            self._parts.append((question, self.documents, text))
            self.documents = []
        return answer

    def again(self) -> None:
        """Asks the last question once more; the conversation stays as it was where nothing is
        answered. Raises SessionError where there is none.
        """
        before = self.messages, self.pinned
        question, pinned = self.take_last()
        answer = ""
        try:
            pins = [*self.pinned, question] if pinned else self.pinned
            answer = self._answer([*self.messages, question], pins)
        finally:
            if not answer:
                self.messages, self.pinned = before

    def take_last(self) -> tuple[Message, bool]:
        """Takes the last question, which it returns, and its answer out of the conversation; and
        whether it was pinned. Raises SessionError where there is none.
        """
        at = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=None)
        if at is None:
            raise SessionError("nothing was asked yet")
        question = self.messages[at]
        self.messages = self.messages[:at]
        pinned = any(each is question for each in self.pinned)
        self.pinned = [each for each in self.pinned if each is not question]
        return question, pinned

    def edit_last(self) -> None:
        """The last question is what the next prompt begins with; its documents wait again. Raises
        SessionError where there is none.
        """
        documents, self.draft = self.parts(self.take_last()[0])
        self.documents = [*documents, *self.documents]

    def parts(self, question: Message) -> tuple[list[str], str]:
        """The documents of a question and what was typed; of one from a file, all is typed."""
        found = [(docs, text) for message, docs, text in self._parts if message is question]
        return found[0] if found else ([], question["content"])

    def reset(self) -> None:
        """Forgets the conversation, but not the settings and the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.pinned, self.documents, self._parts = [], [], []

    def saved(self) -> Saved:
        """The conversation as it is written to files."""
        return Saved.of(self.messages, self.options, self.pinned)

    def load(self, saved: Saved) -> None:
        """Goes on with another conversation, its settings and its system prompt."""
        self.messages, self.options = saved.messages, saved.options
        self.pinned = [self.messages[i] for i in saved.pinned]
        first = self.messages[0] if self.messages else {"role": "user"}
        self.system = first["content"] if first["role"] == "system" else None
        self.documents = []

    def set_system(self, text: str | None) -> None:
        """Another system prompt, or none, for the conversation as it is."""
        had = bool(self.messages) and self.messages[0]["role"] == "system"
        self.system = text
        first = [{"role": "system", "content": text}] if text else []
        self.messages = [*first, *self.messages[had:]]

    def _answer(self, turn: list[Message], pinned: list[Message]) -> str:
        """Streams the answer to the last message of `turn`, which then is the conversation."""
        turn, options = fitted(
            self.engine, turn, pinned, self.options, lambda note: self.write(note, "note")
        )
        answer = ""
        stopped = False
        try:
            if self.on_prefill:
                self.on_prefill(0, 0)
            with closing(
                self.engine.chat_events(turn, on_prefill=self.on_prefill, **options)
            ) as events:
                for kind, piece in events:
                    answer += piece if kind == "answer" else ""
                    self.write(piece, kind)
        except KeyboardInterrupt:
            stopped = True
        except PromptTooLongError as error:
            if not self.messages[bool(self.system) :]:
                raise
            raise ContextError(_conversation_full(error)) from None
        finally:
            self.write("", "end")
        if answer:
            self.messages = [*turn, {"role": "assistant", "content": as_history(answer)}]
            self.pinned = [m for m in pinned if any(m is each for each in turn)]
        self._after_answer(answer, stopped)
        return answer

    def _way_out(self) -> str:
        """Of a full context: what may be left out of it."""
        if self.options.get("overflow") == "drop_oldest":
            return "/context shows what fills it"
        return "/set overflow drop_oldest leaves out the oldest turns, /context shows what fills it"

    def _after_answer(self, answer: str, stopped: bool) -> None:
        stats = self.engine.stats
        kept = "what was said is kept" if answer else "without an answer the question is not kept"
        if stopped:
            self.write(f"(stopped; {kept})", "note")
        elif stats.finish_reason == "length":
            more = "/set max_tokens N gives more room"
            self.write(f"(cut at {stats.generated_tokens} tokens; {more}; {kept})", "note")
        elif stats.finish_reason == "context":
            self.write(f"(cut: the context is full; {self._way_out()}; {kept})", "note")
        elif not answer:
            self.write(f"({kept})", "note")
        if self.show_stats:
            self.write(stats_row(stats), "note")
        for line in block_lines(self.engine) if self.show_blocks else []:
            self.write(line, "note")
        if answer and self.kept_in:
            with suppress(SessionError):  # a full disk costs --continue, not the chat
                self.saved().write(self.kept_in)


def fitted(
    engine: Engine,
    turn: list[Message],
    pinned: list[Message],
    options: dict[str, Any],
    note: Callable[[str], object],
) -> tuple[list[Message], dict[str, Any]]:
    """The messages that are sent, by the option `overflow`, and the other options; `note` is told
    what is left out. `pinned` are those of `turn` that stay.
    """
    options = dict(options)
    if options.pop("overflow", "error") != "drop_oldest":
        return turn, options
    places = [i for i, m in enumerate(turn) if any(m is each for each in pinned)]
    most = options.get("max_tokens")
    kept = kept_messages(turn, engine.count, engine.context, places, most)
    if gone := len(turn) - len(kept):
        note(f"the context is full: the oldest {gone} messages are left out")
    return [turn[i] for i in kept], options


def _conversation_full(error: PromptTooLongError) -> str:
    larger = f", chat --context {error.larger} holds more" if error.larger else ""
    return (
        f"the conversation is full ({error.fact}): /context shows by what, /set overflow "
        f"drop_oldest leaves out the oldest, /undo takes back the last turn, /reset begins anew"
        f"{larger}"
    )
