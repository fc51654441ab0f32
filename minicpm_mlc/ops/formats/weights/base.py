"""What a weight scheme is: how a matrix [n, k] is quantised, stored, and read back in kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.bundle.manifest_schema import WEIGHT_LAYOUTS
from minicpm_mlc.ops.formats.weights import GROUP, LANES, SCHEMES
from minicpm_mlc.ops.formats.weights.packing import (
    QUADS,
    ROWS16,
    blocks_of,
    deinterleave,
    interleave,
)
from minicpm_mlc.ops.formats.weights.values import Values
from minicpm_mlc.ops.tir import Buffer, Expr, T, typed

Parts = dict[str, np.ndarray]  # a matrix's arrays by their names, "weight" the first
Stored = Mapping[str, Buffer]  # the same as a kernel's arguments


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a stored matrix. Kernels see `dtype`; tensor-cache.json says `written_as`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    written_as: str

    @property
    def nbytes(self) -> int:
        """Bytes in memory and on disk."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class GroupTensor:
    """`count` numbers for each row and `columns` columns, of which the last may be fewer; random
    ones lie within `usual`.
    """

    name: str
    dtype: str
    columns: int
    usual: tuple[float, float]
    count: int = 1

    def width(self, k: int) -> int:
        """Numbers of a row of k columns."""
        return -(-k // self.columns) * self.count


@dataclass(frozen=True)
class Terms:
    """What makes weights of a group's numbers: scale * number + minimum, as far as they are
    there.
    """

    scale: Expr | None = None
    minimum: Expr | None = None

    def bound(self) -> Terms:
        """The same, computed once here."""
        terms = (self.scale, self.minimum)
        return Terms(*(None if term is None else T.Bind(term) for term in terms))

    def weight(self, number: Expr) -> Expr:
        """The weight of a number."""
        scaled = number if self.scale is None else number * self.scale
        return scaled if self.minimum is None else scaled + self.minimum


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to store a matrix: w = scale * number + minimum, for each row and group of columns.

    `group`: columns that share a scale, 16 or a whole number of 32; 0 without scales. `layout`: how
    rows are interleaved (packing.py), rows16 for float32 arithmetic, rows16x4 for int8 activations.
    """

    name: ClassVar[str]
    values: ClassVar[Values]
    has_minimum: ClassVar[bool] = False
    leveled: ClassVar[bool] = False  # whether kernels make a scale of several stored numbers
    tables: ClassVar[str | None] = None  # the usual scheme of embedding and head beside it
    group: int = 0
    layout: str = ROWS16

    @property
    def key(self) -> str:
        """Name, group and layout, of which `named` makes the same scheme."""
        return f"{self.name}:{self.group}:{self.layout}"

    @classmethod
    def named(cls, key: str) -> Scheme:
        """The scheme of a key. Raises KeyError for a name that is not there."""
        name, group, layout = key.split(":")
        return replace(SCHEMES[name], group=int(group), layout=layout)

    @property
    def terms_count(self) -> int:
        """Scales and minimums of 32 columns."""
        return self.halves * (2 if self.has_minimum else 1)

    @property
    def halves(self) -> int:
        """Groups among the 32 columns that kernels read together: 2 where each 16 have a scale."""
        return 2 if self.group == GROUP // 2 else 1

    @property
    def takes_int8(self) -> bool:
        """Whether activations rounded to int8 can meet it (ops/cpu/linear_int8.py)."""
        return self.values.takes_int8

    @property
    def int8(self) -> bool:
        """Whether it is laid out for them."""
        return self.layout == QUADS

    def beside(self, activations: str) -> Scheme:
        """The scheme as it is laid out where these activations ("f32" or "int8") meet it."""
        return replace(self, layout=WEIGHT_LAYOUTS[activations if self.takes_int8 else "f32"])

    @property
    def group_tensors(self) -> tuple[GroupTensor, ...]:
        """What is stored beside the values."""
        scale = GroupTensor("scale", "float16", self.group, usual=(0.004, 0.02))
        minimum = GroupTensor("minimum", "float16", self.group, usual=(-0.1, 0.02))
        return ((scale,) if self.group else ()) + ((minimum,) if self.has_minimum else ())

    def tensors(self, n: int, k: int) -> list[StoredTensor]:
        """The stored tensors of a matrix [n, k], in the order that kernels take them."""
        values = self.values
        shape = values.shape(n, k, self.layout)
        return [
            StoredTensor("weight", shape, values.dtype, values.written_as),
            *(
                StoredTensor(t.name, (blocks_of(n), t.width(k), LANES), t.dtype, t.dtype)
                for t in self.group_tensors
            ),
        ]

    def arguments(self, n: int, k: int) -> dict[str, tuple]:
        """The stored tensors as a kernel's arguments: (dtype, *shape) by name."""
        return {tensor.name: (tensor.dtype, *tensor.shape) for tensor in self.tensors(n, k)}

    @abstractmethod
    def quantize(self, weights: np.ndarray, name: str = "weights") -> Parts:
        """float32 [n, k] -> values [n, k] and group tensors [n, their width].

        Raises CheckpointError naming the tensor whose weights are not finite or too large for the
        scheme, CompileError where k isn't a multiple of the group.
        """

    def dequantize(self, parts: Parts, dtype: type = np.float32) -> np.ndarray:
        """The weights [n, k] that `quantize`'s result stands for: the scheme's definition."""
        numbers = self.values.numbers(parts["weight"]).astype(dtype)
        if not self.group:
            return numbers
        groups = numbers.reshape(len(numbers), -1, self.group)
        scale, minimum = self.lines(parts)
        weights = groups * scale.astype(dtype)[..., None]
        if minimum is not None:
            weights += minimum.astype(dtype)[..., None]
        return weights.reshape(numbers.shape)

    def lines(self, parts: Parts) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and minimum of every group, float32 [n, k / group], exactly."""
        scale = parts["scale"].astype(np.float32)
        return scale, parts["minimum"].astype(np.float32) if self.has_minimum else None

    def pack(self, parts: Parts) -> Parts:
        """Parts as `quantize` makes them -> as they are stored."""
        packed = {name: interleave(part) for name, part in parts.items() if name != "weight"}
        return {"weight": self.values.pack(parts["weight"], self.layout)} | packed

    def unpack(self, stored: Parts, rows: int) -> Parts:
        """Inverse of `pack`, of so many rows."""
        parts = {name: deinterleave(p, rows) for name, p in stored.items() if name != "weight"}
        return {"weight": self.values.unpack(stored["weight"], rows, self.layout)} | parts

    def random(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Random elements of the stored tensor `name`, the same each time."""
        if name == "weight":
            return self.values.random(np.random.default_rng(0), shape)
        number, tensor = next(
            pair for pair in enumerate(self.group_tensors) if pair[1].name == name
        )
        rng = np.random.default_rng(1 + number)
        return rng.uniform(*tensor.usual, shape).astype(tensor.dtype)

    def pair(
        self, stored: Stored, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int = 1
    ) -> tuple[Expr, Expr]:
        """float32 numbers of columns 32 g + j and 32 g + 16 + j of a lane, or of a vector of
        them.
        """
        return self.values.pair(stored["weight"], block, g, j, lane, lanes, self.layout)

    def terms(
        self, stored: Stored, block: Expr, g: Expr, lane: Expr, lanes: int = 1, half: Expr = 0
    ) -> Terms:
        """Scale and minimum of columns 32 g .. 32 g + 31 of a lane, or of a vector of them; where
        each 16 have their own, of the first or the second ones.
        """
        if not self.group:
            return Terms()
        group = g * self.halves + half if self.halves > 1 else g * GROUP // self.group
        return Terms(
            self.scale(stored, block, group, lane, lanes),
            self.minimum(stored, block, group, lane, lanes) if self.has_minimum else None,
        )

    def scale(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        """float32 scale; a scheme with two levels of scales multiplies them here."""
        return widened(stored["scale"][block, group, lane], lanes)

    def minimum(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        """float32 minimum; a scheme with zero points makes it of them and the scale here."""
        return widened(stored["minimum"][block, group, lane], lanes)


def widened(number: Expr, lanes: int) -> Expr:
    """As float32."""
    return T.Cast(typed("float32", lanes), number)


def require_finite(weights: np.ndarray, name: str) -> None:
    """Raises CheckpointError for a NaN or an infinity: either always reaches the sum."""
    if not np.isfinite(weights.sum(dtype=np.float64)):
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite weights: the checkpoint is damaged, download "
            "it again"
        )


def too_large(weights: np.ndarray, scheme: str, name: str) -> CheckpointError:
    """The error of a tensor that a scheme can't hold."""
    largest = float(np.abs(weights).max())
    return CheckpointError(
        f"tensor {name} holds a weight of {largest:g}, too large for scheme {scheme}: use "
        "--quant f32"
    )
