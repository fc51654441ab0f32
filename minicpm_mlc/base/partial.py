"""What is being written lies beside its place, under a hidden name, and is locked by its writer.

A lock ends with its process, however that ends. So what a killed run left is told from what is
being written, in containers too, where one process number belongs to many processes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

if os.name == "nt":
    fcntl = None
else:
    import fcntl

PARTIAL = re.compile(r"\.(.+)\.(?:partial|old)-\d+")  # the names of partial_beside


class Hold:
    """The lock of a file or folder, until `close`."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    @property
    def locked(self) -> bool:
        """False where the system knows no such locks."""
        return self._handle is not None

    def close(self) -> None:
        """Give it up."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def partial_beside(target: Path, kind: str = "partial") -> Path:
    """The hidden name under which this process writes `target`, or keeps what stood there (`kind`
    "old").
    """
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}")


def target_of(path: Path) -> Path:
    """What is written under a name of partial_beside; any other path as it is."""
    found = PARTIAL.fullmatch(path.name)
    return path.with_name(found[1]) if found else path


def hold(path: Path) -> Hold:
    """Locks what lies at `path` for this process; nothing on systems without such locks. Raises
    BlockingIOError where somebody else holds it.
    """
    if fcntl is None:
        return Hold(None)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        os.close(handle)
        return Hold(None)
    return Hold(handle)


def leftovers(target: Path, kind: str = "partial") -> Iterator[Path]:
    """What this user's killed runs left of `target`, in the order of their names."""
    beginning = f".{target.name}.{kind}-"
    try:
        names = sorted(os.listdir(target.parent))
    except OSError:  # writing there will tell
        return
    for name in names:
        number = name.removeprefix(beginning)
        if name != number and number.isdigit() and _abandoned(target.with_name(name), int(number)):
            yield target.with_name(name)


def remove_leftovers(target: Path) -> None:
    """Takes away what killed runs left half-written of `target`."""
    for path in leftovers(target):
        remove(path)


def remove(path: Path) -> None:
    """Removes a file or folder as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # another user's: it does no harm
        pass


def _abandoned(path: Path, number: int) -> bool:
    """Whether the process that wrote `path`, of this number, is gone, and was this user's."""
    try:
        if not _is_own(path):
            return False
        held = hold(path)
    except OSError:  # in use, or gone meanwhile
        return False
    locked = held.locked
    held.close()
    return locked or number == os.getpid() or not _alive(number)


def _is_own(path: Path) -> bool:
    """Whether a run of this user may have made it: anybody can put something into a shared
    folder.
    """
    seen = path.lstat()
    return not stat.S_ISLNK(seen.st_mode) and (os.name == "nt" or seen.st_uid == os.geteuid())


def _alive(number: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        import psutil

        return psutil.pid_exists(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
