"""What Tab offers in a chat: commands, settings and their words, files."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from minicpm_mlc.runtime_py.chat.commands import ALIASES, COMMANDS, QUIT
from minicpm_mlc.runtime_py.chat.settings import SETTINGS, WORDS

NAMES = (*COMMANDS, *ALIASES, *QUIT)
FILES = ("load", "save", "read")


class Commands(Completer):
    """Completes a line that begins with a slash."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            yield from _beginning(name, NAMES)
        elif name in FILES:
            yield from self._paths.get_completions(Document(argument), complete_event)
        elif name == "set":
            setting, space, value = argument.partition(" ")
            words = (*WORDS.get(setting, ()), "default") if setting in SETTINGS else ()
            yield from _beginning(value, words) if space else _beginning(setting, SETTINGS)
        elif name == "stats":
            yield from _beginning(argument, ("on", "off"))


def _beginning(typed: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, -len(typed)) for word in words if word.startswith(typed))
