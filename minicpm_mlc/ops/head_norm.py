"""RMSNorm of each query head and each key head, in float32: Qwen3 has it before RoPE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.operator import Argument, Cost, Extent, Operator, takes, updates
from minicpm_mlc.ops.rms_norm import rms_norm_definition
from minicpm_mlc.ops.samples import Draw, Sample, sample


@dataclass(frozen=True)
class HeadNorm(Operator):
    """Rows of query, key and value heads side by side, `head_dim` numbers each. Queries share one
    weight and keys another; values stay as they are.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float

    @property
    def normed_heads(self) -> int:
        """Heads of a row that are normed."""
        return self.num_heads + self.num_kv_heads

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return (self.normed_heads + self.num_kv_heads) * self.head_dim

    def arguments(self) -> dict[str, Argument]:
        return {
            "q_weight": takes("float32", self.head_dim),
            "k_weight": takes("float32", self.head_dim),
            "qkv": updates("float32", "n", self.width),
        }

    def define(self, q_weight: np.ndarray, k_weight: np.ndarray, qkv: np.ndarray) -> None:
        heads = qkv.reshape(len(qkv), -1, self.head_dim)  # a view
        queries = heads[:, : self.num_heads]
        keys = heads[:, self.num_heads : self.normed_heads]
        queries[:] = rms_norm_definition(queries, q_weight, self.eps)
        keys[:] = rms_norm_definition(keys, k_weight, self.eps)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(2):
            weights = [draw.normal(self.head_dim) for _ in range(2)]
            yield sample(*weights, draw.normal(n, self.width, scale=5))

    @classmethod
    def variants(cls) -> Iterator[HeadNorm]:
        yield from (cls(*heads, 1e-6) for heads in ((1, 1, 32), (6, 2, 96), (4, 4, 128)))

    def cost(self, extent: Extent) -> Cost:
        """Queries and keys are read and written, values are not touched."""
        numbers = extent.dims["n"] * self.normed_heads * self.head_dim
        return Cost(4 * (2 * numbers + 2 * self.head_dim))
