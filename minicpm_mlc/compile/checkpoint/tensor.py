"""One tensor of a checkpoint, by its published name and shape, in whatever form it is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme
from minicpm_mlc.ops.formats.weights.groups import GroupScheme

BYTE = 255  # the largest zero point
SAMPLED_ROWS = 16  # of a tensor, for what holds it and for the error of quantising it


class Tensor(ABC):
    """A vector, or a matrix [rows, columns]. Nothing of it is read before it is asked for."""

    @property
    def quantised(self) -> bool:
        """Whether it is stored as integers."""
        return True

    @property
    @abstractmethod
    def form(self) -> str:
        """What messages call it: BF16, Q4_0."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The published shape."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes as stored."""

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the file's tensors that it is made of."""
        return ()

    @abstractmethod
    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 rows [start:stop), in memory of their own."""

    def carried(self, scheme: Scheme, start: int, stop: int) -> Parts | None:
        """The rows as `scheme` quantises them, with the integers that are stored, and their scales
        and minimums, at most rounded to f16; None where the scheme doesn't hold the integers.
        """
        return None

    @cached_property
    def holders(self) -> tuple[str, ...]:
        """The schemes that hold its integers, as far as its first rows tell, the smallest first."""
        stop = min(SAMPLED_ROWS, self.shape[0])
        return tuple(name for name in schemes_by_size() if self.carried(SCHEMES[name], 0, stop))

    @property
    def scheme(self) -> str:
        """The smallest scheme that holds it; where none does, the one that loses least."""
        return (*self.holders, "w8")[0]

    def error(self, scheme: Scheme, name: str) -> tuple[float, float]:
        """Squared error of the first rows in a scheme, and the square of these rows."""
        rows = self.rows(0, SAMPLED_ROWS)
        parts = self.carried(scheme, 0, len(rows)) or scheme.quantize(rows, name)
        difference = scheme.dequantize(parts) - rows
        return float(np.square(difference).sum()), float(np.square(rows).sum())

    @property
    def odd_groups(self) -> int:
        """Groups of 32 columns that are rounded where a scheme carries all others."""
        return 0


@dataclass(frozen=True)
class Derived(Tensor):
    """A matrix in the place of another one, `base`, of the same shape."""

    base: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    @property
    def stored(self) -> tuple[str, ...]:
        return self.base.stored


def bytes_of(name: str) -> int:
    """What some weights take in a scheme."""
    return sum(tensor.nbytes for tensor in SCHEMES[name].tensors(16, 4096))


@cache
def schemes_by_size() -> tuple[str, ...]:
    """All schemes, the smallest first."""
    return tuple(sorted(SCHEMES, key=bytes_of))


@dataclass(frozen=True)
class Dense(Tensor):
    """A tensor of floats in a file."""

    file: SafetensorsFile
    name: str

    @property
    def quantised(self) -> bool:
        return False

    @property
    def form(self) -> str:
        return self.file.entries[self.name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.entries[self.name].shape

    @property
    def nbytes(self) -> int:
        return self.file.entries[self.name].nbytes

    @property
    def stored(self) -> tuple[str, ...]:
        return (self.name,)

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.file.rows(self.name, start, stop)


@dataclass(frozen=True)
class Integers:
    """Rows of a quantised matrix: w = scale * (value - zero), or scale * value + minimum.

    `values` are uint8 [n, k]; for each group of columns there are a `scale`, float32 [n, groups],
    and either a `zero`, one whole number or as many, or a `minimum`, float32. `groups`, of a
    column each, say which one is its own.
    """

    values: np.ndarray
    scale: np.ndarray
    groups: np.ndarray
    zero: np.ndarray | int = 0
    minimum: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """float32 [n, k]."""
        with damaged_scales():
            weights = self._of_columns(self.scale) * self._numbers(self.groups)
            return weights if self.minimum is None else weights + self._of_columns(self.minimum)

    def carried(self, scheme: Scheme) -> Parts | None:
        """The same values in a scheme, with its group tensors; None where a column's group is not
        its neighbours', or a number is none of the scheme's.
        """
        if not isinstance(scheme, GroupScheme) or len(self.groups) % scheme.group:
            return None
        runs = self.groups.reshape(-1, scheme.group)
        if (runs != runs[:, :1]).any():
            return None
        with damaged_scales():
            found = self._stored_as({tensor.name for tensor in scheme.group_tensors})
        if found is None:
            return None
        numbers, others = found
        lowest, highest = scheme.limits
        if numbers.min() < lowest or numbers.max() > highest:
            return None
        firsts = {t: others[t.name][:, runs[:, 0]] for t in scheme.group_tensors}
        with damaged_scales():
            parts = {t.name: part.astype(t.dtype) for t, part in firsts.items()}
        if not all(np.isfinite(part).all() for part in parts.values()):
            return None
        return {"weight": scheme.stored(numbers)} | parts

    def _stored_as(self, names: set[str]) -> tuple[np.ndarray, Parts] | None:
        """Numbers, and what is beside them under these names; None where that can't say them."""
        values, of_scale = self.values.astype(np.int16), {"scale": self.scale}
        if names == {"scale", "minimum"}:
            minimum = -self.scale * self.zero if self.minimum is None else self.minimum
            return values, of_scale | {"minimum": minimum}
        if self.minimum is not None:
            return None
        if names == {"scale"}:
            return self._numbers(self.groups), of_scale
        zero = np.broadcast_to(self.zero, self.scale.shape)
        held = names == {"scale", "zero"} and 0 <= zero.min() <= zero.max() <= BYTE
        return (values, of_scale | {"zero": zero}) if held else None

    def _numbers(self, groups: np.ndarray) -> np.ndarray:
        zero = self.zero if isinstance(self.zero, int) else self.zero[:, groups]
        return self.values.astype(np.int16) - zero

    def _of_columns(self, part: np.ndarray) -> np.ndarray:
        return part[:, self.groups]


class Quantised(Tensor):
    """A matrix of integers: a form says how to unpack some of its rows."""

    @abstractmethod
    def integers(self, start: int, stop: int) -> Integers:
        """Rows [start, stop), which are within the matrix."""

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return self.integers(start, max(start, stop)).weights()

    def carried(self, scheme: Scheme, start: int, stop: int) -> Parts | None:
        if not isinstance(scheme, GroupScheme):
            return None
        return self.integers(start, stop).carried(scheme)


def damaged_scales() -> np.errstate:
    """Where infinite scales may be met: the scheme tells them, or nothing is carried."""
    return np.errstate(over="ignore", invalid="ignore")


def contiguous_groups(columns: int, groups: int) -> np.ndarray:
    """The group of each column where groups are equally many neighbours."""
    return np.arange(columns) * groups // columns
