"""A model's name becomes a path on this machine: what is missing of it is fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import human_bytes, shown
from minicpm_mlc.bundle.supported import check_system
from minicpm_mlc.hub import records
from minicpm_mlc.hub.listing import Listing, RemoteFile
from minicpm_mlc.hub.names import EXAMPLES, FORM, MODELSCOPE, Name, parse_name
from minicpm_mlc.hub.needed import needed_files
from minicpm_mlc.hub.transfer import Counter, UnreachableError

SPARE = 64 << 20  # bytes that a disk keeps free


class Hub(Protocol):
    """What is asked of each hub; every method may raise HubError."""

    @property
    def cache(self) -> Path:
        """Where files are kept."""
        ...

    def listing(self, name: Name) -> Listing:
        """What the repository holds now."""
        ...

    def missing(self, name: Name, listing: Listing, files: list[RemoteFile]) -> list[RemoteFile]:
        """Those that are not in the cache."""
        ...

    def fetch(
        self, name: Name, listing: Listing, files: list[RemoteFile], counter: Counter
    ) -> Path:
        """Brings the files into the cache; their folder."""
        ...

    def beginning(self, name: Name, listing: Listing, file: RemoteFile, count: int) -> bytes:
        """The first bytes of a file."""
        ...

    def cached(self, name: Name) -> Path | None:
        """The folder of what was fetched before, without asking the hub."""
        ...


@dataclass(frozen=True)
class Pulled:
    """A model on this machine: what to compile, what the hub calls it (None for a path), and how
    many bytes came now.
    """

    path: Path
    record: records.Record | None = None
    fetched: int = 0

    def json(self) -> str:
        """One JSON object."""
        told = asdict(self.record) if self.record else {}
        return json.dumps({"path": str(self.path), "downloaded": self.fetched, **told})

    def plain(self) -> str:
        """One line."""
        if self.record is None:
            return f"{self.path} is on this machine"
        size = human_bytes(sum(self.record.files.values()))
        came = human_bytes(self.fetched) if self.fetched else "nothing new"
        return f"{self.record.name}: {size} in {self.path} ({came} was downloaded)"


def open_hub(name: Name) -> Hub:
    """The hub of a name. Raises HubError, with the pip command, where its library is missing."""
    if name.hub == MODELSCOPE:
        from minicpm_mlc.hub.modelscope import ModelScope

        return ModelScope()
    from minicpm_mlc.hub.huggingface import HuggingFace

    return HuggingFace()


def pull_source(source: str, progress: Progress, say: Callable[[str], object]) -> Pulled:
    """The same as `pull` for what a user typed; a path stands for itself. Raises HubError for what
    is neither on this machine nor a name.
    """
    if name := parse_name(source):
        return pull(name, progress, say)
    if Path(source).exists():
        return Pulled(Path(source))
    raise HubError(f"{shown(source)} is neither here nor a name: give {FORM}, such as {EXAMPLES}")


def local_source(
    source: str, progress: Progress, say: Callable[[str], object]
) -> tuple[str, str | None]:
    """The path that a source stands for: itself, or where its repository was pulled to; and of a
    repository its name with the commit that was pulled.
    """
    name = parse_name(source)
    if name is None:
        return source, None
    pulled = pull(name, progress, say)
    return str(pulled.path), pulled.record and pulled.record.origin


def local_path(source: str, progress: Progress, say: Callable[[str], object]) -> str:
    """The path alone."""
    return local_source(source, progress, say)[0]


def local_adapter(given: str, progress: Progress, say: Callable[[str], object]) -> str:
    """The same for SOURCE[:WEIGHT] of a LoRA adapter."""
    source, _, weight = given.rpartition(":")
    if source and weight.replace(".", "", 1).isdecimal():
        return f"{local_path(source, progress, say)}:{weight}"
    return local_path(given, progress, say)


def pull(
    name: Name, progress: Progress = no_progress, say: Callable[[str], object] = print
) -> Pulled:
    """Fetches what is missing of a model. Where the hub can't be reached, what was fetched before
    is used, and `say` is told so.

    Raises HubError, and UnsupportedSystemError where nothing could be done with the files.
    """
    check_system()
    hub = open_hub(name)
    try:
        listing = hub.listing(name)
    except UnreachableError as error:
        return _without_hub(hub, name, error, say)
    needed = needed_files(listing.files, name.choice, str(name))
    missing = hub.missing(name, listing, needed.files)
    size = sum(file.size for file in missing)
    _need_room(hub.cache, size)
    try:
        folder = hub.fetch(name, listing, needed.files, Counter(size, progress))
    except UnreachableError as error:
        raise HubError(f"{error}; the same command goes on where this one ended") from error
    record = records.keep(name, listing.revision, folder, needed, [file.path for file in missing])
    return Pulled(folder / needed.main, record, size)


def _without_hub(
    hub: Hub, name: Name, error: UnreachableError, say: Callable[[str], object]
) -> Pulled:
    record = records.find(name)
    if record and record.is_whole:
        say(f"{error}: what was downloaded before is used")
        return Pulled(record.path, record)
    folder = hub.cached(name)
    if folder is None:
        other = "" if name.hub == MODELSCOPE else f", or try {MODELSCOPE}:{name.repository}"
        raise HubError(
            f"{error}, and {name} was not downloaded before; see the network and type the same "
            f"command{other}; no folder of this machine has that name either"
        )
    files = [
        RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    needed = needed_files(files, name.choice, f"what was downloaded of {name}")
    say(f"{error}: what was downloaded before is used")
    return Pulled(folder / needed.main, records.keep(name, folder.name, folder, needed, []))


def _need_room(cache: Path, size: int) -> None:
    """Raises HubError where the disk of the cache has less room than the download needs."""
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if size and free < size + SPARE:
        raise HubError(
            f"the download needs {human_bytes(size)} and the disk of {cache} has "
            f"{human_bytes(free)} free; free some space (minicpm-mlc list, rm), or set "
            "HF_HUB_CACHE or MODELSCOPE_CACHE to a folder on another disk"
        )
