"""What was pulled: one small file for each name, in the user's cache folder, so that a model is
found again without its hub, and can be listed and removed.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from minicpm_mlc.base.files import cache_file, remember
from minicpm_mlc.hub.names import Name, read_name
from minicpm_mlc.hub.needed import Needed

KIND = "pulled"


@dataclass(frozen=True)
class Record:
    """A pulled model. `files`: their sizes in bytes by their path in `folder`; `main`: what of it
    is compiled; `fetched`: those that came by us, which `rm` may take away.
    """

    name: str
    revision: str
    folder: str
    main: str
    files: dict[str, int]
    hashes: dict[str, str]
    fetched: list[str]

    @property
    def path(self) -> Path:
        """What is compiled."""
        return Path(self.folder) / self.main

    @property
    def origin(self) -> str | None:
        """The name with the commit that was pulled: what brings the same files again. ModelScope
        tells no commit, so that a branch stays one.
        """
        name = read_name(self.name)
        return name and str(replace(name, revision=self.revision))

    @property
    def is_whole(self) -> bool:
        """Whether all files lie there still, with their sizes."""
        folder = Path(self.folder)
        with suppress(OSError):
            return all((folder / path).stat().st_size == n for path, n in self.files.items())
        return False


def keep(name: Name, revision: str, folder: Path, needed: Needed, fetched: list[str]) -> Record:
    """Writes down what was pulled; a user without a folder that can be written has no record."""
    others = [record.fetched for _, record in all_records() if record.folder == str(folder)]
    ours = {*fetched, *chain.from_iterable(others)}
    files = {file.path: file.size for file in needed.files}
    record = Record(
        name=str(name),
        revision=revision,
        folder=str(folder),
        main=needed.main,
        files=files,
        hashes={f.path: f.sha256 or f.git_sha1 or "" for f in needed.files},
        fetched=sorted(ours & set(files)),
    )
    with suppress(OSError, RuntimeError):
        remember(_file_of(str(name)), json.dumps(asdict(record), indent=1))
    return record


def find(name: Name) -> Record | None:
    """What was pulled under a name, and marks it as used now."""
    with suppress(OSError, RuntimeError):
        file = _file_of(str(name))
        record = _read(file)
        os.utime(file)
        return record
    return None


def all_records() -> list[tuple[Path, Record]]:
    """Every record, with its file, whose time says when it was used last."""
    with suppress(RuntimeError):
        files = sorted(_file_of("").parent.glob("*.json"))
        return [(file, record) for file in files if (record := _read(file))]
    return []


def _file_of(name: str) -> Path:
    return cache_file(KIND, name.encode())


def _read(file: Path) -> Record | None:
    """None for a file that is not there, or that somebody changed."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        return Record(**values)
    except (OSError, ValueError, TypeError):
        return None
