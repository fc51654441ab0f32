"""Files of torch.save without torch, and without running what a pickle asks for.

Such a file is a zip: data.pkl describes the object, and data/0, data/1, ... hold the tensors'
numbers. Nothing in it is compressed.
"""

from __future__ import annotations

import math
import mmap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.safetensors import ITEM_BYTES, Entry, SafetensorsFile
from minicpm_mlc.compile.checkpoint.torch_pickle import RefusedError, TensorPlace, build

MAX_PICKLE = 2 << 20  # bytes; tensors' numbers are outside
MAX_MEMBERS = 10_000  # one for each tensor
MEMBER = b"PK\x01\x02"  # begins a member's entry in the zip's directory
LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class TorchFile(SafetensorsFile):
    """A state dict saved by torch, read as a safetensors file is. Raises CheckpointError for
    anything else.
    """

    def _read_entries(self) -> dict[str, Entry]:
        with _damage_named(self.path):
            archive, value = _open(self.path)
            if not isinstance(value, dict) or not all(
                isinstance(v, TensorPlace) for v in value.values()
            ):
                raise self._error("is not a dict of tensors; save the model's state_dict()")
            return {str(name): self._place(archive, place) for name, place in value.items()}

    def _place(self, archive: zipfile.ZipFile, place: TensorPlace) -> Entry:
        info = archive.getinfo(place.member)
        header = self._map[info.header_offset : info.header_offset + LOCAL_HEADER].tobytes()
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        item = ITEM_BYTES[place.dtype]
        nbytes, begin = math.prod(place.shape) * item, place.offset * item
        start = info.header_offset + LOCAL_HEADER + names + begin
        held = _is_stored(info) and begin + nbytes <= info.file_size
        if not held or start + nbytes > self._map.size:
            raise self._error(
                f"member {place.member:.80} is compressed or too short; download it again"
            )
        return Entry(place.dtype, place.shape, start, nbytes)


def read_numbers(path: Path) -> list[Any]:
    """The list that torch.save wrote, or the elements of its int64 tensor. Raises CheckpointError
    for anything else.
    """
    with _damage_named(path):
        archive, value = _open(path)
        if isinstance(value, TensorPlace) and value.dtype == "I64" and len(value.shape) == 1:
            numbers = memoryview(_content(archive, archive.getinfo(value.member))).cast("q")
            return numbers[value.offset :][: value.shape[0]].tolist()
    if isinstance(value, list):
        return value
    raise CheckpointError(f"{path} is not a list of whole numbers")


def _open(path: Path) -> tuple[zipfile.ZipFile, Any]:
    """The archive and the object that its pickle describes, tensors as TensorPlace."""
    _check_directory(path)
    archive = zipfile.ZipFile(path)
    pickles = [
        info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"
    ]
    if len(pickles) != 1:
        raise zipfile.BadZipFile("no data.pkl")
    root = pickles[0].filename.rpartition("/")[0]
    return archive, build(_content(archive, pickles[0]), f"{root}/data/")


def _check_directory(path: Path) -> None:
    """zipfile makes an object of a kilobyte for each member, so they are counted before."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        for _ in range(MAX_MEMBERS + 1):
            at = data.find(MEMBER, at + 1)
            if at < 0:
                return
    raise zipfile.BadZipFile(f"more than {MAX_MEMBERS:,} members")


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if not _is_stored(info) or info.file_size > MAX_PICKLE:
        raise zipfile.BadZipFile(
            f"{info.filename:.80} is compressed, or larger than {MAX_PICKLE:,} bytes"
        )
    return archive.read(info)


def _is_stored(info: zipfile.ZipInfo) -> bool:
    """Whether a member lies in the file as it is, as torch.save writes it."""
    return info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Zip and pickle raise nearly anything for damaged bytes; all of it becomes one
    CheckpointError.
    """
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except RefusedError as error:
        raise CheckpointError(
            f"{path} holds {error!s:.200}, not just numbers; it was not loaded"
        ) from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole file of torch.save ({type(error).__name__}: {error!s:.200}); "
            "download it again"
        ) from error
