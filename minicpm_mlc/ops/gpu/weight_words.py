"""Packed weights read as 32-bit words: the loads of neighbouring threads lie side by side, whatever
the scheme.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.packing import ROWS16
from minicpm_mlc.ops.gpu.group_terms import as_words
from minicpm_mlc.ops.gpu.kernel import registers
from minicpm_mlc.ops.tir import Buffer, Expr

WIDE = 4  # words that are read at once


class Words:
    """The words of one weight matrix in the layout rows16; made outside of workgroups.

    A word holds `rows` neighbouring rows of one column, or of two, 16 apart. Those of a block's
    column are `across`, those of a group of 32 columns `per_group`, in order; words of high bits
    follow where there are some.
    """

    def __init__(self, scheme: Scheme, weight: Buffer, blocks: int, k: int) -> None:
        self.values, self.rows = scheme.values, scheme.values.rows
        self.across, self.steps = LANES // self.rows, GROUP // scheme.values.columns
        self.per_group = self.across * self.steps
        self.stored = self.values.group_rows(ROWS16) * self.across  # words of a group
        self.buffer = as_words(weight, (blocks, k // GROUP * self.stored))

    def unpacked(self, block: Expr, g: Expr, step: Expr, q: Expr) -> list[list[Expr]]:
        """The float32 numbers of column `step` of a group, and of 16 + step where there are two in
        a word, in the q-th of the words across: for each column its rows'.
        """

        def read(row: Expr) -> Expr:
            return T.Bind(self.buffer[block, g * self.stored + row * self.across + q])

        return self.values.word(read, step)

    def column(self, block: Expr, g: Expr, step: Expr) -> list[list[Expr]]:
        """The same of all words across, read 16 bytes at a time: for each column its 16 rows'."""
        loaded: list[Buffer] = []  # in the order in which `word` reads stored rows
        found = []
        for q in range(self.across):
            order = iter(range(len(loaded))) if q else None

            def read(row: Expr, q: int = q, order: Any = order) -> Expr:
                if order is None:
                    loaded.append(self._stored_row(block, g, row))
                return loaded[-1 if order is None else next(order)][q]

            found.append(self.values.word(read, step))
        return [
            [number for word in found for number in word[column]]
            for column in range(self.values.columns)
        ]

    def _stored_row(self, block: Expr, g: Expr, row: Expr) -> Buffer:
        """All words of a stored row of a group, in registers."""
        words = registers(self.across, "uint32")
        for q in range(0, self.across, WIDE):
            at = T.Bind(
                (g * (self.stored // WIDE) + row * (self.across // WIDE) + q // WIDE) * WIDE
            )
            vector = self.buffer[block, T.ramp(at, 1, WIDE)]
            T.buffer_store(words, vector, [T.ramp(q, 1, WIDE)])
        return words
