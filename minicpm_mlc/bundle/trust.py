"""Which bundles may run here. A bundle is a program: its library runs with all rights of the user.

A bundle goes by the SHA-256 of its manifest, which holds those of all its other files. What is
trusted for good is an empty file of that name in the user's state folder: processes that add some
at once don't meet, and removing one takes the trust back.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import state_folder

_allowed: set[str] = set()  # what this process was told to run


def allow(sha256: str) -> None:
    """Let this process run the bundle with this manifest."""
    _allowed.add(sha256)


def trust(sha256: str) -> None:
    """Let every process of this user run the bundle with this manifest; only this one where the
    user has no folder that can be written.
    """
    allow(sha256)
    with suppress(OSError, RuntimeError):
        folder = trusted_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / sha256).touch(mode=0o600)


def is_trusted(sha256: str) -> bool:
    """Whether the bundle with this manifest may run: it was compiled here, or allowed."""
    if sha256 in _allowed:
        return True
    with suppress(OSError, RuntimeError):
        return (trusted_folder() / sha256).is_file()
    return False


def trusted_folder() -> Path:
    """Where trusted manifests are remembered. Raises RuntimeError where the user has no home."""
    return state_folder() / "trusted"


def refuse_stranger(folder: Path, sha256: str) -> None:
    """Raises BundleError, with the ways to run it, for a bundle that may not."""
    if not is_trusted(sha256):
        raise BundleError(
            f"{folder} was not compiled here, and a bundle is a program that runs with your "
            f"rights; where you trust its maker: --trust once, or --sha256 {sha256} each time "
            "(Engine: trust=True or sha256=...); else compile the checkpoint yourself: "
            "minicpm-mlc compile"
        )
