"""Packed weights read as 32-bit words: the loads of neighbouring threads lie side by side, whatever
the scheme.
"""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer
from minicpm_mlc.ops.tir import Buffer, Expr


class Words:
    """The words of one weight matrix in the layout rows16; made outside of workgroups.

    A word holds `rows` neighbouring rows of one column, or of two, 16 apart. Those of a block's
    column are `across`, those of a group of 32 columns `per_group`, in order.
    """

    def __init__(self, scheme: Scheme, weight: Buffer, blocks: int, k: int) -> None:
        self.values, self.rows = scheme.values, scheme.values.rows
        self.across, self.steps = LANES // self.rows, GROUP // scheme.values.columns
        self.per_group = self.across * self.steps
        data = weight.bits.data if isinstance(weight, HalfBuffer) else weight.data
        pointer = T.Bind(T.reinterpret(data, dtype=T.handle("uint32").ty))
        self.buffer = T.decl_buffer((blocks, k // GROUP * self.per_group), "uint32", data=pointer)

    def unpacked(self, block: Expr, place: Expr) -> list[list[Expr]]:
        """The float32 numbers of word `place` of a block: for each of its columns, its rows'."""
        return self.values.word(T.Bind(self.buffer[block, place]))
