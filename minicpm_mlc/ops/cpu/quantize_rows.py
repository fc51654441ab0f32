"""quantize_rows: float32 activations to int8, one scale per row and group of 32 columns.

A group is ten int32 words that a kernel broadcasts one by one: eight of four int8 values each, the
scale's float32 bits, and factor * (sum of the values). The factor is what the weights need
(ops/cpu/int8_dot.py): one that takes their zero point out of the integer product, or 1, where the
sum meets their minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.weights import GROUP

WORDS = 10  # int32 per group
SCALE, SUM = 8, 9  # their places in it
LARGEST = 127  # of an int8 value: symmetric, so that a value can change its sign
SMALLEST = 2.0**-100  # a group below it is zeros: 127 / |x| would overflow


def quantize_rows_definition(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x f32[m, k] -> (int8[m, k], scale f32[m, k/32]): round(x / scale) with scale = max|x| / 127
    of the group.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1)
    inverse = np.divide(
        np.float32(LARGEST), largest, out=np.zeros_like(largest), where=largest >= SMALLEST
    )
    values = np.rint(groups * inverse[..., None]).astype(np.int8)
    return values.reshape(x.shape), largest / np.float32(LARGEST)


def rounded_rows_definition(x: np.ndarray) -> np.ndarray:
    """x f32[m, k] -> float64 [m, k]: the numbers that its quantised form stands for."""
    values, scale = quantize_rows_definition(x)
    return values * np.repeat(scale.astype(np.float64), GROUP, axis=1)


def quantized_shape(m: Any, k: int) -> tuple[Any, int, int]:
    """Shape of the int32 words of x [m, k]."""
    return m, k // GROUP, WORDS


def quantize_rows(k: int, factor: int) -> Any:
    """PrimFunc (x f32[m, k]) -> int32[m, k/32, 10]. A NaN or infinity becomes its group's scale.

    Raises CompileError when k isn't a multiple of 32.
    """
    if k % GROUP:
        raise CompileError(
            f"a linear layer has {k} inputs; the CPU kernels need a multiple of {GROUP}"
        )

    def quantize(m: Any, x: Any, out: Any) -> None:
        def row(r: Any) -> None:
            with T.serial(k // GROUP) as g:
                quantize_group(
                    [vector.load(x, r, g * GROUP + half) for half in (0, 16)], factor, out, r, g
                )

        vector.spread(m, row, serial_below=8)

    @T.prim_func(private=True)
    def quantize_rows(x_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        m = T.int64()
        x = T.match_buffer(x_handle, (m, k), "float32")
        out = T.match_buffer(out_handle, quantized_shape(m, k), "int32")
        quantize(m, x, out)

    return quantize_rows


def quantize_group(halves: list[Any], factor: int, out: Any, r: Any, g: Any) -> None:
    """Emit the ten words of row r, group g, whose 32 values are two vectors."""
    halves = [T.Bind(half) for half in halves]
    bits = [
        T.bitwise_and(T.reinterpret(half, dtype="int32x16"), T.broadcast(0x7FFFFFFF, 16))
        for half in halves
    ]
    # |x| compared as bits: the same order as floats, but a NaN is the largest instead of vanishing
    largest = T.Bind(T.reinterpret(vector.fold(T.max, T.Bind(T.max(*bits))), dtype="float32"))
    T.buffer_store(out, T.reinterpret(largest / T.float32(LARGEST), dtype="int32"), [r, g, SCALE])
    held = vector.registers(
        3
    )  # a memory cell ends an expression; TVM's simplifier expands longer ones for seconds
    inverse = T.Select(largest < T.float32(SMALLEST), T.float32(0), T.float32(LARGEST) / largest)
    vector.store(held, vector.splat(inverse), 0)
    for i, half in enumerate(halves):
        vector.store(held, T.nearbyint(half * vector.load(held, 0)), (1 + i) * 16)
        words = T.Cast("int8x16", T.Cast("int32x16", vector.load(held, (1 + i) * 16)))
        T.buffer_store(out, T.reinterpret(words, dtype="int32x4"), [r, g, T.ramp(4 * i, 1, 4)])
    total = vector.fold(
        lambda a, b: a + b, T.Bind(vector.load(held, 16) + vector.load(held, 32))
    )  # exact: small wholes
    T.buffer_store(out, T.Cast("int32", total * T.float32(factor)), [r, g, SUM])
