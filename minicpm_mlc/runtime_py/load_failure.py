"""Why a bundle's library doesn't load, as far as the machine tells."""

from __future__ import annotations

import os
from pathlib import Path


def load_failure(library: Path, error: Exception) -> str:
    """What was seen and what to do."""
    if _mounted_noexec(library.parent):
        return (
            f"{library} can't be run from where it lies: that file system may not hold programs "
            "(it is mounted noexec); move the bundle to another one"
        )
    if not _is_text(str(library)):
        return (
            f"{library} lies in a folder whose name is not UTF-8 text, which TVM's loader needs; "
            "rename that folder"
        )
    return f"{library} does not load: {error}; compile the bundle again"


def _is_text(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


def _mounted_noexec(folder: Path) -> bool:
    if not hasattr(os, "ST_NOEXEC"):  # known on Linux alone
        return False
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except OSError:
        return False
