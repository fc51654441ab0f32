"""Files that were cut into parts, NAME-00001-of-00003.gguf: any of them stands for all.

The first part has the metadata, and each has tensors of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def open_whole(path: Path) -> GgufFile:
    """The file at `path` with the tensors of all its parts. Raises CheckpointError for a part that
    is missing, damaged or of another file.
    """
    paths = parts_of(path)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} has {len(paths) - len(missing)} of the {len(paths)} parts of "
            f"{path.name}, and not {missing[0]}; download what is missing"
        )
    first, *others = (_open_part(part, i, len(paths)) for i, part in enumerate(paths))
    for part in others:
        first.join(part)
    expected = _count(first, "split.tensors.count", len(first.tensors))
    if expected != len(first.tensors):
        raise first.error(
            f"its {len(paths)} parts have {len(first.tensors)} tensors, expected {expected}; "
            "download them again"
        )
    return first


def parts_of(path: Path) -> list[Path]:
    """Every part of the file that `path` is a part of; itself where its name doesn't say so."""
    found = PART.fullmatch(path.name)
    if not found or not 1 <= int(found[2]) <= int(found[3]):
        return [path]
    stem, _, count, suffix = found.groups()
    numbers = range(1, int(count) + 1)
    return [path.with_name(f"{stem}-{number:05}-of-{count}{suffix}") for number in numbers]


def one_file(paths: Sequence[Path]) -> bool:
    """Whether these are one file, or parts of one."""
    return len({parts_of(path)[0] for path in paths}) == 1


def whole_name(path: Path) -> str:
    """The file's name without its suffix and part."""
    found = PART.fullmatch(path.name)
    return found[1] if found else path.stem


def _open_part(path: Path, index: int, count: int) -> GgufFile:
    file = GgufFile(path)
    place = _count(file, "split.no", 0), _count(file, "split.count", 1)
    if place == (index, count):
        return file
    seen = f"part {place[0] + 1} of {place[1]}"
    if count == 1:
        raise file.error(
            f"is one part of a split file, {seen}; name it NAME-00001-of-0000N.gguf again, beside "
            "the others"
        )
    raise file.error(f"is {seen}, expected part {index + 1} of {count}; download it again")


def _count(file: GgufFile, key: str, default: int) -> int:
    found = file.metadata.get(key, default)
    if type(found) is not int:
        raise file.error(f"{key} is {found!r:.40}, expected a whole number; download it again")
    return found
