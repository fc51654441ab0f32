"""What the tools of a compilation want of the machine: a home, temporary files, caches.

They would take the user's, which may be missing, read-only or on a small disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_HOME = "/nonexistent"  # Debian's home of accounts without one


@contextmanager
def some_home() -> Iterator[None]:
    """Within the block there is a home, where the account has none: TVM asks for it when it is
    imported.
    """
    try:
        Path.home()
    except RuntimeError:
        with _variables(HOME=NO_HOME):
            yield
    else:
        yield


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Within the block all temporary files and zig's caches are made in `folder`."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    caches = {name: str(folder / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    try:
        with _variables(TMPDIR=str(folder), **caches):
            yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Environment variables for the block, and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
