"""Files that are never half-written, and the user's folder for what was found out before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


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


def cache_file(kind: str, key: bytes) -> Path:
    """Where something found out about `key` is remembered. Raises RuntimeError where the user has
    no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "minicpm-mlc" / kind / f"{hashlib.sha256(key).hexdigest()}.json"


def remember(file: Path, text: str) -> None:
    """Write a file of the cache. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda partial: partial.write_text(text))
