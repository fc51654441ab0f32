"""kernel-cases.npz: for every kernel of a bundle's library, arguments and what the NumPy
definitions make of them.

Arrays are stored small and repeated to the kernel's shapes, so that the cases of any model take
some hundred KB.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import REPAIR
from minicpm_mlc.bundle.manifest_schema import INT32
from minicpm_mlc.bundle.npy import from_npy
from minicpm_mlc.bundle.schema import (
    an_object,
    boolean,
    fields,
    list_of,
    number,
    optional,
    row_of,
    text,
    whole,
)

KERNEL_CASES = "kernel-cases.npz"
INDEX = "index"
VALUES = 33  # numbers that a group of words stands for
WORDS = 10  # int32 of one group of 32 int8 activations (ops/cpu/quantize_rows.py)
_TILED = row_of(whole(), list_of(whole(0, INT32)))
_EXPECTED = row_of(whole(), _TILED, optional(whole()), boolean)
_RECORD = fields({"file": text, "operator": text, "fields": an_object})
_INDEX = list_of(
    fields(
        {
            "kernel": text,
            "record": _RECORD,
            "limit": number,
            "inputs": list_of(_TILED),
            "expected": list_of(_EXPECTED, least=1),
        }
    )
)
# what zipfile raises for damaged archives
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True, eq=False)
class Tiled:
    """An array of `shape`: `tile` repeated along every axis, the last repetition cut where the axis
    ends.
    """

    tile: np.ndarray
    shape: tuple[int, ...]

    @staticmethod
    def whole(array: np.ndarray) -> Tiled:
        """An array stored as it is."""
        return Tiled(array, array.shape)

    @staticmethod
    def checked(tile: np.ndarray, shape: tuple[int, ...]) -> Tiled:
        """The same of numbers that a file gave. Raises ValueError where no tile of a `shape` has
        this one's.
        """
        sizes = zip(tile.shape, shape, strict=False)
        if len(shape) != tile.ndim or any(a > b or (b and not a) for a, b in sizes):
            raise ValueError(f"{list(tile.shape)} is no tile of {list(shape)}")
        return Tiled(tile, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.tile.itemsize

    def array(self) -> np.ndarray:
        """The whole array, contiguous and new."""
        array = self.tile
        for axis, size in enumerate(self.shape):
            if array.shape[axis] != size:
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        return np.array(array, order="C")


@dataclass(frozen=True, eq=False)
class Expected:
    """What argument number `argument` holds after the call.

    `places` None: `values`. Else the argument is an input too, and holds `values` at these flat
    places; the rest is as it was. `words`: it holds int8 activations as quantize_rows writes them,
    and `values` is what they stand for.
    """

    argument: int
    values: Tiled
    places: np.ndarray | None = None
    words: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a kernel on inputs, then outputs. NMSE above `limit` is an error; 0 means that
    every bit counts. `record`: what the kernel was compiled for, as Operator.to_json says it.
    """

    kernel: str
    record: Mapping[str, Any]
    limit: float
    inputs: Sequence[Tiled]
    expected: Sequence[Expected]

    @property
    def operator(self) -> str:
        """The operator's name."""
        return self.record["operator"]

    @property
    def nbytes(self) -> int:
        """Bytes of all its arguments."""
        return sum(tiled.nbytes for tiled in (*self.inputs, *(e.values for e in self.expected)))

    def is_whole(self) -> bool:
        """Whether what is expected is of inputs that are there, at places within them, then of
        outputs in their order.
        """
        written = [each for each in self.expected if each.places is None]
        first = len(self.inputs)
        in_order = [each.argument for each in written] == [*range(first, first + len(written))]
        return in_order and all(map(self._holds, self.expected))

    def _holds(self, expected: Expected) -> bool:
        shape, places = expected.values.shape, expected.places
        if places is None:
            return not expected.words or (len(shape) > 1 and shape[-1] == VALUES)
        if expected.words or expected.argument >= len(self.inputs):
            return False
        size = prod(self.inputs[expected.argument].shape)
        fits = places.dtype == np.int32 and shape == places.shape and places.ndim == 1
        return fits and bool(((places >= 0) & (places < size)).all())


def word_values(words: np.ndarray) -> np.ndarray:
    """What words int32 [m, groups, 10] of quantize_rows stand for, float64 [m, groups, 33].

    They are the values and, made about as large as one, the multiple of their sum.
    """
    scale = words[..., 8:9].view(np.float32).astype(np.float64)
    integers = np.ascontiguousarray(words[..., :8]).view(np.int8)
    return np.concatenate([integers, words[..., 9:] / 64], -1) * scale


def to_bytes(cases: Sequence[Case]) -> bytes:
    """The file's bytes, the same for the same cases. Equal arrays are stored once."""
    stored: dict[bytes, tuple[int, np.ndarray]] = {}

    def place(array: np.ndarray) -> int:
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        return stored.setdefault(key, (len(stored), np.asarray(array, order="C")))[0]

    def tiled(value: Tiled) -> list:
        return [place(value.tile), value.shape]

    index = [
        {
            "kernel": case.kernel,
            "record": case.record,
            "limit": case.limit,
            "inputs": [tiled(value) for value in case.inputs],
            "expected": [
                [
                    e.argument,
                    tiled(e.values),
                    None if e.places is None else place(e.places),
                    e.words,
                ]
                for e in case.expected
            ],
        }
        for case in cases
    ]
    file = io.BytesIO()
    arrays = {str(number): array for number, array in stored.values()}
    np.savez(file, **{INDEX: np.frombuffer(json.dumps(index).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_bytes(data: bytes) -> list[Case]:
    """The cases of a file's bytes. Raises ValueError for other bytes."""
    try:
        arrays = _arrays(data)
        index = json.loads(arrays.pop(INDEX).tobytes())
    except (KeyError, RecursionError, *_ZIP_ERRORS) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    _INDEX(index)
    return [_case(entry, arrays) for entry in index]


def load_cases(folder: Path, name: str = KERNEL_CASES) -> list[Case]:
    """The cases of a bundle, in the file that it calls `name`. Raises BundleError if it has
    none.
    """
    path = folder / name
    try:
        return from_bytes(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {name}, it is older; compile it again: minicpm-mlc compile"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} can't be read ({error}); {REPAIR}") from None


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a zip archive that packs nothing, as NumPy writes it: what is read is never
    larger than the archive.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        packed = any(each.compress_type != zipfile.ZIP_STORED for each in entries)
        if packed or sum(each.file_size for each in entries) > len(data):
            raise ValueError("its arrays are packed, or larger than the file")
        read = archive.read
        return {each.filename.removesuffix(".npy"): from_npy(read(each)) for each in entries}


def _case(entry: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Case:
    def stored(number: int) -> np.ndarray:
        if str(number) not in arrays:
            raise ValueError(f"{entry['kernel']}: array {number} isn't there")
        return arrays[str(number)]

    def tiled(value: list[Any]) -> Tiled:
        return Tiled.checked(stored(value[0]), tuple(value[1]))

    expected = [
        Expected(argument, tiled(values), None if places is None else stored(places), words)
        for argument, values, places, words in entry["expected"]
    ]
    inputs = [tiled(value) for value in entry["inputs"]]
    case = Case(entry["kernel"], entry["record"], entry["limit"], inputs, expected)
    if not case.is_whole():
        raise ValueError(f"{case.kernel}: what it should write doesn't go with what it is given")
    return case
