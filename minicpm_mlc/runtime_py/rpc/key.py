"""The key that a server and its clients share, and where it comes from besides the command line,
which everybody on a machine can read.
"""

from __future__ import annotations

import os
from pathlib import Path

from minicpm_mlc.base.errors import EngineError

VARIABLE = "MINICPM_MLC_KEY"
LONGEST = 1000  # bytes; TVM's handshake sends it as client:KEY


def given_key(key: str | None, file: str | Path | None) -> str | None:
    """The key of --key, of --key-file, else of the environment; None where nothing gives one.

    Raises EngineError, which never shows the key.
    """
    if key is not None and file is not None:
        raise EngineError("--key and --key-file both give a key; give one of them")
    if file is not None:
        return checked(_read(Path(file)), f"--key-file {file}")
    if key is not None:
        return checked(key, "--key")
    key = os.environ.get(VARIABLE)
    return checked(key, VARIABLE) if key else None


def checked(key: str, source: str) -> str:
    """The key if it can be one. Raises EngineError."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise EngineError(f"{source}: the key is not UTF-8 text") from None
    if not 1 <= size <= LONGEST:
        raise EngineError(f"{source}: the key has {size} bytes; expected 1 to {LONGEST}")
    return key


def _read(file: Path) -> str:
    """The first line of a file."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            return lines.readline(LONGEST + 2).rstrip("\r\n")
    except OSError as error:
        raise EngineError(f"--key-file {file} can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise EngineError(f"--key-file {file}: the key is not UTF-8 text") from None
