"""The server's files of bundles, by their SHA-256, and the folders that are bundles made of
them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import string
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import sha256_of
from minicpm_mlc.bundle.manifest import MANIFEST, Manifest


class Store:
    """Below one folder: files/<sha256>, and bundles/<sha256 of the manifest>."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._bundles = folder / "bundles"
        for place in (self._files, self._bundles):
            place.mkdir(parents=True, exist_ok=True)

    def missing(self, wanted: list[str]) -> dict[str, int]:
        """Which files, by SHA-256, have to be uploaded, and how many bytes of each are here
        already.
        """
        return {
            sha256: _size(self._partial(sha256))
            for sha256 in wanted
            if not self._file(sha256).is_file()
        }

    def write(self, sha256: str, offset: int, block: np.ndarray) -> None:
        """Append a block to a file that is being uploaded. Raises BundleError if it doesn't follow
        the last one.
        """
        partial = self._partial(sha256)
        if _size(partial) != offset:
            raise BundleError(
                f"an upload went on at byte {offset}, and {_size(partial)} bytes are here; start "
                "it again"
            )
        with open(partial, "ab") as file:
            file.write(block.tobytes())

    def finish(self, sha256: str) -> None:
        """An upload is at its end. Raises BundleError, and forgets the file, if it isn't what was
        announced.
        """
        partial = self._partial(sha256)
        partial.touch()
        if sha256_of(partial) != sha256:
            partial.unlink()
            raise BundleError("a file was damaged on its way; start the upload again")
        partial.rename(self._file(sha256))

    def bundle(self, manifest: bytes) -> Path:
        """The folder of a bundle whose files are all here. Raises BundleError for a manifest that
        is none.
        """
        folder = self._bundles / hashlib.sha256(manifest).hexdigest()
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_bytes(manifest)
        for name, entry in Manifest.load(folder).files.items():
            if not (folder / name).exists():
                _link(self._file(entry["sha256"]), folder / name)
        return folder

    def _file(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set(string.hexdigits):
            raise BundleError(f"{sha256!r} is no SHA-256")
        return self._files / sha256

    def _partial(self, sha256: str) -> Path:
        return self._file(sha256).with_suffix(".partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
