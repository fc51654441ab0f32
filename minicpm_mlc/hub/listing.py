"""The files of a repository as its hub tells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class RemoteFile:
    """A file by its path in the repository, with its size in bytes and the hash that it must have:
    SHA-256, or git's SHA-1 of a small file; ModelScope has SHA-256 of all, a mirror perhaps none.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """Its folder in the repository; empty for the repository's own."""
        parent = str(PurePosixPath(self.path).parent)
        return "" if parent == "." else parent


@dataclass(frozen=True)
class Listing:
    """All files of a repository. `revision` is the commit, where the hub tells it."""

    revision: str
    files: list[RemoteFile]
