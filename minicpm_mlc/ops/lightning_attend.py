"""Lightning attention: linear attention whose memory of all tokens is one matrix a head.

S = decay * S + k v^T,  out = q S / sqrt(d)    row after row; S [d, d] is zero before position 0

Equal to a sum over all tokens s up to t of decay^(t - s) (q_t . k_s) v_s / sqrt(d).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.operator import SUMS, Argument, Cost, Extent, Operator, gives, takes, updates
from minicpm_mlc.ops.rope_append import rotate_definition
from minicpm_mlc.ops.samples import Draw, Sample, ids, sample

SEQUENCES = 9  # in samples
SMALL = (0, 17)  # the rows of S that a bundle's samples touch: one that changed is stored whole


@dataclass(frozen=True)
class LightningAttend(Operator):
    """Queries, keys and values of `num_heads` heads side by side; queries and keys are turned here.

    The rows are one of each sequence when `batched` (decode), row r with state r; else all of one
    sequence, with state 0.
    """

    limit: ClassVar[float] = SUMS
    num_heads: int
    head_dim: int
    batched: bool

    def arguments(self) -> dict[str, Argument]:
        heads, size = self.num_heads, self.head_dim
        return {
            "qkv": takes("float32", "n", 3 * heads * size),
            "cos_sin": takes("float32", "n", size),
            "positions": takes("int32", "n"),
            "decay": takes("float32", heads),
            "state": updates("float32", "s", heads, size, size),
            "out": gives("float32", "n", heads * size),
        }

    def define(
        self,
        qkv: np.ndarray,
        cos_sin: np.ndarray,
        positions: np.ndarray,
        decay: np.ndarray,
        state: np.ndarray,
    ) -> np.ndarray:
        split = qkv.reshape(len(qkv), 3, self.num_heads, self.head_dim)
        queries, keys = (rotate_definition(split[:, part], cos_sin) for part in (0, 1))
        values, held = split[:, 2].astype(np.float64), state.astype(np.float64)
        out = np.empty(queries.shape)
        for row, position in enumerate(positions):
            one = held[row if self.batched else 0]
            one *= decay[:, None, None] if position else 0
            one += keys[row, :, :, None] * values[row, :, None, :]
            out[row] = np.einsum("hi,hij->hj", queries[row], one) / np.sqrt(self.head_dim)
        state[:] = held
        return out.reshape(len(qkv), -1)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n, first in ((1, 0), (7, 0), (5, 70), (65, 3)) if draw.whole else ((2, 0), (2, 5)):
            width, states = 3 * self.num_heads * self.head_dim, max(n, SEQUENCES)
            qkv, state = draw.normal(n, width), self._state(draw, states if self.batched else 1)
            if not draw.whole:
                qkv = self._with_few_keys(qkv)
            angles = draw.random.uniform(0, 7, (n, self.head_dim // 2)).astype(np.float32)
            cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
            positions = range(first, first + n)
            decay = np.exp(-(2.0 ** -np.linspace(0.25, 8, self.num_heads)))
            turned = Tiled.whole(cos_sin), ids(*positions), Tiled.whole(decay.astype(np.float32))
            yield sample(qkv, *turned, state)

    def _state(self, draw: Draw, sequences: int) -> Tiled:
        shape = sequences, self.num_heads, self.head_dim, self.head_dim
        if draw.whole:
            return draw.normal(*shape)
        state = np.zeros((1, 1, self.head_dim, 1), np.float32)
        state[0, 0, self._touched()] = 0.5
        return Tiled(state, (2 if self.batched else 1, *shape[1:]))

    def _with_few_keys(self, qkv: Tiled) -> Tiled:
        whole = qkv.array().reshape(-1, 3, self.num_heads, self.head_dim).copy()
        others = np.setdiff1d(np.arange(self.head_dim), self._touched())
        whole[:, 1, :, others] = 0
        return Tiled.whole(whole.reshape(qkv.shape))

    def _touched(self) -> list[int]:
        """Pairs that rotation turns into each other."""
        return [
            i + half for half in (0, self.head_dim // 2) for i in SMALL if i < self.head_dim // 2
        ]

    @classmethod
    def variants(cls) -> Iterator[LightningAttend]:
        shapes = ((1, 32), (3, 64), (2, 128))
        yield from (cls(*shape, batched) for shape in shapes for batched in (False, True))

    def outcome(self, arguments: Any) -> np.ndarray:
        return np.concatenate([array.ravel() for array in arguments[-2:]])

    def cost(self, extent: Extent) -> Cost:
        """The state is read and written; a row multiplies it by decay and query, and adds to it."""
        numbers = self.num_heads * self.head_dim**2
        moved = self.moved_bytes(extent.dims) + 4 * numbers * extent.dims["s"]
        return Cost(moved, 5 * numbers * extent.dims["n"])
