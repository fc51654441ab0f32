"""Standard input, output and error, whatever they are: a terminal, a pipe, a file, or closed."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import MARK, decode_text, harmless

LONGEST_INPUT = 16 << 20  # bytes; no context holds more
NOTE_SECONDS = 3.0  # of waiting for standard input, before that is told


class InputError(MiniCPMError):
    """Text from standard input or a file that can't be used."""


def prepare_streams() -> None:
    """Makes printing safe: what an encoding lacks is printed as ?, and what is printed to a closed
    standard error is dropped, and goes into no file that was opened with its number.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:  # print would take standard output in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")


def is_terminal(stream: TextIO | None) -> bool:
    """False for a closed stream too, which Python has as None."""
    return stream is not None and stream.isatty()


def say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Prints text to `stream`, or standard output, at once. A terminal gets it without control
    characters, anything else as it is.
    """
    stream = stream or sys.stdout
    print(harmless(text) if is_terminal(stream) else text, end=end, file=stream, flush=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that standard output can print: escaped where a character drives a terminal, or the
    encoding lacks it.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text if text == harmless(text) else json.dumps(value, indent=indent)


def read_piped() -> str:
    """All of standard input, which is no terminal. What can't be read becomes U+FFFD, which is
    told.

    Raises InputError for more than LONGEST_INPUT bytes.
    """
    with _note_of_waiting():
        data = sys.stdin.buffer.read(LONGEST_INPUT + 1)
    return _text(data, "standard input", sys.stdin.encoding, _note)


def read_text(path: Path, note: Callable[[str], object] | None = None) -> str:
    """The text of a file; what isn't UTF-8 becomes U+FFFD, and `note` (None: standard error) is
    told so. Raises InputError for a file that can't be read, or is larger than LONGEST_INPUT.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe's end may never come
            raise InputError(f"{path} is not a file; name another one")
        with open(path, "rb") as file:
            data = file.read(LONGEST_INPUT + 1)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); name another file") from None
    return _text(data, str(path), "utf-8", note or _note)


def _text(data: bytes, source: str, encoding: str, note: Callable[[str], object]) -> str:
    if len(data) > LONGEST_INPUT:
        raise InputError(
            f"{source} has more than {LONGEST_INPUT >> 20} MiB, which no context holds; give less "
            "text"
        )
    text = decode_text(data, encoding)
    if unreadable := text.count(MARK) - data.count(MARK.encode()):
        note(
            f"{source} is not {encoding.upper()} text: {unreadable} characters could not be read; "
            "convert it, for example with iconv"
        )
    return text


def _note(text: str) -> None:
    say(f"note: {text}", stream=sys.stderr)


@contextmanager
def _note_of_waiting() -> Iterator[None]:
    """Says after a while what is waited for: a pipe that nobody closes looks like a hang."""
    note = "waiting for the end of standard input; start with < /dev/null if there is none"
    timer = threading.Timer(NOTE_SECONDS, say, (note,), {"stream": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
