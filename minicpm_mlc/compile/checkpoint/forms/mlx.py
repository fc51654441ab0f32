"""MLX: integers of 2 to 8 bits along the inputs, a scale and a bias for groups of them.

Of a module M with K inputs, N outputs, b bits and G groups of neighbouring inputs:

    M.weight U32 [N, K * b / 32]    a row is one little-endian stream of its values' bits
    M.scales, M.biases [N, G]       in the model's dtype
    w[n, k] = scales[n, g] * value + biases[n, g]

Embedding and head are quantised too; a module without scales is stored as floats.
"""

from __future__ import annotations

from functools import partial

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.packed import Linear, QuantisedLinear, unpack
from minicpm_mlc.compile.checkpoint.tensor import Integers, Tensor, contiguous_groups

METHODS = ("mlx",)
BITS = (2, 3, 4, 5, 6, 8)


def reader(stated: Stated, found: Found) -> Reader:
    """The reader of a checkpoint with these settings."""
    stated.require("mode", "affine")
    return Reader(partial(_tensor, found))


def _tensor(found: Found, name: str, shapes: Shapes) -> Tensor | None:
    linear = Linear(name.removesuffix(".weight"), found)
    return MlxTensor(linear, shapes[name]) if linear.has("scales") else None


class MlxTensor(QuantisedLinear):
    """The weight of a module; its bits follow from its shape, so each module may have its own."""

    def __init__(self, linear: Linear, shape: tuple[int, ...]) -> None:
        n, k = shape
        packed = [(n, k * bits // 32) for bits in BITS if k * bits % 32 == 0]
        self._weight = linear.array("weight", ("U32",), *packed)
        self._bits = 32 * self._weight.shape[1] // k
        count = linear.columns_of("scales")
        self._scales = linear.numbers("scales", (n, max(1, min(count, k))))
        self._biases = linear.numbers("biases", (n, count))
        self._groups = contiguous_groups(k, count)
        super().__init__(linear, shape, f"MLX ({self._bits} bits)")

    def integers(self, start: int, stop: int) -> Integers:
        rows = slice(start, stop)
        values = unpack(self._weight[rows], self._bits, self.shape[1])
        return Integers(values, self._scales[rows], self._groups, 0, self._biases[rows])
