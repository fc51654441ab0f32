"""A conversation and its slash commands, without a terminal: lines go in, (text, kind) pieces go
out.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.choices import SPECULATE
from minicpm_mlc.base.errors import ContextError, MiniCPMError, PromptTooLongError
from minicpm_mlc.base.explain import explain, is_expected, leaves
from minicpm_mlc.base.files import write_text
from minicpm_mlc.base.text import decode_text, quoted, whole_characters
from minicpm_mlc.prompt.sampling import SamplingParams, check_count
from minicpm_mlc.prompt.template import Message, check_message
from minicpm_mlc.prompt.thinking import as_history
from minicpm_mlc.runtime_py.chat.block_lines import block_lines
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.report import speculation_lines, speculation_note

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine
    from minicpm_mlc.runtime_py.request import Stats

# (text, kind): kind is "thinking", "answer" or "end" (of an answer) while one streams, else "note"
# or "error".
Writer = Callable[[str, str], None]

FORMAT = 1
FILE_KIND = "minicpm-mlc chat"
LONGEST_SESSION = 64 << 20  # bytes


class SessionError(MiniCPMError):
    """A command, setting or saved session that can't be used."""


def _think(text: str) -> bool | None:
    return {"on": True, "off": False, "auto": None}[text]


def _stop(text: str) -> list[str]:
    """One stop string as typed, or a JSON list of them (which can hold line ends)."""
    return json.loads(text) if text.startswith("[") else [text]


# Setting -> (from text, what it takes)
SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "number, 0 is greedy"),
    "top_p": (float, "number up to 1"),
    "top_k": (int, "whole number, 0 is all"),
    "min_p": (float, "number up to 1"),
    "repetition_penalty": (float, "number, 1 is none"),
    "presence_penalty": (float, "number, 0 is none"),
    "frequency_penalty": (float, "number, 0 is none"),
    "seed": (int, "whole number"),
    "max_tokens": (int, "whole number above 0"),
    "max_think_tokens": (int, "whole number, 0 or more"),
    "think": (_think, "on, off or auto"),
    "stop": (_stop, 'text, or a JSON list such as ["\\n\\n"]'),
    "speculate": (str, "one of " + ", ".join(SPECULATE)),
    "tree_size": (int, "whole number, nodes of a draft tree"),
    "draft_depth": (int, "whole number, levels of a draft tree"),
    "draft_top_k": (int, "whole number, guesses after a token"),
}


def parse_setting(name: str, text: str) -> Any:
    """Value of a setting as typed after `/set NAME`. Raises SessionError for an unknown name or
    unreadable value.
    """
    if name not in SETTINGS:
        raise SessionError(
            f"there is no setting {quoted(name)}; settings are {', '.join(SETTINGS)}"
        )
    parse, takes = SETTINGS[name]
    try:
        return parse(text)
    except (ValueError, KeyError, RecursionError):  # the last from JSON of very many brackets
        raise SessionError(f"{name} takes {takes}, not {quoted(text)}") from None


def check_options(options: dict[str, Any]) -> None:
    """Raises SessionError or SamplingError for names or values that the engine would refuse."""
    if unknown := sorted(set(options) - set(SETTINGS)):
        raise SessionError(
            f"there is no setting {quoted(unknown[0])}; settings are {', '.join(SETTINGS)}"
        )
    for kind in (SamplingParams, Speculation):
        names = {f.name for f in fields(kind)}
        kind(**{name: value for name, value in options.items() if name in names})
    check_count("max_tokens", options.get("max_tokens", 1), lowest=1)
    check_count("max_think_tokens", options.get("max_think_tokens", 0))
    if not isinstance(options.get("think"), bool | None):
        raise SessionError(f"think is {quoted(options['think'])}; it must be true, false or null")
    stop = options.get("stop", [])
    if not isinstance(stop, list):
        raise SessionError(f"stop is {quoted(stop)}; it must be a list of texts")
    StopStrings(stop)


def _gear(stats: Stats) -> str:
    return (
        "dense"
        if stats.attention == "dense"
        else f"sparse: {stats.blocks_read} of {stats.blocks} blocks read"
    )


def stats_line(stats: Stats) -> str:
    """One line: tokens and speed of prefill (cached tokens cost nothing) and decode, and how full
    the context is.
    """
    return (
        f"prompt {stats.prompt_tokens} tokens ({stats.cached_tokens} cached), "
        f"{stats.prefill_rate:.1f} tok/s"
        f" | answer {stats.generated_tokens} tokens, {stats.decode_rate:.1f} tok/s"
        f" | context {stats.context_used}/{stats.context}, "
        f"{_gear(stats)}{speculation_note(stats.speculation)}"
    )


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
    # (tokens done, tokens to do), called while a prompt is read
    on_prefill: Callable[[int, int], None] | None = None
    show_blocks: bool = False  # after each answer, the blocks that it read most
    debug: bool = False  # a bug shows its traceback
    messages: list[Message] = field(init=False)

    def __post_init__(self) -> None:
        check_options(self.options)
        self.system = self.system and whole_characters(self.system)
        self._reset("")

    def handle(self, typed: str) -> bool:
        """Runs a command or answers a message. False ends the session."""
        try:
            if typed.startswith("/") and "\n" not in typed.strip():
                return self._command(typed.strip())
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
        turn = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        stopped = False
        try:
            with closing(
                self.engine.chat_events(turn, on_prefill=self.on_prefill, **self.options)
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
        self._after_answer(answer, stopped)
        return answer

    def _after_answer(self, answer: str, stopped: bool) -> None:
        self.write(stats_line(self.engine.stats), "note")
        for line in block_lines(self.engine) if self.show_blocks else []:
            self.write(line, "note")
        finish = self.engine.stats.finish_reason
        kept = "what was said is kept" if answer else "without an answer the question is not kept"
        if stopped:
            self.write(f"stopped; {kept}", "note")
        elif finish == "length":
            self.write(f"cut off at max_tokens (/set max_tokens N gives more room); {kept}", "note")
        elif finish == "context":
            self.write(f"cut off: the context is full (/reset starts anew); {kept}", "note")
        elif not answer:
            self.write(kept, "note")

    def _command(self, line: str) -> bool:
        name, _, argument = line[1:].partition(" ")
        if name == "quit":
            return False
        if name in ("think", "no_think"):
            raise SessionError(
                f"/{name} goes at the end of a message; for all messages: /set think on, off or "
                "auto"
            )
        if name not in COMMANDS:
            raise SessionError(
                f"there is no command /{name}; /help lists them, a leading space sends the line "
                "as text"
            )
        COMMANDS[name][0](self, argument.strip())
        return True

    def _help(self, _: str) -> None:
        for usage, text in [
            *(entry[1:] for entry in COMMANDS.values()),
            ("/quit", "leave (also Ctrl-D)"),
        ]:
            self.write(f"{usage:<18} {text}", "note")
        self.write(
            'Ctrl-C stops an answer. Alt-Enter, a trailing \\ or """ makes a message of several '
            "lines.",
            "note",
        )
        self.write(
            "A message that ends in /think or /no_think switches thinking for that turn.", "note"
        )

    def _reset(self, _: str) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def _stats(self, _: str) -> None:
        for line in (
            stats_line(self.engine.stats),
            *speculation_lines(self.engine.stats.speculation),
        ):
            self.write(line, "note")

    def _set(self, argument: str) -> None:
        name, _, text = argument.partition(" ")
        if not name:
            return self._show_settings()
        text = text.strip()
        changed = {key: value for key, value in self.options.items() if key != name}
        if text != "default" or name not in SETTINGS:
            changed[name] = parse_setting(name, text)
        check_options(changed)
        self.options = changed
        self.write(f"{name} = {self._setting(name)}", "note")

    def _setting(self, name: str) -> Any:
        """A setting's value: chosen here, or the model's default where that is a number."""
        return self.options.get(name, getattr(self.engine.defaults, name, "default"))

    def _show_settings(self) -> None:
        for name, (_, takes) in SETTINGS.items():
            self.write(f"{name:<18} {self._setting(name)!s:<10} ({takes})", "note")

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save FILE")
        if path.exists():
            _read_saved(path)  # anything but a saved session is refused
        saved = {
            "kind": FILE_KIND,
            "format": FORMAT,
            "messages": self.messages,
            "options": self.options,
        }
        text = json.dumps(saved, ensure_ascii=False, indent=1) + "\n"
        write_text(path, text)
        self.write(f"saved {len(self.messages)} messages to {path}", "note")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load FILE")
        saved = _read_saved(path)
        self.messages = saved["messages"]
        self.options = saved["options"]
        self.write(f"loaded {len(self.messages)} messages from {path}", "note")


COMMANDS: dict[str, tuple[Callable[[ChatSession, str], None], str, str]] = {
    "help": (ChatSession._help, "/help", "this list"),
    "reset": (
        ChatSession._reset,
        "/reset",
        "forget the conversation, keep the settings and the system prompt",
    ),
    "stats": (ChatSession._stats, "/stats", "numbers of the last answer"),
    "save": (ChatSession._save, "/save FILE", "write the conversation to a JSON file"),
    "load": (ChatSession._load, "/load FILE", "go on with a saved conversation"),
    "set": (
        ChatSession._set,
        "/set NAME VALUE",
        "change a setting, or set it back to default; /set alone lists them",
    ),
}


def _conversation_full(error: PromptTooLongError) -> str:
    larger = f"; chat --context {error.larger} holds more" if error.larger else ""
    return (
        f"the conversation is full ({error.fact}): /save FILE keeps it, /reset begins anew{larger}"
    )


def _path(argument: str, usage: str) -> Path:
    if not argument:
        raise SessionError(f"which file? {usage}")
    if "\0" in argument:
        raise SessionError(f"{quoted(argument)} can't be a file's name; name another one")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise SessionError(f"{argument}: that user's home is not known; give the folder") from None


def _read_file(path: Path) -> bytes:
    """Bytes of a file, none of what is longer than any session. Raises OSError, and SessionError
    for a pipe or device, whose reading may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SessionError(f"{path} is not a file; name another one")
    with open(path, "rb") as file:
        data = file.read(LONGEST_SESSION + 1)
    return data if len(data) <= LONGEST_SESSION else b""


def _read_saved(path: Path) -> dict[str, Any]:
    """Messages and options of a saved session. Raises SessionError for any other file."""
    try:
        saved = json.loads(decode_text(_read_file(path)))
    except FileNotFoundError:
        raise SessionError(f"there is no file {path}; /save FILE makes one") from None
    except (ValueError, RecursionError):
        saved = None
    if not isinstance(saved, dict) or saved.get("kind") != FILE_KIND:
        raise SessionError(
            f"{path} is not a saved session (those come from /save); name another file"
        )
    if saved.get("format") != FORMAT or not isinstance(saved.get("messages"), list):
        raise SessionError(
            f"{path} is a saved session of format {quoted(saved.get('format'))}; this version "
            f"reads {FORMAT}"
        )
    options = saved.get("options")
    if not isinstance(options, dict):
        raise SessionError(f"{path} is damaged: options must be an object")
    check_options(options)
    for i, message in enumerate(saved["messages"]):
        check_message(message, i)
    whole = [m | {"content": whole_characters(m["content"])} for m in saved["messages"]]
    return {"messages": whole, "options": options}
