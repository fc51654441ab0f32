"""linear: x @ W^T over packed weights. 16 threads take 16 rows of weights, the rest of a workgroup other columns."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.errors import CompileError
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import THREADS, accumulate, barrier, kernel, registers, shared, strided, workgroups
from minicpm_mlc.ops.weight_format import GROUP, LANES, WeightFormat

SLICES = THREADS // LANES  # groups of columns that a workgroup multiplies side by side
TILE_ROWS = 8  # x rows that meet a weight once it is unpacked


def linear(n: int, k: int, fmt: WeightFormat, *, residual: bool = False, scale: float = 1.0) -> Any:
    """PrimFunc (x f32[m, k], weight, scales[, residual f32[m, n]]) -> f32[m, padded n].

    Weight and scales are packed as `fmt` says. Raises CompileError for shapes that don't fit the layout.
    """
    blocks = -(-n // LANES)
    if k % GROUP:
        raise CompileError(f"a linear layer has {k} inputs; the GPU kernels need a multiple of {GROUP}")
    if residual and n != blocks * LANES:
        raise CompileError(f"a residual of {n} columns; the GPU kernels need a multiple of {LANES}")

    def emit(dims: Any, x: Any, w: Any, s: Any, *rest: Any) -> None:
        *added, out = rest

        def tile(rows: int) -> None:
            with workgroups((dims.m + rows - 1) // rows * blocks) as (group, thread):
                multiply(group // blocks * rows, rows, T.Bind(group % blocks), thread)

        def multiply(first: Any, rows: int, block: Any, thread: Any) -> None:
            lane, part = T.Bind(thread % LANES), T.Bind(thread // LANES)
            at = [T.Bind(T.min(first + r, dims.m - 1)) for r in range(rows)]  # the last row fills the tile up
            sums = registers(rows, value=0.0)
            with strided(k // GROUP, part, SLICES) as g, T.serial(GROUP // 2) as j:
                for half, weight in enumerate(fmt.pair(w, block, g, j, lane, 1)):
                    weight = T.Bind(weight * fmt.scale(s, block, g, lane, 1) if fmt.group else weight)
                    column = T.Bind(g * GROUP + half * 16 + j)
                    for r in range(rows):
                        accumulate(sums, r, x[at[r], column] * weight)
            parts = shared((SLICES * rows * LANES,))
            for r in range(rows):
                T.buffer_store(parts, sums[r], [(part * rows + r) * LANES + lane])
            barrier()
            with strided(rows * LANES, thread) as i, T.If(first + i // LANES < dims.m), T.Then():
                write(first + i // LANES, block * LANES + i % LANES, [parts[p * rows * LANES + i] for p in range(SLICES)])

        def write(row: Any, column: Any, parts: list[Any]) -> None:
            value = sum(parts[1:], start=parts[0])
            value = value if scale == 1.0 else value * constant(scale)
            T.buffer_store(out, added[0][row, column] + value if added else value, [row, column])

        with T.If(dims.m < TILE_ROWS // 2):
            with T.Then():
                tile(1)
            with T.Else():
                tile(TILE_ROWS)

    arguments = {
        "x": ("float32", "m", k),
        "w": (fmt.dtype, *fmt.weight_shape(n, k)),
        "s": (fmt.scale_dtype, *fmt.scale_shape(n, k)),
        **({"residual": ("float32", "m", n)} if residual else {}),
        "out": ("float32", "m", blocks * LANES),
    }
    return kernel("linear_residual" if residual else "linear", arguments, emit)
