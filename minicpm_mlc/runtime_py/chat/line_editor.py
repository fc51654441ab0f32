"""Where a message is typed: prompt_toolkit's editor with our keys, and a history that never stops a
chat.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, get_common_complete_suffix
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from minicpm_mlc.base.files import state_folder
from minicpm_mlc.runtime_py.chat.completion import Commands
from minicpm_mlc.runtime_py.chat.session import open_quotes


class FileOrMemory(FileHistory):
    """Typed lines in a file; a full disk or a file that can't be read any more costs the lines, not
    the chat.
    """

    def load_history_strings(self) -> Iterable[str]:
        """The lines of earlier chats, the latest first."""
        try:
            return super().load_history_strings()
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Keeps a line for later chats where it can."""
        try:
            super().store_string(string)
        except OSError:
            pass


def prompt_session() -> PromptSession[str]:
    """Reads messages of one or more lines from the terminal."""
    completer = Commands()
    return PromptSession(
        history=_history(),
        multiline=True,
        completer=completer,
        complete_while_typing=False,
        enable_suspend=True,
        key_bindings=_keys(completer),
        prompt_continuation=lambda *_: ". ",
    )


def history_path() -> Path:
    """Where typed lines are kept between sessions: the user's state folder of this system. Raises
    RuntimeError where the user has no home.
    """
    return state_folder() / "history"


def _history() -> History:
    """A file that only its owner may read; memory where no file can be written."""
    try:
        path = history_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileOrMemory(str(path))


def _typed_marker(buffer: Buffer, pasted: str) -> bool:
    """Whether the text ends with a backslash that was typed last."""
    at_end = buffer.document.is_cursor_at_the_end
    return at_end and buffer.text.endswith("\\") and buffer.text != pasted


def _keys(completer: Completer) -> KeyBindings:
    """Enter sends a finished message and continues an unfinished one; Alt-Enter (Esc, Enter) always
    continues. A backslash typed right before Enter continues too, and goes; a pasted one stays.
    Tab completes as far as there is no choice, then shows it.
    """
    keys = KeyBindings()
    pasted = ""  # the text right after the last paste

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        nonlocal pasted
        buffer = event.current_buffer
        buffer.insert_text(event.data.replace("\r\n", "\n").replace("\r", "\n"))
        pasted = buffer.text

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        nonlocal pasted
        buffer = event.current_buffer
        if open_quotes(buffer.text):
            buffer.insert_text("\n")
        elif _typed_marker(buffer, pasted):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            pasted = ""
            buffer.validate_and_handle()

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        offered = list(completer.get_completions(buffer.document, CompleteEvent(True)))
        if common := get_common_complete_suffix(buffer.document, offered):
            buffer.insert_text(common)
        elif len(offered) > 1:
            buffer.start_completion()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
