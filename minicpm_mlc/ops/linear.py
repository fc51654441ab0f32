"""x @ W^T over packed weights, with the residual add and scale as its epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import LANES, SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.operator import SUMS, Argument, Cost, Extent, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.weight_samples import MATRICES, sample_weights, stored_rows


def linear_definition(
    x: np.ndarray, w: np.ndarray, residual: np.ndarray | None = None, scale: float = 1.0
) -> np.ndarray:
    """(residual or 0) + scale * x @ w^T. x [m, k], w [n, k] dequantised, residual [m, n] -> float64
    [m, n].
    """
    product = scale * (x.astype(np.float64) @ w.astype(np.float64).T)
    return product if residual is None else residual.astype(np.float64) + product


@dataclass(frozen=True)
class Linear(Operator):
    """(residual or 0) + scale * x @ W^T, W [n, k] as `scheme` stores it.

    The output's columns are padded to a multiple of 16; with a residual n must be one.
    """

    limit: ClassVar[float] = SUMS
    n: int
    k: int
    scheme: Scheme
    residual: bool = False
    scale: float = 1.0

    @property
    def dtype_label(self) -> str:
        return self.scheme.name

    @property
    def width(self) -> int:
        """Columns of the output."""
        return blocks_of(self.n) * LANES

    def arguments(self) -> dict[str, Argument]:
        stored = self.scheme.arguments(self.n, self.k)
        return {
            "x": self.activations(),
            **{name: takes(*argument) for name, argument in stored.items()},
            **({"residual": takes("float32", "m", self.n)} if self.residual else {}),
            "out": gives("float32", "m", self.width),
        }

    def activations(self) -> Argument:
        """x, as the kernel takes it."""
        return takes("float32", "m", self.k)

    def numbers(self, x: np.ndarray) -> np.ndarray:
        """What the activations stand for, [m, k]."""
        return x

    def define(self, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
        return self.product(self.numbers(x), *others)

    def product(self, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
        """What it gives for activations that stand for x [m, k]."""
        tensors = len(self.scheme.tensors(self.n, self.k))
        weights = stored_rows(self.scheme, self.n, self.k, others[:tensors])
        residual = others[tensors] if self.residual else None
        product = linear_definition(x, weights, residual, self.scale)
        return np.pad(product, ((0, 0), (0, self.width - self.n)))

    def samples(self, draw: Draw) -> Iterator[Sample]:
        weights = sample_weights(draw, self.n, self.k, self.scheme)
        for m in (1, *draw.rows(3, 19, most=5)):
            x = self.drawn(draw, m)
            added = draw.normal(m, self.width, period=len(weights.rows)) if self.residual else None
            inputs = [x, *weights.stored, *([] if added is None else [added])]
            if draw.whole:
                yield sample(*inputs)
                continue
            tile = None if added is None else added.tile
            answer = linear_definition(self.numbers(x.array()), weights.rows, tile, self.scale)
            yield Sample(inputs, [Tiled(answer.astype(np.float32), (m, self.width))])

    def drawn(self, draw: Draw, m: int) -> Tiled:
        """m rows of activations as the kernel takes them."""
        return draw.normal(m, self.k)

    @classmethod
    def variants(cls) -> Iterator[Linear]:
        for scheme in SCHEMES.values():
            yield from (cls(n, k, scheme, residual, 0.25) for n, k, residual in MATRICES)

    def cost(self, extent: Extent) -> Cost:
        operations = 2 * extent.dims["m"] * self.k * self.width
        return Cost(self.moved_bytes(extent.dims), operations)

    def shape_label(self, extent: Extent) -> str:
        return f"{self.k} -> {self.width}"
