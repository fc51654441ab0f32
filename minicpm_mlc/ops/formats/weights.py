"""How a weight element is stored, and the TIR that reads it back as float32.

Rows are interleaved by 16 (ops/formats/packing.py has the layouts): one vector register holds the
same column of 16 rows, or the same four columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.packing import QUAD, packed_shape

LANES = 16  # rows interleaved in one block
GROUP = 32  # columns unpacked together; a scale covers a whole number of these


@dataclass(frozen=True)
class WeightFormat:
    """One storage format of a [n, k] matrix. `group` is the columns that share a scale, 0 without
    scales.
    """

    name: str
    dtype: str
    group: int = 0
    layout: str = "rows16"

    @staticmethod
    def of(scheme: Any, layout: str = "rows16") -> WeightFormat:
        """The format of a quantisation scheme (any object with a name and a group)."""
        return replace(FORMATS[scheme.name], group=scheme.group, layout=layout)

    @property
    def int8(self) -> bool:
        """Whether it meets activations rounded to int8 (ops/cpu/linear_int8.py)."""
        return self.layout == "rows16x4"

    @property
    def columns_per_element(self) -> int:
        """Columns in one stored element: 2 for packed nibbles."""
        return 2 if self.name == "w4" else 1

    def weight_shape(self, n: int, k: int) -> tuple[int, int, int]:
        """Stored shape of a [n, k] matrix, rows padded to a multiple of 16."""
        return packed_shape(n, k, 4 if self.name == "w4" else 0, self.layout)

    def scale_shape(self, n: int, k: int) -> tuple[int, int, int]:
        """Stored shape of the scales. Formats without scales pass their weight in the scales'
        place, unread.
        """
        return (-(-n // LANES), k // self.group, LANES) if self.group else self.weight_shape(n, k)

    @property
    def scale_dtype(self) -> str:
        return "float16" if self.group else self.dtype

    def pair(self, w: Any, block: Any, g: Any, j: Any, lane: Any, lanes: int) -> tuple[Any, Any]:
        """Unscaled float32 values of columns 32g+j and 32g+16+j (j < 16), for one lane or a vector
        of lanes.

        In the layout rows16x4, for one lane.
        """
        if self.layout == "rows16x4":
            return tuple(
                T.Cast("float32", self._quad_element(w, block, g * GROUP + half + j, lane))
                for half in (0, 16)
            )
        if self.name == "w4":
            byte = T.Cast(_typed("int32", lanes), w[block, g * 16 + j, lane])
            low = T.bitwise_and(byte, _splat(T.int32(15), lanes))
            high = T.shift_right(byte, _splat(T.int32(4), lanes))
            return tuple(
                T.Cast(_typed("float32", lanes), v - _splat(T.int32(8), lanes)) for v in (low, high)
            )
        return tuple(self._widen(w[block, g * GROUP + half + j, lane], lanes) for half in (0, 16))

    def scale(self, s: Any, block: Any, g: Any, lane: Any, lanes: int) -> Any:
        """float32 scale of column group g (32 columns)."""
        return T.Cast(_typed("float32", lanes), s[block, g * GROUP // self.group, lane])

    def _quad_element(self, w: Any, block: Any, column: Any, lane: Any) -> Any:
        """int32 value of one column of one row, in the layout rows16x4."""
        quad, at = column // QUAD, lane * QUAD + column % QUAD
        if self.name != "w4":
            return T.Cast("int32", w[block, quad, at])
        nibbles = T.shift_right(
            T.Cast("int32", w[block, quad // 2, at]), T.Cast("int32", quad % 2 * 4)
        )
        return T.bitwise_and(nibbles, 15) - 8

    def _widen(self, value: Any, lanes: int) -> Any:
        if self.name == "bf16":
            bits = T.shift_left(T.Cast(_typed("uint32", lanes), value), _splat(T.uint32(16), lanes))
            return T.reinterpret(bits, dtype=_typed("float32", lanes))
        return value if self.dtype == "float32" else T.Cast(_typed("float32", lanes), value)


FORMATS = {
    "f32": WeightFormat("f32", "float32"),
    "f16": WeightFormat("f16", "float16"),
    "bf16": WeightFormat("bf16", "uint16"),
    "w8": WeightFormat("w8", "int8", group=32),
    "w4": WeightFormat("w4", "uint8", group=32),
}


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _splat(value: Any, lanes: int) -> Any:
    return value if lanes == 1 else T.broadcast(value, lanes)
