"""Write a bundle: built in a hidden folder beside its target, renamed into place when whole,
removed on any error. What a killed run left is put right by the next one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.base.files import read_blocks, read_json_object, sync_folder
from minicpm_mlc.base.interrupts import interrupts_wait
from minicpm_mlc.base.partial import (
    Hold,
    hold,
    leftovers,
    partial_beside,
    remove,
    remove_leftovers,
)
from minicpm_mlc.bundle.manifest import MANIFEST, REPAIR, Manifest
from minicpm_mlc.bundle.manifest_schema import is_plain_name
from minicpm_mlc.bundle.trust import trust

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FULL = 64 << 10  # bytes: a disk with less room takes no further file
SCRATCH = 64 << 20  # bytes for objects and caches: LLVM ends the process where it can't write


class BundleFile:
    """A file being written, hashed on the way."""

    def __init__(self, path: Path, md5: bool = False) -> None:
        self.name = path.name
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._handle = open(path, "xb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._handle.write(data)
        self._sha256.update(data)
        if self._md5:
            self._md5.update(data)
        self.size += len(data)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._handle.closed

    def close(self) -> None:
        """Put everything on the disk."""
        if not self.closed:
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()

    def abandon(self) -> None:
        """Close a file that will be removed; what is still buffered may not fit the disk."""
        try:
            self._handle.close()
        except OSError:
            pass

    @property
    def entry(self) -> dict[str, Any]:
        """The file's line in the manifest."""
        return {"bytes": self.size, "sha256": self._sha256.hexdigest()}

    @property
    def md5(self) -> str | None:
        """MD5 in hex, where it was asked for."""
        return self._md5.hexdigest() if self._md5 else None


class BundleWriter:
    """`with BundleWriter(path) as bundle: ...; bundle.finish(manifest)`. Without `finish`, nothing
    stays behind.
    """

    def __init__(self, path: str | Path, *, need_bytes: int = 0, overwrite: bool = False) -> None:
        """`need_bytes` must be free on the disk; `overwrite` replaces a bundle, never another
        folder.
        """
        self.path = Path(os.path.abspath(path))
        self._need_bytes = need_bytes
        self._overwrite = overwrite
        self._folder = partial_beside(self.path)
        self._holds: list[Hold] = []
        self._files: list[BundleFile] = []
        self._part = ""

    def __enter__(self) -> BundleWriter:
        self._put_right()
        self._refuse_target()
        self._refuse_small_disk()
        try:
            with interrupts_wait():
                self._folder.mkdir()
                self._holds.append(hold(self._folder))
        except OSError as error:
            raise CompileError(
                f"can't write into {self.path.parent}: {error.strerror}; choose another folder "
                "with -o"
            ) from None
        except KeyboardInterrupt:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        full = self._is_disk_full(error)
        with interrupts_wait():
            self._discard()
        if full:
            written = sum(file.size for file in self._files)
            needed = f" of {self._need_bytes:,}" if self._need_bytes else ""
            raise CompileError(
                f"the disk of {self.path.parent} is full after {written:,}{needed} bytes; "
                "free some space or choose another folder with -o"
            ) from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the bundle's own disk for what is needed on the way; it goes with the
        block. Raises OSError where the disk hasn't the room for it.
        """
        if shutil.disk_usage(self._folder).free < SCRATCH:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        folder = self._folder / "scratch"
        folder.mkdir()
        try:
            yield folder
        finally:
            with interrupts_wait():
                shutil.rmtree(folder)

    @contextmanager
    def part(self, prefix: str) -> Iterator[None]:
        """Within it, the names of new files begin with `prefix`."""
        self._part = prefix
        try:
            yield
        finally:
            self._part = ""

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The lines of the files so far in a manifest."""
        return {file.name: file.entry for file in self._files}

    def create(self, name: str, *, md5: bool = False) -> BundleFile:
        """A new file of the bundle, to be written and closed."""
        name = self._part + name
        if (
            not is_plain_name(name)
            or name == MANIFEST
            or any(file.name == name for file in self._files)
        ):
            raise CompileError(f"{name!r} can't be the name of a new file in a bundle")
        file = BundleFile(self._folder / name, md5)
        self._files.append(file)
        return file

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Add a whole file, from bytes or copied from a path."""
        file = self.create(name)
        for block in [content] if isinstance(content, bytes) else read_blocks(content):
            file.write(block)
        file.close()

    def add_json(self, name: str, value: Any) -> None:
        """Add a JSON file with stable bytes."""
        self.add_file(
            name, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        )

    def finish(self, manifest: Manifest) -> Manifest:
        """Write the manifest with the files' sizes and hashes, move the bundle into place, trust
        it, return that manifest.
        """
        if still_open := [file.name for file in self._files if not file.closed]:
            raise CompileError(f"{still_open[0]} was not written to its end")
        whole = dataclasses.replace(manifest, files=self.entries)
        last = BundleFile(self._folder / MANIFEST)
        self._files.append(last)
        last.write(whole.to_bytes())
        last.close()
        self._move_into_place()
        trust(last.entry["sha256"])
        return whole

    def _move_into_place(self) -> None:
        sync_folder(self._folder)
        self._refuse_target()
        with interrupts_wait():
            old = self._set_aside() if self.path.exists() else None
            try:
                self._folder.rename(self.path)
            except BaseException:
                if old:
                    old.rename(self.path)
                raise
            sync_folder(self.path.parent)
            if old:
                remove(old)

    def _set_aside(self) -> Path:
        """Moves what is replaced to a hidden name, from which a killed run's successor brings it
        back.
        """
        old = partial_beside(self.path, "old")
        self._holds.append(hold(self.path))
        self.path.rename(old)
        return old

    def _is_disk_full(self, error: BaseException | None) -> bool:
        """Whether the work broke off for want of space. The tools that link a library tell that in
        words of their own.
        """
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        return isinstance(error, Exception) and (
            self._folder.exists() and shutil.disk_usage(self._folder).free < FULL
        )

    def _discard(self) -> None:
        for file in self._files:
            file.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)
        for held in self._holds:
            held.close()

    def _put_right(self) -> None:
        """Brings back the bundle that a killed run had set aside, and takes away what it had
        begun.
        """
        for old in leftovers(self.path, "old"):
            if self.path.exists():
                remove(old)
            else:
                old.rename(self.path)
        remove_leftovers(self.path)

    def _refuse_target(self) -> None:
        above = self.path.parent
        if above.exists() and not above.is_dir():
            raise CompileError(f"{above} is a file; choose another name with -o")
        if not above.is_dir():
            raise CompileError(f"folder {above} doesn't exist: mkdir -p {above}")
        if not self.path.exists() or _is_empty_folder(self.path):
            return
        if not _is_bundle(self.path):
            raise CompileError(
                f"{self.path} exists and isn't a bundle, or holds other files too: choose "
                "another name with -o"
            )
        if not self._overwrite:
            raise CompileError(
                f"{self.path} exists already: replace it with --force or choose another name "
                "with -o"
            )

    def _refuse_small_disk(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < self._need_bytes:
            raise CompileError(
                f"the bundle needs {self._need_bytes:,} bytes and the disk of {self.path.parent} "
                f"has {free:,} free; "
                "free some space or choose another folder with -o"
            )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_bundle(path: Path) -> bool:
    """True if every file in `path` belongs to its manifest, of this format or of an earlier one,
    so that replacing the folder loses nothing else.
    """
    try:
        files = read_json_object(path / MANIFEST, BundleError, REPAIR).get("files")
    except (BundleError, FileNotFoundError, NotADirectoryError):
        return False
    if not isinstance(files, dict) or not files:
        return False
    return {entry.name for entry in path.iterdir()} <= {MANIFEST, *files}
