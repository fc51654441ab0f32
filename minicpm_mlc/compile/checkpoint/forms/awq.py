"""AutoAWQ's GEMM layout: 4-bit integers along the outputs, eight to a word in an order of its own.

Of a linear P with K inputs, N outputs and G groups of neighbouring inputs:

    P.qweight int32 [K, N / 8]    place i of a word holds output 0 2 4 6 1 3 5 7 [i] of its eight
    P.qzeros  int32 [G, N / 8]    zero points, in the same order; absent: 8
    P.scales  f16   [G, N]
    w[n, k] = scales[g, n] * (value - zero[g, n])

AWQ moves factors between norms and linears, so every tensor is this checkpoint's own.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.packed import Linear, QuantisedLinear, unpack
from minicpm_mlc.compile.checkpoint.tensor import Integers, Tensor, contiguous_groups

METHODS = ("awq",)
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each of its eight outputs
EACH = len(PLACES)


def reader(stated: Stated, found: Found) -> Reader:
    """The reader of a checkpoint with these settings."""
    stated.require("bits", 4)
    stated.require("w_bit", 4)
    stated.require("version", "gemm", "GEMM")
    stated.require("backend", "autoawq")
    return Reader(partial(_tensor, found))


def _tensor(found: Found, name: str, shapes: Shapes) -> Tensor | None:
    linear = Linear(name.removesuffix(".weight"), found)
    return AwqTensor(linear, shapes[name]) if linear.has("qweight") else None


class AwqTensor(QuantisedLinear):
    """The weight of a linear."""

    def __init__(self, linear: Linear, shape: tuple[int, ...]) -> None:
        n, k = shape
        if n % EACH:
            raise linear.error("qweight", f"can't hold {n} outputs, expected a multiple of {EACH}")
        self._qweight = linear.array("qweight", ("I32",), (k, n // EACH))
        count = linear.rows_of("scales")
        self._scales = linear.numbers("scales", (max(1, min(count, k)), n))
        self._groups = contiguous_groups(k, count)
        self._qzeros = (
            linear.array("qzeros", ("I32",), (count, n // EACH)) if linear.has("qzeros") else None
        )
        super().__init__(linear, shape, "AWQ")

    def integers(self, start: int, stop: int) -> Integers:
        values = _outputs(self._qweight, start, stop)
        zero = 8 if self._qzeros is None else _outputs(self._qzeros, start, stop).astype(np.int16)
        return Integers(values, self._scales[:, start:stop].T, self._groups, zero)


def _outputs(words: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Numbers of outputs [start, stop), uint8 [outputs, rows of words]."""
    first = start // EACH
    stored = unpack(words[:, first : -(-stop // EACH)], 4, 1 << 31)
    plain = stored.reshape(len(words), -1, EACH)[..., PLACES].reshape(len(words), -1)
    return np.ascontiguousarray(plain[:, start - first * EACH : stop - first * EACH].T)
