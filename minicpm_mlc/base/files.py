"""Files read and written the same way everywhere: hashing, JSON, files that are never half-written,
and the user's folder for what was found out before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import MiniCPMError

BLOCK_BYTES = 1 << 20  # read at a time


def read_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks of at most BLOCK_BYTES. Raises OSError."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, error: type[MiniCPMError], advice: str) -> Any:
    """The value in a JSON file.

    Raises FileNotFoundError where there is no file, and `error`, which ends with `advice`, where it
    can't be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path} can't be read ({reason.strerror or reason}); {advice}") from None
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON ({reason}); {advice}") from None


def read_json_object(path: Path, error: type[MiniCPMError], advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises as read_json does, and `error` for any other value."""
    value = read_json(path, error, advice)
    if not isinstance(value, dict):
        raise error(f"{path} holds {type(value).__name__}, expected an object; {advice}")
    return value


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there; nothing stays behind when it
    fails.

    Raises OSError, from `write` or the move.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file as write_whole does. Raises OSError."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def cache_file(kind: str, key: bytes) -> Path:
    """Where something found out about `key` is remembered. Raises RuntimeError where the user has
    no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "minicpm-mlc" / kind / f"{hashlib.sha256(key).hexdigest()}.json"


def remember(file: Path, text: str) -> None:
    """Write a file of the cache. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
