"""kernel-cases.npz: for every kernel of a bundle's library, arguments and what the NumPy
definitions make of them.

Arrays are stored small and repeated to the kernel's shapes, so that the cases of any model take
some hundred KB.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import REPAIR

KERNEL_CASES = "kernel-cases.npz"
INDEX = "index"
WORDS = 10  # int32 of one group of 32 int8 activations (ops/cpu/quantize_rows.py)


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

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(np.prod(self.shape)) * self.tile.itemsize

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
        return stored.setdefault(key, (len(stored), array))[0]

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
    """The cases of a file's bytes. Raises ValueError, KeyError or BadZipFile for other bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [_case(entry, arrays) for entry in json.loads(arrays[INDEX].tobytes())]


def load_cases(folder: Path) -> list[Case]:
    """The cases of a bundle. Raises BundleError if it has none."""
    path = folder / KERNEL_CASES
    try:
        return from_bytes(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {KERNEL_CASES}, it is older; compile it again: minicpm-mlc compile"
        ) from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} can't be read ({error}); {REPAIR}") from None


def _case(entry: dict, arrays: np.lib.npyio.NpzFile) -> Case:
    def tiled(value: list) -> Tiled:
        return Tiled(arrays[str(value[0])], tuple(value[1]))

    expected = [
        Expected(argument, tiled(values), None if places is None else arrays[str(places)], words)
        for argument, values, places, words in entry["expected"]
    ]
    inputs = [tiled(value) for value in entry["inputs"]]
    return Case(entry["kernel"], entry["record"], entry["limit"], inputs, expected)
