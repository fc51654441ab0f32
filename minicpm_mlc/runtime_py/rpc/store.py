"""The server's files of bundles, by their SHA-256, and the folders that are bundles made of
them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.base.files import sha256_of, sync_folder, write_whole
from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.manifest import MANIFEST, Manifest

FILES, BUNDLES, PARTIAL = "files", "bundles", ".partial"
if os.name == "nt":
    fcntl = None  # no server runs there
else:
    import fcntl
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
LEFT_SECONDS = 24 * 3600  # that a broken upload is kept, to be gone on with
FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """Below one folder: files/<sha256>, and bundles/<sha256 of the manifest>.

    A file is hashed when it is used first, once for each Store, and forgotten if it is damaged: a
    disk that lost it is found here, and the client sends it again. Several servers may have one
    folder.
    """

    def __init__(self, folder: Path) -> None:
        """Raises EngineError for a folder that can't be had."""
        self._folder = folder
        self._files = folder / FILES
        self._bundles = folder / BUNDLES
        self._whole: set[str] = set()  # SHA-256 of files that this object has hashed
        make_folder(folder)
        for place in (self._files, self._bundles):
            _make_private(place)

    def missing(self, wanted: dict[str, int]) -> dict[str, int]:
        """Which files, {SHA-256: bytes}, have to be uploaded, and how many bytes of each are here
        already. Raises BundleError if the disk has no room for the others.
        """
        lacking = {sha256: size for sha256, size in wanted.items() if not self._is_whole(sha256)}
        here = {sha256: self._begun(sha256, size) for sha256, size in lacking.items()}
        needed, free = sum(lacking.values()) - sum(here.values()), self._free
        if needed > free:
            raise BundleError(f"{self._full}; {human_bytes(needed)} are to be uploaded")
        return here

    def write(self, sha256: str, offset: int, block: np.ndarray) -> None:
        """Append a block to a file that is being uploaded. Raises BundleError if it doesn't follow
        the last one, or the disk is full.
        """
        with self._upload(sha256) as file:
            size = os.fstat(file.fileno()).st_size
            if size != offset:
                raise BundleError(
                    f"an upload went on at byte {offset}, and {size} bytes are here; start it again"
                )
            file.write(block.tobytes())

    def finish(self, sha256: str) -> None:
        """An upload is at its end, and survives a power cut from here on. Raises BundleError, and
        forgets the file, if it isn't what was announced.
        """
        partial = self._partial(sha256)
        with self._upload(sha256) as file:
            if sha256_of(partial) != sha256:
                partial.unlink()
                raise BundleError("a file was damaged on its way; start the upload again")
            os.fsync(file.fileno())
            partial.rename(self._file(sha256))
        sync_folder(self._files)
        self._whole.add(sha256)

    def bundle(self, manifest: bytes) -> Path:
        """The folder of a bundle whose files are all here and whole. Raises BundleError for one
        that isn't, or a manifest that is none.
        """
        folder = self._bundles / hashlib.sha256(manifest).hexdigest()
        _make_private(folder)
        write_whole(folder / MANIFEST, lambda partial: partial.write_bytes(manifest))
        for name, entry in Manifest.load(folder).files.items():
            if not self._is_whole(entry["sha256"]):
                raise BundleError(f"{name} was not uploaded, or is damaged; connect again")
            _link(self._file(entry["sha256"]), folder / name)
        return folder

    def _is_whole(self, sha256: str) -> bool:
        """Whether a file is here; what is left of one that was damaged since it came is removed."""
        file = self._file(sha256)
        if sha256 not in self._whole and file.is_file():
            with suppress(OSError):  # a disk that can't read it
                if sha256_of(file) == sha256:
                    self._whole.add(sha256)
            if sha256 not in self._whole:
                file.unlink()
        return sha256 in self._whole

    def _begun(self, sha256: str, size: int) -> int:
        """Bytes that an upload brought before it broke. More than the file has are no part of
        it.
        """
        partial = self._partial(sha256)
        here = partial.stat().st_size if partial.is_file() else 0
        if here > size:
            partial.unlink()
            return 0
        return here

    @contextmanager
    def _upload(self, sha256: str) -> Iterator[BinaryIO]:
        """The file of an upload, to be appended to by one process at a time."""
        partial = self._partial(sha256)
        try:
            with open(partial, "ab", opener=_open_private) as file:
                assert fcntl, "rpc-server runs here"
                fcntl.flock(file, fcntl.LOCK_EX)
                if not partial.exists():
                    raise BundleError("another client sent the same file; connect again")
                yield file
        except OSError as error:
            why = self._full if error.errno in FULL else f"{error.strerror}: {self._files}"
            raise BundleError(why) from error

    @property
    def _free(self) -> int:
        return shutil.disk_usage(self._files).free

    @property
    def _full(self) -> str:
        return (
            f"the server's disk has {human_bytes(self._free)} free; make room there, delete the "
            f"bundles in {self._folder}, or start rpc-server with another --folder"
        )

    def _file(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set(string.hexdigits):
            raise BundleError(f"{sha256!r} is no SHA-256")
        return self._files / sha256

    def _partial(self, sha256: str) -> Path:
        return self._file(sha256).with_suffix(PARTIAL)


def make_folder(folder: Path) -> None:
    """The server's folder. One that holds other things too keeps its mode: only what is below it
    is private. Raises EngineError if it can't be had.
    """
    if not folder.exists() or {entry.name for entry in folder.iterdir()} <= {FILES, BUNDLES}:
        _make_private(folder)


def _make_private(folder: Path) -> None:
    """A folder that nobody else can read. Raises EngineError if it is somebody else's, or can't be
    made.
    """
    try:
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        folder.chmod(PRIVATE_FOLDER)
    except OSError as error:
        raise EngineError(
            f"{folder} can't keep bundles ({error.strerror}); give another --folder"
        ) from None


def remove_leftovers(folder: Path) -> None:
    """Remove what uploads and servers that were cut off left long ago."""
    oldest = time.time() - LEFT_SECONDS
    for pattern in (f"{FILES}/*{PARTIAL}", f"{BUNDLES}/*/.*.partial-*"):
        for leftover in folder.glob(pattern):
            with suppress(OSError):  # another server removes it too
                if leftover.stat().st_mtime < oldest:
                    leftover.unlink()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, PRIVATE_FILE)


def _link(source: Path, target: Path) -> None:
    """Have `target` be `source`; a copy where the disk has no links."""
    with suppress(FileNotFoundError):
        if target.samefile(source):
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
