"""Keys that are pressed while an answer comes: they are not shown among its words, and begin the
next prompt. Ctrl-C and Ctrl-Z work as always.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

try:
    import termios
except ImportError:  # Windows echoes nothing that nobody reads
    termios = None

MOST = 1 << 16  # bytes
BACKSPACES = "\x7f\b"


class TypedAhead:
    """`with TypedAhead() as typed: ...`; then `typed.text` is what was typed meanwhile."""

    def __init__(self, on_pause: Callable[[], None] = lambda: None) -> None:
        """`on_pause` is called before Ctrl-Z stops the program."""
        self.text = ""
        self._on_pause = on_pause
        self._before: Any = None  # the terminal's settings

    def __enter__(self) -> TypedAhead:
        if termios and sys.stdin is not None and sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            self._quiet()
            self._stop_handler = signal.signal(signal.SIGTSTP, self._stopped)
        return self

    def __exit__(self, *_: object) -> None:
        if termios and self._before:
            signal.signal(signal.SIGTSTP, self._stop_handler)
            self.text = edited(self._read())
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)

    def _quiet(self) -> None:
        """No echo, no waiting for a line end, and Ctrl-C leaves what was typed."""
        assert termios
        settings = termios.tcgetattr(self._fd)
        settings[3] = settings[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, settings)

    def _stopped(self, number: int, _: FrameType | None) -> None:
        """Ctrl-Z: the shell gets the terminal as it was, and we have it again afterwards."""
        assert termios
        self._on_pause()
        termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stopped)
        self._quiet()

    def _read(self) -> str:
        data = b""
        while len(data) < MOST and select.select([self._fd], [], [], 0)[0]:
            piece = os.read(self._fd, MOST)
            if not piece:
                break
            data += piece
        return data.decode(sys.stdin.encoding, "replace")


def edited(keys: str) -> str:
    """The text that keys make, without a line end at its end: backspaces take back, other control
    keys do nothing.
    """
    text: list[str] = []
    for key in _printed(keys.replace("\r", "\n")):
        if key in BACKSPACES:
            del text[-1:]
        else:
            text.append(key)
    return "".join(text).strip("\n")


def _printed(keys: str) -> Iterator[str]:
    """Without escape sequences, such as those of arrow keys, and other control characters."""
    escaped = False
    for key in keys:
        if key == "\x1b":
            escaped = True
        elif escaped:
            escaped = key in "[O" or (not key.isalpha() and key != "~")
        elif key in BACKSPACES or key == "\n" or key == "\t" or key >= " ":
            yield key
