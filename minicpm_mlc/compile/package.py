"""One archive to hand on: a bundle, how to load it on its platform, the licences, and SHA-256 of
every file.

Nothing is compressed, weights can't be, and no time or owner is written: the same bundle gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.base.files import BLOCK_BYTES, write_whole
from minicpm_mlc.base.installed import RUNTIME, WHOLE, check_compiler, distribution
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.host import DEVICE_OF_SYSTEM, system_of
from minicpm_mlc.bundle.manifest import MANIFEST, REPAIR, Manifest, manifest_sha256
from minicpm_mlc.compile.engine_files import engine_files
from minicpm_mlc.compile.package_readme import readme

LICENSED = ("minicpm-mlc", "apache-tvm", "apache-tvm-ffi")  # makes the library, and runs it
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can hold


@dataclass(frozen=True)
class Entry:
    """A file of the archive: bytes, or a file of the bundle, checked against its SHA-256 as it is
    read.
    """

    name: str
    content: bytes | Path
    size: int
    sha256: str
    mode: int = 0o644

    @staticmethod
    def of(name: str, content: bytes, mode: int = 0o644) -> Entry:
        """A file of these bytes."""
        return Entry(name, content, len(content), hashlib.sha256(content).hexdigest(), mode)

    def open(self) -> IO[bytes]:
        """Its content from the start. Raises OSError."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return open(self.content, "rb")


class CheckedFile:
    """A file that tarfile and zipfile read from: counts and hashes on the way."""

    def __init__(self, file: IO[bytes], read: Callable[[int], None]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._read = read

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """The next bytes, at most `size`."""
        block = self._file.read(size)
        self._digest.update(block)
        self._read(len(block))
        return block

    def check(self, entry: Entry) -> None:
        """Raises BundleError unless all of the file was read and is as the manifest says."""
        if self._file.read(1) or self._digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{entry.content} is damaged: its SHA-256 isn't the manifest's; {REPAIR}"
            )


def package_bundle(
    path: str | Path,
    platform: str,
    out: str | Path | None = None,
    progress: Progress = no_progress,
    engine: bool = False,
) -> str:
    """Write the archive, which `out` calls .zip or .tar; returns what was written, in words. With
    `engine` it runs without Python.

    Raises BundleError for a damaged bundle, CompileError for one that doesn't fit the platform,
    another kind of archive, or a file that can't be written.
    """
    folder = Path(path)
    manifest = Manifest.load(folder)
    _refuse_misfit(folder, manifest, platform)
    target = (
        Path(out)
        if out
        else Path(f"{folder.name}-{platform}.{'tar' if platform == 'linux' else 'zip'}")
    )
    if target.suffix not in WRITERS:
        raise CompileError(
            f"-o {target}: expected a name that ends in {' or '.join(WRITERS)}; nothing is "
            "compressed"
        )
    write = WRITERS[target.suffix]
    entries = list(_entries(folder, manifest, platform, engine))
    total = sum(entry.size for entry in entries)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if size:
            progress("package", done, total)

    try:
        write_whole(
            target, lambda partial: write(partial, f"{folder.name}-{platform}", entries, count)
        )
    except OSError as error:
        raise CompileError(
            f"{target} can't be written ({error.strerror or error}); choose another place with -o"
        ) from error
    return f"wrote {target}: {len(entries)} files, {human_bytes(target.stat().st_size)}"


def _refuse_misfit(folder: Path, manifest: Manifest, platform: str) -> None:
    system = system_of(manifest.target["triple"])
    triple = manifest.target["triple"]
    if system != system_of(platform):
        device = DEVICE_OF_SYSTEM.get(system_of(platform), "cpu")
        raise CompileError(
            f"{folder} was compiled for {manifest.target['device']} on {triple}, which doesn't "
            f"fit --for {platform}; "
            f"compile one that does: minicpm-mlc compile CHECKPOINT --device {device}"
        )


def _entries(folder: Path, manifest: Manifest, platform: str, engine: bool) -> Iterator[Entry]:
    """README, checksums, licences, the engine if wanted, and the bundle as it is."""
    name = folder.resolve().name
    if engine:
        check_compiler()
    own = engine_files(folder, manifest, platform) if engine else {}
    programs = [Entry.of(name, *file) for name, file in own.items()]
    parts = [
        *_licences(),
        *programs,
        Entry.of(f"{name}/{MANIFEST}", (folder / MANIFEST).read_bytes()),
    ]
    for file, entry in sorted(manifest.files.items()):
        if not (folder / file).is_file():
            raise BundleError(f"{folder} lacks {file}; {REPAIR}")
        if (size := (folder / file).stat().st_size) != entry["bytes"]:
            raise BundleError(
                f"{folder / file} is damaged: it has {size} bytes, expected {entry['bytes']}; "
                f"{REPAIR}"
            )
        parts.append(Entry(f"{name}/{file}", folder / file, entry["bytes"], entry["sha256"]))
    text = readme(name, manifest, platform, manifest_sha256(folder), engine)
    parts.insert(0, Entry.of("README.md", text.encode()))
    yield Entry.of(
        "SHA256SUMS", "".join(f"{entry.sha256}  {entry.name}\n" for entry in parts).encode()
    )
    yield from parts


def _licences() -> Iterator[Entry]:
    for name in LICENSED:
        # all of the name: a checkout may stand before what is installed
        found = importlib.metadata.distributions(name=name)
        files = (file for each in found for file in each.files or [])
        texts = {
            file.name: file
            for file in files
            if file.name in ("LICENSE", "NOTICE") and ".dist-info" in file.parts[0]
        }
        if not texts:
            again = "" if distribution() == RUNTIME else f"--force-reinstall {name}"
            raise CompileError(
                f"the licence of {name} isn't installed; try: pip install {again or WHOLE}"
            )
        for file in sorted(texts.values()):
            yield Entry.of(f"licenses/{name}-{file.name}", file.read_binary())


def _write_tar(path: Path, root: str, entries: list[Entry], count: Callable[[int], None]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(f"{root}/{entry.name}")
            info.size, info.mode = entry.size, entry.mode
            with entry.open() as file:
                reader = CheckedFile(file, count)
                archive.addfile(info, reader)  # type: ignore[arg-type]
                reader.check(entry)


def _write_zip(path: Path, root: str, entries: list[Entry], count: Callable[[int], None]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            info = zipfile.ZipInfo(f"{root}/{entry.name}", EPOCH)
            info.create_system = 3
            info.external_attr = (0o100000 | entry.mode) << 16
            info.file_size = entry.size
            with entry.open() as file, archive.open(info, "w") as stored:
                reader = CheckedFile(file, count)
                while block := reader.read():
                    stored.write(block)
                reader.check(entry)


WRITERS = {".zip": _write_zip, ".tar": _write_tar}
