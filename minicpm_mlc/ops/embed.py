"""Rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.operator import Argument, Cost, Extent, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, ids, sample
from minicpm_mlc.ops.weight_samples import sample_weights, stored_rows


def embed_definition(token_ids: np.ndarray, table: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale * table[token_ids]. token_ids i32[n], table [vocab, h] dequantised -> float64 [n,
    h].
    """
    return scale * table.astype(np.float64)[token_ids]


@dataclass(frozen=True)
class Embed(Operator):
    """scale * rows of a table [vocab, hidden], which is packed like any weight, so that a tied head
    and the embedding are one matrix.
    """

    vocab: int
    hidden: int
    scheme: Scheme
    scale: float = 1.0

    @property
    def dtype_label(self) -> str:
        return self.scheme.name

    def arguments(self) -> dict[str, Argument]:
        table = self.scheme.arguments(self.vocab, self.hidden)
        return {
            "ids": takes("int32", "n"),
            **{name: takes(*argument) for name, argument in table.items()},
            "out": gives("float32", "n", self.hidden),
        }

    def define(self, ids: np.ndarray, *stored: np.ndarray) -> np.ndarray:
        table = stored_rows(self.scheme, self.vocab, self.hidden, stored)
        return embed_definition(ids, table, self.scale)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        table = sample_weights(draw, self.vocab, self.hidden, self.scheme)
        if draw.whole:
            for n in draw.rows(most=4):
                yield sample(draw.below(self.vocab, n), *table.stored)
            return
        tokens = ids(0, self.vocab - 1, self.vocab // 2)
        answer = embed_definition(tokens.tile % len(table.rows), table.rows, self.scale)
        outputs = [Tiled.whole(answer.astype(np.float32))]
        yield Sample([tokens, *table.stored], outputs)

    @classmethod
    def variants(cls) -> Iterator[Embed]:
        yield from (cls(67, 96, scheme, 12.0) for scheme in SCHEMES.values())

    def cost(self, extent: Extent) -> Cost:
        """Of the table, only the rows that are read move."""
        rows = extent.dims["n"]
        row = sum(tensor.nbytes for tensor in self.scheme.tensors(self.vocab, self.hidden))
        return Cost(rows * (4 + row // self.vocab + 4 * self.hidden))
