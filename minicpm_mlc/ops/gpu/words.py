"""Packed weights read as 32-bit words: the loads of neighbouring threads lie side by side, whatever
the format.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP, LANES, WeightFormat
from minicpm_mlc.ops.gpu.half import HalfBuffer, from_bfloat16, to_float

# of stored elements: how many rows a word holds
ROWS_IN_WORD = {"float32": 1, "float16": 2, "uint16": 2, "int8": 4, "uint8": 4}
# the bits of 2**23, which take a small integer as their last ones: cheaper than a conversion
MAGIC = 0x4B000000


class Words:
    """The words of one weight matrix in the layout rows16; made outside of workgroups.

    A word holds `rows` neighbouring rows of one column, or of two, 16 apart (`columns`). Those of a
    block's column are `across`, those of a group of 32 columns `per_group`, in order.
    """

    def __init__(self, fmt: WeightFormat, weight: Any, blocks: int, k: int) -> None:
        self.fmt, self.rows, self.columns = fmt, ROWS_IN_WORD[fmt.dtype], fmt.columns_per_element
        self.across, self.steps = LANES // self.rows, GROUP // self.columns
        self.per_group = self.across * self.steps
        data = weight.bits.data if isinstance(weight, HalfBuffer) else weight.data
        pointer = T.Bind(T.reinterpret(data, dtype=T.handle("uint32").ty))
        self.buffer = T.decl_buffer((blocks, k // GROUP * self.per_group), "uint32", data=pointer)

    def unpacked(self, block: Any, place: Any) -> list[list[Any]]:
        """The float32 values of word `place` of a block, without scales: for each of its columns,
        its rows'.
        """
        word = T.Bind(self.buffer[block, place])
        if self.fmt.name == "w4":
            return [[_small(word, 8 * i + half, 15, 8) for i in range(4)] for half in (0, 4)]
        if self.fmt.name == "w8":
            flipped = T.Bind(T.bitwise_xor(word, T.uint32(0x80808080)))  # 128 more
            return [[_small(flipped, 8 * i, 255, 128) for i in range(4)]]
        if self.fmt.dtype == "float32":
            return [[T.Bind(T.reinterpret(word, dtype="float32"))]]
        halves = [
            T.Bind(T.bitwise_and(T.shift_right(word, T.uint32(at)), T.uint32(0xFFFF)))
            for at in (0, 16)
        ]
        return [
            [from_bfloat16(half) if self.fmt.name == "bf16" else to_float(half) for half in halves]
        ]


def _small(word: Any, shift: int, mask: int, zero: int) -> Any:
    """The float32 value of some bits of a word, less `zero`."""
    bits = T.bitwise_and(T.shift_right(word, T.uint32(shift)), T.uint32(mask))
    return T.Bind(
        T.reinterpret(T.Bind(T.bitwise_or(bits, T.uint32(MAGIC))), dtype="float32")
        - T.float32(2**23 + zero)
    )
