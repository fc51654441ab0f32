"""Files of torch.save without torch, and without running what a pickle asks for.

Such a file is a zip: data.pkl describes the object, and data/0, data/1, ... hold the tensors'
numbers, uncompressed. Only plain values and tensors are built; a pickle that names anything else is
refused.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.safetensors import ITEM_BYTES, Entry, SafetensorsFile

MAX_PICKLE = 64 << 20  # bytes; tensors' numbers are outside
LOCAL_HEADER = 30  # bytes of a zip member's header before its name
STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
} | {"LongStorage": "I64", "IntStorage": "I32", "BoolStorage": "BOOL"}


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in the zip: which member, and from which element on."""

    member: str
    dtype: str
    offset: int
    shape: tuple[int, ...]


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
        nbytes, begin = (
            math.prod(place.shape) * ITEM_BYTES[place.dtype],
            place.offset * ITEM_BYTES[place.dtype],
        )
        if info.compress_type != zipfile.ZIP_STORED or begin + nbytes > info.file_size:
            raise self._error(
                f"member {place.member} is compressed or too short; download it again"
            )
        return Entry(
            place.dtype, place.shape, info.header_offset + LOCAL_HEADER + names + begin, nbytes
        )


def read_numbers(path: Path) -> list[Any]:
    """The list that torch.save wrote, or the elements of its int64 tensor. Raises CheckpointError
    for anything else.
    """
    with _damage_named(path):
        archive, value = _open(path)
        if isinstance(value, TensorPlace) and value.dtype == "I64" and len(value.shape) == 1:
            numbers = memoryview(archive.read(value.member)).cast("q")
            return numbers[value.offset :][: value.shape[0]].tolist()
    if isinstance(value, list):
        return value
    raise CheckpointError(f"{path} is not a list of whole numbers")


def _open(path: Path) -> tuple[zipfile.ZipFile, Any]:
    """The archive and the object that its pickle describes, tensors as TensorPlace."""
    archive = zipfile.ZipFile(path)
    pickles = [
        info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"
    ]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
        raise zipfile.BadZipFile("no data.pkl")
    root = pickles[0].filename.rpartition("/")[0]
    return archive, _Unpickler(io.BytesIO(archive.read(pickles[0])), f"{root}/data/").load()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Zip and pickle raise nearly anything for damaged bytes; all of it becomes one
    CheckpointError.
    """
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except _RefusedError as error:
        raise CheckpointError(
            f"{path} holds {error}, not just numbers; it was not loaded"
        ) from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole file of torch.save ({type(error).__name__}: {error}); "
            "download it again"
        ) from error


class _RefusedError(Exception):
    """A pickle that names what is not a number, a container or a tensor."""


class _Unpickler(pickle.Unpickler):
    """Builds plain values; tensors become TensorPlace."""

    def __init__(self, file: io.BytesIO, folder: str) -> None:
        super().__init__(file)
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """The few globals that tensors are made of. Raises _RefusedError for any other."""
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in allowed:
            raise _RefusedError(f"{module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """dtype and place in the archive of one storage. Raises _RefusedError for other objects."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in ITEM_BYTES:
            raise _RefusedError(f"a {kind}")
        return dtype, f"{self._folder}{key}"


def _tensor(
    storage: tuple[str, str], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> TensorPlace:
    (dtype, member), step = storage, 1
    for size, own in zip(reversed(shape), reversed(stride), strict=True):
        if own != step and size > 1:
            raise ValueError(f"a tensor of shape {shape} with strides {stride}")
        step *= size
    if not all(type(n) is int and n >= 0 for n in (offset, *shape)):
        raise ValueError(f"a tensor of shape {shape} at {offset}")
    return TensorPlace(member, dtype, offset, tuple(shape))
