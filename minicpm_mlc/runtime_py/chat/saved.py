"""Conversations in files: what /save writes, /load reads, and --continue goes on with."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm_mlc.base.files import state_folder, write_text
from minicpm_mlc.base.text import decode_text, quoted, whole_characters
from minicpm_mlc.prompt.template import Message, check_message
from minicpm_mlc.runtime_py.chat.settings import SessionError, check_options

FORMAT = 1
FILE_KIND = "minicpm-mlc chat"
LONGEST_SESSION = 64 << 20  # bytes


@dataclass
class Saved:
    """A conversation: its messages, the places of those that are pinned, and the settings."""

    messages: list[Message]
    options: dict[str, Any]
    pinned: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, messages: list[Message], options: dict[str, Any], pinned: list[Message]) -> Saved:
        """The same of pinned messages, which are told apart by what they are, not what they say."""
        places = [i for i, m in enumerate(messages) if any(m is each for each in pinned)]
        return cls(messages, options, places)

    def write(self, path: Path) -> None:
        """Writes it to a file, all or nothing. Raises SessionError where that can't be."""
        told = {"kind": FILE_KIND, "format": FORMAT, "messages": self.messages}
        told |= {"options": self.options, "pinned": self.pinned}
        try:
            write_text(path, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            why = error.strerror or error
            raise SessionError(f"{path} can't be written ({why}); name another file") from None

    @staticmethod
    def read(path: Path) -> Saved:
        """The conversation of a file. Raises SessionError for any other file."""
        try:
            told = json.loads(decode_text(_read_file(path)))
        except FileNotFoundError:
            raise SessionError(f"there is no file {path}; /save FILE makes one") from None
        except OSError as error:
            raise SessionError(f"{path} can't be read ({error.strerror}); name another") from None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or told.get("kind") != FILE_KIND:
            raise SessionError(
                f"{path} is not a saved session (those come from /save); name another file"
            )
        if told.get("format") != FORMAT or not isinstance(told.get("messages"), list):
            raise SessionError(
                f"{path} is a saved session of format {quoted(told.get('format'))}; this version "
                f"reads {FORMAT}"
            )
        return _checked(path, told)


def last_chat() -> Path | None:
    """Where the last conversation is kept, for --continue; None where the user has no home."""
    with suppress(RuntimeError):
        return state_folder() / "last-chat.json"
    return None


def typed_path(argument: str, usage: str) -> Path:
    """The path that a command was given. Raises SessionError for none."""
    if not argument:
        raise SessionError(f"which file? {usage}")
    if "\0" in argument:
        raise SessionError(f"{quoted(argument)} can't be a file's name; name another one")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise SessionError(f"{argument}: that user's home is not known; give the folder") from None


def _checked(path: Path, told: dict[str, Any]) -> Saved:
    options = told.get("options")
    if not isinstance(options, dict):
        raise SessionError(f"{path} is damaged: options must be an object")
    check_options(options)
    for i, message in enumerate(told["messages"]):
        check_message(message, i)
    whole = [m | {"content": whole_characters(m["content"])} for m in told["messages"]]
    pinned = told.get("pinned", [])
    places = range(len(whole))
    if not isinstance(pinned, list) or not all(type(i) is int and i in places for i in pinned):
        raise SessionError(f"{path} is damaged: pinned must be places of messages")
    return Saved(whole, options, pinned)


def _read_file(path: Path) -> bytes:
    """Bytes of a file, none of what is longer than any session. Raises OSError, and SessionError
    for a pipe or device, whose reading may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SessionError(f"{path} is not a file; name another one")
    with open(path, "rb") as file:
        data = file.read(LONGEST_SESSION + 1)
    return data if len(data) <= LONGEST_SESSION else b""
