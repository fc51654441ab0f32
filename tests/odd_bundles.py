"""Copies of bundles with other bytes, whose manifests fit them: what hashes alone don't catch."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minicpm_mlc.bundle.trust import allow

Way = tuple[str | int, ...]
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 7, 2**31, 2**40, 10**400, 0.5, 1e308, "", "x", "../x", "\x1b[2J"),
    *("\ud800", [], [[1]], [None], {}, {"x": 1}, [1, 1099511627776]),
)


def copy_of(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle's files."""
    return Path(shutil.copytree(bundle, folder))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> str:
    """Make the manifest fit the files again, then change it; returns its SHA-256."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256}
    if change:
        change(manifest)
    file.write_text(json.dumps(manifest))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def rewrite_allowed(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """The same, for a bundle that may run all the same."""
    allow(rewrite(folder, change))
    return folder


def ways(value: Any, way: Way = ()) -> Iterator[Way]:
    """The way to every value that holds no other, and to every list and object."""
    if way:
        yield way
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            yield from ways(child, (*way, key))


def put(value: Any, way: Way, new: Any) -> None:
    """Set what it leads to."""
    for key in way[:-1]:
        value = value[key]
    value[way[-1]] = copy.deepcopy(new)


def drop(value: Any, way: Way) -> None:
    """Delete what it leads to."""
    for key in way[:-1]:
        value = value[key]
    del value[way[-1]]
