"""The slash commands of a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minicpm_mlc.base.streams import read_text
from minicpm_mlc.base.text import quoted, shown
from minicpm_mlc.runtime_py.chat.about import about_lines, context_lines
from minicpm_mlc.runtime_py.chat.figures import roofline_lines, stats_line
from minicpm_mlc.runtime_py.chat.saved import Saved, typed_path
from minicpm_mlc.runtime_py.chat.settings import (
    SETTINGS,
    SessionError,
    check_options,
    parse_setting,
    typed_as,
)
from minicpm_mlc.runtime_py.speculative.report import speculation_lines

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.chat.session import ChatSession

QUIT = ("quit", "exit", "bye")
ALIASES = {"clear": "reset", "?": "help"}
KEYS = (
    'Tab completes. Alt-Enter, a trailing \\ or """ makes a message of several lines.',
    "Ctrl-C stops an answer, Ctrl-Z pauses. What you type meanwhile is kept.",
    "A message that ends in /think or /no_think switches thinking for that turn.",
)


def run_command(session: ChatSession, line: str) -> bool:
    """Runs a line such as `/save FILE`. False ends the session. Raises SessionError for a line that
    is no command.
    """
    name, _, argument = line[1:].partition(" ")
    name = ALIASES.get(name, name)
    if name in QUIT:
        return False
    if name in ("think", "no_think"):
        raise SessionError(
            f"/{name} goes at the end of a message; for all messages: /set think on, off or auto"
        )
    if name not in COMMANDS:
        raise SessionError(
            f"there is no command /{name}; /help lists them, a leading space sends the line as text"
        )
    COMMANDS[name][0](session, argument.strip())
    return True


def _help(session: ChatSession, _: str) -> None:
    for usage, text in [
        *(entry[1:] for entry in COMMANDS.values()),
        ("/quit, /exit, /bye", "leave (also Ctrl-D)"),
    ]:
        session.write(f"{usage:<19} {text}", "note")
    for line in KEYS:
        session.write(line, "note")


def _reset(session: ChatSession, _: str) -> None:
    session.reset()


def _stats(session: ChatSession, argument: str) -> None:
    if argument in ("on", "off"):
        session.show_stats = argument == "on"
        session.write(f"figures after each answer: {argument}", "note")
        return
    if argument:
        raise SessionError(f"/stats takes on, off or nothing, not {quoted(argument)}")
    stats = session.engine.stats
    rooflines = roofline_lines(session.engine)
    for line in (stats_line(stats), *rooflines, *speculation_lines(stats.speculation)):
        session.write(line, "note")


def _set(session: ChatSession, argument: str) -> None:
    name, _, text = argument.partition(" ")
    if not name:
        for each, (_, takes) in SETTINGS.items():
            session.write(f"{each:<18} {_setting(session, each):<10} {takes}", "note")
        return
    text = text.strip()
    changed = {key: value for key, value in session.options.items() if key != name}
    if text != "default" or name not in SETTINGS:
        changed[name] = parse_setting(name, text)
    check_options(changed)
    session.options = changed
    session.write(f"{name} = {_setting(session, name)}", "note")


def _setting(session: ChatSession, name: str) -> str:
    """A setting's value: chosen here, or the model's default where that is a number."""
    if name in session.options:
        return typed_as(name, session.options[name])
    value = getattr(session.engine.defaults, name, None)
    return "default" if value is None else str(value)


def _save(session: ChatSession, argument: str) -> None:
    path = typed_path(argument, "/save FILE")
    if path.exists():
        Saved.read(path)  # anything but a saved session is refused
    session.saved().write(path)
    session.write(f"saved {len(session.messages)} messages to {path}", "note")


def _load(session: ChatSession, argument: str) -> None:
    path = typed_path(argument, "/load FILE")
    session.load(Saved.read(path))
    session.write(f"loaded {len(session.messages)} messages from {path}", "note")


def _read(session: ChatSession, argument: str) -> None:
    path = typed_path(argument, "/read FILE")
    text = read_text(path, lambda note: session.write(note, "note"))
    tokens = len(session.engine.tokenize(text, bos=False))
    if tokens >= session.engine.context:
        fits = tokens < session.engine.manifest.max_context
        larger = ", or open the chat with a larger --context" if fits else ""
        raise SessionError(
            f"{path} has {tokens} tokens and the context holds {session.engine.context}; give a "
            f"part of it{larger}"
        )
    session.documents.append(text)
    session.write(f"{path}: {tokens} tokens, which go before your next message", "note")


def _undo(session: ChatSession, _: str) -> None:
    if session.documents:
        session.documents.pop()
        session.write("taken back: the document that was read last", "note")
        return
    documents, typed = session.parts(session.take_last()[0])
    beside = " and its document" if documents else ""
    session.write(f"taken back: {shown(typed, 60)}{beside}", "note")


def _edit(session: ChatSession, _: str) -> None:
    session.edit_last()


def _regen(session: ChatSession, _: str) -> None:
    session.again()


def _system(session: ChatSession, argument: str) -> None:
    if argument:
        session.set_system(None if argument == "none" else argument)
    session.write(f"system prompt: {session.system or 'none'}", "note")


def _context(session: ChatSession, _: str) -> None:
    for line in context_lines(session):
        session.write(line, "note")


def _model(session: ChatSession, _: str) -> None:
    for line in about_lines(session.engine):
        session.write(line, "note")


COMMANDS: dict[str, tuple[Callable[[ChatSession, str], None], str, str]] = {
    "help": (_help, "/help, /?", "this list"),
    "reset": (_reset, "/reset, /clear", "forget the conversation, keep settings and system prompt"),
    "undo": (_undo, "/undo", "take back the last question and its answer"),
    "edit": (_edit, "/edit", "the same, with the question back in the editor"),
    "regen": (_regen, "/regen", "answer the last question again"),
    "read": (_read, "/read FILE", "put a file's text before your next message"),
    "context": (_context, "/context", "what fills the context"),
    "stats": (_stats, "/stats [on|off]", "figures of the last answer; on, off: after each"),
    "system": (_system, "/system [TEXT]", "show or change the system prompt; none removes it"),
    "model": (_model, "/model", "what runs, and where"),
    "save": (_save, "/save FILE", "write the conversation to a JSON file"),
    "load": (_load, "/load FILE", "go on with a saved conversation"),
    "set": (_set, "/set NAME VALUE", "change a setting, or back to default; alone lists them"),
}
