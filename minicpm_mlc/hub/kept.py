"""What is kept on this machine, `minicpm-mlc list`, and how it goes, `minicpm-mlc rm`: bundles that
`run` compiled, and files that a pull brought.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.partial import remove
from minicpm_mlc.base.text import human_bytes, plain_table, shown
from minicpm_mlc.hub import bundles, records

BUNDLE = "bundle"
DOWNLOAD = "download"
UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))  # seconds


@dataclass(frozen=True)
class Kept:
    """A bundle or a download: the name that it was asked by, the hub's commit, bytes on the disk,
    when it was used last (seconds since 1970), and where it is. `files`: all that `rm` takes away.
    """

    name: str
    kind: str
    revision: str
    options: str
    bytes: int
    used: float
    path: str
    files: tuple[Path, ...]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        told = asdict(self)
        del told["files"]
        return told


def kept() -> list[Kept]:
    """All of them, those used last first."""
    found = [_bundle(file, bundle) for file, bundle in bundles.compiled()]
    found += [_download(file, record) for file, record in records.all_records()]
    return sorted(found, key=lambda one: -one.used)


def _bundle(file: Path, bundle: bundles.Compiled) -> Kept:
    told = {key: value for key, value in bundle.options.items() if value}
    options = " ".join(f"--{key} {value}" for key, value in told.items()) or "-"
    size = _size(bundle.path.rglob("*"))
    used = file.stat().st_mtime
    names = bundle.source, BUNDLE, bundle.revision, options
    return Kept(*names, size, used, str(bundle.path), (bundle.path, file))


def _download(file: Path, record: records.Record) -> Kept:
    folder = Path(record.folder)
    size = _size(folder / path for path in record.files)
    ours = [folder / path for path in record.fetched if not _others_use(record, path)]
    files = (*ours, file)
    names = record.name, DOWNLOAD, record.revision, "-"
    return Kept(*names, size, file.stat().st_mtime, record.folder, files)


def _others_use(record: records.Record, path: str) -> bool:
    return any(
        other.name != record.name and other.folder == record.folder and path in other.files
        for _, other in records.all_records()
    )


def _size(files: Iterable[Path]) -> int:
    size = 0
    for file in files:
        with suppress(OSError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def as_text(found: Sequence[Kept]) -> str:
    """A table, the total below it."""
    if not found:
        return "nothing is kept; minicpm-mlc run openbmb/MiniCPM4.1-8B fetches and compiles a model"
    rows = [
        [shown(one.name), one.kind, one.options, human_bytes(one.bytes), _ago(one.used)]
        for one in found
    ]
    table = plain_table([["name", "", "options", "size", "last used"], *rows]).splitlines()
    places = ["in", *(one.path for one in found)]
    lines = [f"{line}  {place}" for line, place in zip(table, places, strict=True)]
    return "\n".join([*lines, f"{human_bytes(sum(one.bytes for one in found))} in all"])


def _ago(then: float) -> str:
    seconds = time.time() - then
    for size, unit in UNITS:
        if seconds >= size:
            count = int(seconds / size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


def chosen(name: str, kind: str | None) -> list[Kept]:
    """What `rm` of a name would take. Raises HubError, with what there is, for none."""
    named = [one for one in kept() if name in _names(one)]
    found = [one for one in named if kind in (None, one.kind)]
    if not found:
        names = ", ".join(sorted({one.name for one in kept()}))
        raise HubError(
            f"{shown(name)} is not kept here; " + (f"there is {names}" if names else "nothing is")
        )
    return found


def _names(one: Kept) -> tuple[str, ...]:
    """What a user may call it: of what was compiled from a folder, the folder's name too."""
    names = one.name, one.path, Path(one.path).name
    return (*names, Path(one.name).name) if Path(one.name).is_absolute() else names


def take_away(found: Sequence[Kept]) -> int:
    """Removes bundles, and of downloads the files that a pull brought; returns the bytes that
    became free. What other programs brought stays.
    """
    freed = 0
    for one in found:
        for path in one.files:
            freed += _size(path.rglob("*")) if path.is_dir() else 0
            freed += _remove_file(path) if not path.is_dir() else 0
            remove(path)
        if one.kind == DOWNLOAD:
            _tidy(Path(one.path))
    return freed


def _remove_file(path: Path) -> int:
    """Removes a file; where it is a link into Hugging Face's blobs, its blob too, unless another
    revision has it. Returns its bytes.
    """
    size = _size([path])
    blob = path.resolve() if path.is_symlink() else None
    remove(path)
    if blob and blob.parent.name == "blobs" and not _linked(blob):
        remove(blob)
    return size if blob is None or not blob.exists() else 0


def _linked(blob: Path) -> bool:
    snapshots = blob.parents[1] / "snapshots"
    return any(path.is_symlink() and path.resolve() == blob for path in snapshots.rglob("*"))


def _tidy(folder: Path) -> None:
    """Removes what is left of a repository in a cache when none of its files are: empty folders,
    Hugging Face's notes of revisions.
    """
    for empty in sorted(folder.rglob("*"), reverse=True):
        with suppress(OSError):
            empty.rmdir()
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
    repository = folder.parents[1]
    blobs = repository / "blobs"
    if not folder.parent.exists() and (not blobs.exists() or not any(blobs.iterdir())):
        if folder.parent.name == "snapshots":
            remove(repository)
