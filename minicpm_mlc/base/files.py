"""Files read and written the same way everywhere: hashing, JSON, files that are never half-written,
and the user's folder for what was found out before.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.partial import hold, partial_beside, remove_leftovers

BLOCK_BYTES = 1 << 20  # read at a time
SMALL_BYTES = 64 << 20  # of a file that is read as a whole; the largest tokenizer.json have 35 MB
MAX_NESTED = 1 << 20  # objects and lists of a JSON file: once read, each takes some 200 bytes
GIT_LFS = b"version https://git-lfs"  # how the stand-in of a file begins that was not downloaded


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


def read_small(path: Path, error: type[MiniCPMError], advice: str) -> bytes:
    """All bytes of a file of at most SMALL_BYTES; a byte order mark is no part of them.

    Raises FileNotFoundError where there is no file, and `error`, which ends with `advice`, where it
    can't be read, is too large, or is the stand-in that Git LFS leaves.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path} is not a file; {advice}")
        with open(path, "rb") as file:  # which sets memory aside for all that is asked for
            data = file.read(min(found.st_size, SMALL_BYTES) + 1)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path} can't be read ({reason.strerror or reason}); {advice}") from None
    if len(data) > SMALL_BYTES:
        raise error(f"{path} has more than {SMALL_BYTES:,} bytes; {advice}")
    if data.startswith(GIT_LFS):
        raise error(f"{path} is a Git LFS pointer, not the file; fetch it: git lfs pull")
    return data.removeprefix(codecs.BOM_UTF8)


def as_text(data: bytes, where: object, error: type[MiniCPMError], advice: str) -> str:
    """UTF-8 text. Raises `error`, which names `where` and ends with `advice`."""
    try:
        return data.decode()
    except UnicodeDecodeError as reason:
        raise error(f"{where} is not UTF-8 text ({reason}); {advice}") from None


def json_value(data: bytes, nested: int = MAX_NESTED) -> Any:
    """The value that JSON text in UTF-8 stands for. Raises ValueError for anything else, and for
    text that names a key twice in one object or has more than `nested` objects and lists.
    """
    if data.count(b"[") + data.count(b"{") > nested:
        raise ValueError(f"it has more than {nested:,} objects and lists")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its objects and lists lie too deep in one another") from None


def parse_json(data: bytes, where: object, error: type[MiniCPMError], advice: str) -> Any:
    """The same, with `error`, which names `where` and ends with `advice`, in ValueError's place."""
    try:
        return json_value(data)
    except ValueError as reason:
        raise error(f"{where} is not JSON ({reason}); {advice}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r:.60} occurs twice")
    return values


def read_json(path: Path, error: type[MiniCPMError], advice: str) -> Any:
    """The value in a JSON file. Raises as read_small and parse_json do."""
    return parse_json(read_small(path, error, advice), path, error, advice)


def read_json_object(path: Path, error: type[MiniCPMError], advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises as read_json does, and `error` for any other value."""
    return as_object(read_json(path, error, advice), path, error, advice)


def as_object(value: Any, where: object, error: type[MiniCPMError], advice: str) -> dict[str, Any]:
    """The value, which must be an object. Raises `error`, which names `where`, otherwise."""
    if not isinstance(value, dict):
        raise error(f"{where} holds {type(value).__name__}, expected an object; {advice}")
    return value


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there. Nothing stays behind when it
    fails; what a killed run left is removed by the next one.

    Raises OSError, from `write` or the move.
    """
    target = Path(path)
    remove_leftovers(target)
    partial = partial_beside(target)
    partial.touch()
    held = hold(partial)
    try:
        write(partial)
        with open(partial, "r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        held.close()


def check_place(path: str | Path, option: str, error: type[MiniCPMError]) -> None:
    """Raises `error` where no file can be written at what `option` names, before anything is
    computed for it.
    """
    path = Path(path)
    why = "its folder is not there" if not path.absolute().parent.is_dir() else ""
    if why or path.is_dir():
        raise error(
            f"{path} can't be written: {why or 'it is a folder'}; choose another file with {option}"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file as write_whole does. Raises OSError."""
    write_whole(path, lambda partial: partial.write_bytes(text.encode()))


def cache_folder() -> Path:
    """The user's folder of ours for what can be made again. Raises RuntimeError where the user has
    no home.
    """
    if os.name == "nt" and not os.environ.get("XDG_CACHE_HOME"):
        return _local_data() / "minicpm-mlc" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm-mlc"


def state_folder() -> Path:
    """The user's folder of ours for what can't be made again: typed lines, trusted bundles. Raises
    RuntimeError where the user has no home.
    """
    if os.name == "nt":
        return _local_data() / "minicpm-mlc"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "minicpm-mlc"


def _local_data() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")


def cache_file(kind: str, key: bytes) -> Path:
    """Where something found out about `key` is remembered. Raises RuntimeError where the user has
    no home.
    """
    return cache_folder() / kind / f"{hashlib.sha256(key).hexdigest()}.json"


def remember(file: Path, text: str) -> None:
    """Write a file of the cache. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder. Raises OSError."""
    if os.name == "nt":  # folders can't be opened there, and a rename is on disk already
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
