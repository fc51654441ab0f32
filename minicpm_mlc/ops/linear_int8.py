"""linear with int8 activations: integer dot products per group of 32 columns, scaled and summed in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.errors import CompileError
from minicpm_mlc.ops import vector
from minicpm_mlc.ops.int8_dot import DOTS
from minicpm_mlc.ops.linear import linear_definition
from minicpm_mlc.ops.quantize_rows import CORRECTION, SCALE, quantized_shape, rounded_rows_definition
from minicpm_mlc.ops.weight_format import GROUP, LANES, WeightFormat

CACHE_GROUPS = 32  # column groups at a time: 16 packed rows and a tile of x stay in L1
CACHE_ROWS = 128  # x rows at a time: 160 KiB of CACHE_GROUPS stay in L2
CACHE_BLOCKS = 4  # weight blocks that meet them before the next rows come


def linear_int8_definition(
    x: np.ndarray, w: np.ndarray, residual: np.ndarray | None = None, scale: float = 1.0
) -> np.ndarray:
    """linear_definition with x [m, k] rounded to int8 as quantize_rows does; w [n, k] dequantised -> float64 [m, n]."""
    return linear_definition(rounded_rows_definition(x), w, residual, scale)


def prefetch(e):
    T.evaluate(T.call_llvm_intrin(T.llvm_lookup_intrinsic_id("llvm.prefetch.p0"), T.address_of(e), 0, int(__import__("os").environ.get("LOC","3")), 1, dtype="void"))


class _LinearInt8:
    """The loops of one shape; the buffers are set when a PrimFunc's signature is known."""

    x: Any
    w: Any
    s: Any
    residual: Any
    out: Any
    m: Any

    def __init__(self, n: int, k: int, fmt: WeightFormat, dot: str, scale: float) -> None:
        self.groups, self.fmt, self.dot, self.scale = k // GROUP, fmt, DOTS[dot], scale
        self.blocks = -(-n // LANES)

    def emit(self) -> None:
        """Tasks of a few blocks of 16 output columns."""
        import os
        SB=int(os.environ.get("SB","4")); MR=int(os.environ.get("MR","1"))
        parts = (self.m + CACHE_ROWS - 1) // CACHE_ROWS
        tasks = -(-self.blocks // CACHE_BLOCKS)
        self.stride=tasks
        with T.parallel(tasks) as task, T.serial(parts) as part:
            first = T.Bind(part * CACHE_ROWS)
            rows = T.Bind(T.min(self.m - first, CACHE_ROWS))
            whole = task + (CACHE_BLOCKS-1)*tasks < self.blocks
            with T.serial(-(-self.groups // CACHE_GROUPS)) as c:
                with T.If(T.And(self.m<=MR, whole)):
                    with T.Then(), T.serial(CACHE_BLOCKS//SB) as bb:
                        with T.serial(self.m) as r: self.tile(r, 1, task+bb*SB*tasks, SB, c)
                    with T.Else():
                        with T.serial((self.blocks-task+tasks-1)//tasks) as b:
                            self.tiles(first, rows, task + b*tasks, c)

    def tiles(self, first: Any, rows: Any, block: Any, c: Any) -> None:
        """All rows of a part: whole tiles, then the powers of two that make up the rest."""
        size = self.dot.tile
        with T.serial(rows // size) as t:
            self.tile(T.Bind(first + t * size), size, block, 1, c)
        while size > 1:
            done = rows // size * size
            size //= 2
            with T.If((rows // size % 2).equal(1)), T.Then():
                self.tile(T.Bind(first + done), size, block, 1, c)

    def tile(self, first: Any, rows: int, block: Any, blocks: int, c: Any) -> None:
        """out[first : first + rows] += x @ w^T over one run of column groups; the last run applies the epilogue."""
        total = vector.registers(rows * blocks)
        places = [(i * LANES, first + r, block + b*self.stride) for i, (b, r) in enumerate((b, r) for b in range(blocks) for r in range(rows))]
        start = T.Bind(c * CACHE_GROUPS)
        with T.If(c == 0):
            with T.Then():
                for at, _, _ in places:
                    vector.store(total, vector.splat(0.0), at)
            with T.Else():
                for at, row, b in places:
                    vector.store(total, vector.load(self.out, row, b * LANES), at)
        with T.serial(T.min(self.groups - start, CACHE_GROUPS)) as i:
            for b in range(blocks):
                self.group(total, b * rows, first, rows, block + b*self.stride, T.Bind(start + i))
        with T.If(start + CACHE_GROUPS >= self.groups):
            with T.Then():
                for at, row, b in places:
                    vector.store(self.out, self.finish(vector.load(total, at), row, b), row, b * LANES)
            with T.Else():
                for at, row, b in places:
                    vector.store(self.out, vector.load(total, at), row, b * LANES)

    def group(self, total: Any, base: int, first: Any, rows: int, block: Any, g: Any) -> None:
        """total[r] += x scale * w scale * integer product; the weights are unpacked once for all rows."""
        width = self.dot.rows
        self.rows_now=rows
        for part in range(0, LANES, width):
            lanes = T.ramp(part, 1, width)
            scale = T.Bind(T.Cast(f"float32x{width}", self.s[block, g * GROUP // self.fmt.group, lanes]))
            weights = self.weights(block, g, part)
            for r in range(rows):
                words = [self.x[first + r, g, i] for i in range(8)]
                product = self.dot.group(self.fmt, weights, words, self.x[first + r, g, CORRECTION])
                x_scale = T.reinterpret(self.x[first + r, g, SCALE], dtype="float32")
                value = T.Cast(f"float32x{width}", product) * T.Bind(scale * T.broadcast(x_scale, width))
                at = T.ramp((base + r) * LANES + part, 1, width)
                T.buffer_store(total, total[at] + value, [at])

    def weights(self, block: Any, g: Any, part: int) -> list[Any]:
        stored = 8 // self.fmt.columns_per_element
        import os
        A=int(os.environ.get("AHEAD","0"))
        if A and self.rows_now<=1:
            for i in range(stored): prefetch(self.w[block, g*stored+A*stored+i, 0])
            if os.environ.get("PS"): prefetch(self.s[block, g+2*A, 0])
        lanes = T.ramp(4 * part, 1, 4 * self.dot.rows)
        return self.dot.unpack(self.fmt, lambda i: T.Bind(self.w[block, g * stored + i, lanes]))

    def finish(self, value: Any, row: Any, block: Any) -> Any:
        value = value if self.scale == 1.0 else value * vector.splat(self.scale)
        return value if self.residual is None else vector.load(self.residual, row, block * LANES) + value


def linear_int8(n: int, k: int, fmt: WeightFormat, dot: str, *, residual: bool = False, scale: float = 1.0) -> Any:
    """PrimFunc (x int32[m, k/32, 10] of quantize_rows, weight, scales[, residual f32[m, n]]) -> f32[m, padded n].

    `fmt` is w4 or w8 in the layout rows16x4, `dot` a name of int8_dot.DOTS. n is padded to a multiple of 16; with a
    residual it must be one. Raises CompileError for shapes that don't fit.
    """
    loops = _LinearInt8(n, k, fmt, dot, scale)
    width = loops.blocks * LANES
    if residual and n != width:
        raise CompileError(f"a residual of {n} columns; the CPU kernels need a multiple of {LANES}")

    def emit(x: Any, w: Any, s: Any, res: Any, out: Any, m: Any) -> None:
        loops.x, loops.w, loops.s, loops.residual, loops.out, loops.m = x, w, s, res, out, m
        loops.emit()

    @T.prim_func(private=True)
    def linear_int8(x_handle: T.handle, w_handle: T.handle, s_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        m = T.int64()
        x = T.match_buffer(x_handle, quantized_shape(m, k), "int32")
        w = T.match_buffer(w_handle, fmt.weight_shape(n, k), fmt.dtype)
        s = T.match_buffer(s_handle, fmt.scale_shape(n, k), fmt.scale_dtype)
        out = T.match_buffer(out_handle, (m, width), "float32")
        emit(x, w, s, None, out, m)

    @T.prim_func(private=True)
    def linear_int8_residual(
        x_handle: T.handle, w_handle: T.handle, s_handle: T.handle, residual_handle: T.handle, out_handle: T.handle
    ):
        T.func_attr(vector.ATTRS)
        m = T.int64()
        x = T.match_buffer(x_handle, quantized_shape(m, k), "int32")
        w = T.match_buffer(w_handle, fmt.weight_shape(n, k), fmt.dtype)
        s = T.match_buffer(s_handle, fmt.scale_shape(n, k), fmt.scale_dtype)
        res = T.match_buffer(residual_handle, (m, width), "float32")
        out = T.match_buffer(out_handle, (m, width), "float32")
        emit(x, w, s, res, out, m)

    return linear_int8_residual if residual else linear_int8
