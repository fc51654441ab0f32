"""Packed weights read as 32-bit words: the loads of neighbouring threads lie side by side, whatever
the scheme.
"""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.packing import ROWS16
from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer
from minicpm_mlc.ops.tir import Buffer, Expr


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
        data = weight.bits.data if isinstance(weight, HalfBuffer) else weight.data
        pointer = T.Bind(T.reinterpret(data, dtype=T.handle("uint32").ty))
        self.stored = self.values.group_rows(ROWS16) * self.across  # words of a group
        self.buffer = T.decl_buffer((blocks, k // GROUP * self.stored), "uint32", data=pointer)

    def unpacked(self, block: Expr, g: Expr, step: Expr, q: Expr) -> list[list[Expr]]:
        """The float32 numbers of column `step` of a group, and of 16 + step where there are two in
        a word, in the q-th of the words across: for each column its rows'.
        """

        def read(row: Expr) -> Expr:
            return T.Bind(self.buffer[block, g * self.stored + row * self.across + q])

        return self.values.word(read, step)
