"""What the forms of quantised linears share: a linear's stored tensors, and integers in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.tensor import Quantised, Tensor, contiguous_groups
from minicpm_mlc.ops.formats.bfloat16 import bfloat16_numbers

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Linear:
    """The stored tensors of the linear `at`, by the ends of their names; those that were asked
    for are in `used`.
    """

    at: str
    found: Found
    used: dict[str, int] = field(default_factory=dict)

    def has(self, end: str) -> bool:
        """Whether there is such a tensor."""
        return f"{self.at}.{end}" in self.found

    def array(self, end: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> np.ndarray:
        """A view of a tensor in the dtype of the file; of bf16, of its bits. Raises
        CheckpointError where it is missing, or of another dtype or shape.
        """
        name = f"{self.at}.{end}"
        if name not in self.found:
            raise CheckpointError(f"tensor {name} is missing; download the checkpoint again")
        file = self.found[name]
        file.expect(name, dtypes, *shapes)
        self.used[name] = file.entries[name].nbytes
        return file.array(name)

    def ignore(self, end: str) -> None:
        """A tensor that may be there and stands for no numbers."""
        if self.has(end):
            self.used[f"{self.at}.{end}"] = 0

    def rows_of(self, end: str) -> int:
        """The first size of a tensor; 0 where there is none."""
        name = f"{self.at}.{end}"
        shape = self.found[name].entries[name].shape if name in self.found else ()
        return shape[0] if shape else 0

    def columns_of(self, end: str) -> int:
        """The last size of a matrix; 0 where there is none."""
        name = f"{self.at}.{end}"
        shape = self.found[name].entries[name].shape if name in self.found else ()
        return shape[1] if len(shape) == 2 else 0

    def numbers(self, end: str, *shapes: tuple[int, ...]) -> Numbers:
        """A tensor of floats, as `array` gives them."""
        return Numbers(self.array(end, FLOATS, *shapes))

    def error(self, end: str, wrong: str) -> CheckpointError:
        """The error of a tensor."""
        name = f"{self.at}.{end}"
        return CheckpointError(f"{self.path(end)}: tensor {name} {wrong}")

    def path(self, end: str) -> Path:
        """The file that holds a tensor."""
        return self.found[f"{self.at}.{end}"].path


@dataclass(frozen=True)
class Numbers:
    """A view of floats in a file, of f16, f32 or bf16's bits; what is picked comes as float32."""

    stored: np.ndarray

    def __getitem__(self, place: tuple[slice, ...] | slice) -> np.ndarray:
        picked = np.ascontiguousarray(self.stored[place])
        return bfloat16_numbers(picked) if picked.dtype.kind == "u" else picked.astype(np.float32)

    def transposed(self) -> Numbers:
        """The same with rows and columns exchanged."""
        return Numbers(self.stored.T)


class LinearTensor(Tensor):
    """A published matrix that a linear's stored tensors stand for."""

    def __init__(self, linear: Linear, shape: tuple[int, ...], form: str) -> None:
        self._linear, self._shape, self._form = linear, shape, form

    @property
    def form(self) -> str:
        return self._form

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def nbytes(self) -> int:
        return sum(self._linear.used.values())

    @property
    def stored(self) -> tuple[str, ...]:
        return tuple(self._linear.used)


class QuantisedLinear(LinearTensor, Quantised):
    """The same of integers."""


def column_groups(linear: Linear, end: str, columns: int, count: int) -> np.ndarray:
    """The group of each column: as a tensor says, else equally many neighbours."""
    if not linear.has(end):
        return contiguous_groups(columns, count)
    groups = linear.array(end, ("I32",), (columns,)).astype(np.int64)
    if groups.min() < 0 or groups.max() >= count:
        wrong = f"names groups {groups.min()} to {groups.max()} of {count}; download it again"
        raise linear.error(end, wrong)
    return groups


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of each row's little-endian bit stream, as uint8; rows are 32-bit
    words [..., n].
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = raw[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return values.reshape(*raw.shape[:-1], -1)[..., :count]
    stream = np.unpackbits(raw, axis=-1, count=count * bits, bitorder="little")
    stream = stream.reshape(*raw.shape[:-1], count, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def unpack_columns(words: np.ndarray, bits: int, start: int, stop: int) -> np.ndarray:
    """Numbers [start, stop) of each row of words [rows, n], whose size divides a word's."""
    each = 32 // bits
    first = start // each
    values = unpack(words[:, first : -(-stop // each)], bits, stop - first * each)
    return values[:, start - first * each :]
