"""The bundles of `minicpm-mlc run`: one for each source and its options, in the user's cache
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc import __version__
from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.files import cache_folder, remember
from minicpm_mlc.base.installed import check_compiler
from minicpm_mlc.base.progress import Progress
from minicpm_mlc.bundle.host import this_host
from minicpm_mlc.bundle.manifest import ABI, FORMAT, MANIFEST
from minicpm_mlc.bundle.tvm_runtime import tvm_version
from minicpm_mlc.hub import records
from minicpm_mlc.hub.names import Name, parse_name
from minicpm_mlc.hub.pull import pull

KIND = "bundles"
KEY_DIGITS = 12
Say = Callable[[str], object]
# compiles a path into a bundle at another, which says that it is of this name and commit
Make = Callable[[str, Path, str | None], object]


@dataclass(frozen=True)
class Compiled:
    """A bundle that `run` compiled: the source as it was typed, its commit on the hub, if any, and
    the options.
    """

    source: str
    revision: str
    options: dict[str, Any]
    path: Path


def bundle_for(
    source: str,
    options: dict[str, Any],
    make: Make,
    progress: Progress,
    say: Say,
    again: bool = False,
) -> Path:
    """The bundle of a source: the one that is kept, or one that `make` compiles now, of what is
    pulled where nothing was. A hub is asked only where something is missing. `again`: compile it
    even if it is kept.

    Raises HubError, CompileError where there is no compiler, and what `make` raises.
    """
    if (Path(source) / MANIFEST).is_file():
        raise HubError(f"{source} is a bundle already: minicpm-mlc chat {source}")
    name = parse_name(source)
    place = _place(source, options, _known(name) if name else _stamp(source))
    if again or place is None or not (place / MANIFEST).is_file():
        check_compiler()
        path, facts = _fetch(name, progress, say) if name else (source, _stamp(source))
        place = _place(source, options, facts)
        assert place, "what was fetched is known"
        if again or not (place / MANIFEST).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            record = _record(name)
            make(path, place, record and record.origin)
    record = _record(name)
    _remember(Compiled(source, record.revision if record else "", options, place))
    return place


def _record(name: Name | None) -> records.Record | None:
    return records.find(name) if name else None


def compiled() -> Iterator[tuple[Path, Compiled]]:
    """Every bundle that is kept, with the file whose time says when it ran last."""
    with suppress(RuntimeError):
        for file in sorted((cache_folder() / KIND).glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                values = json.loads(file.read_text(encoding="utf-8"))
                source, revision = str(values["source"]), str(values["revision"])
                bundle = file.with_suffix("")
                yield file, Compiled(source, revision, dict(values["options"]), bundle)


def _fetch(name: Name, progress: Progress, say: Say) -> tuple[str, str]:
    """The path to compile, and what tells its content."""
    record = records.find(name)
    if record is None or not record.is_whole:
        record = pull(name, progress, say).record
    assert record, "what was pulled has a record"
    return str(record.path), _facts(record)


def _known(name: Name) -> str | None:
    record = records.find(name)
    return _facts(record) if record else None


def _facts(record: records.Record) -> str:
    return json.dumps([record.revision, record.hashes], sort_keys=True)


def _stamp(source: str) -> str:
    """Name, size and time of a path's files."""
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return json.dumps([str(path.absolute()), told])


def _place(source: str, options: dict[str, Any], facts: str | None) -> Path | None:
    """Where the bundle is kept. None where nothing is known of the source yet."""
    if facts is None:
        return None
    host = this_host()
    programs = [FORMAT, ABI, __version__, tvm_version()]
    machine = [host.system, host.machine, sorted(host.features or ())]
    told = json.dumps([facts, sorted(options.items()), programs, machine])
    key = hashlib.sha256(told.encode()).hexdigest()[:KEY_DIGITS]
    name = parse_name(source)
    label = name.repository.rpartition("/")[2] if name else Path(source).absolute().name
    try:
        return cache_folder() / KIND / f"{label.removesuffix('.gguf')}-{key}"
    except RuntimeError:
        raise HubError(
            "there is no home folder to keep bundles in: set XDG_CACHE_HOME, or compile and chat"
        ) from None


def _remember(bundle: Compiled) -> None:
    """Writes down whose bundle it is, and that it ran now."""
    file = bundle.path.with_name(f"{bundle.path.name}.json")
    told = {"source": bundle.source, "revision": bundle.revision, "options": bundle.options}
    with suppress(OSError):
        if not file.exists():
            remember(file, json.dumps(told))
        os.utime(file)
