"""float16 and bfloat16 values in memory, read and written as their bits: many GPUs' compilers take
no others.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.ops.gpu.intrinsics import half_bits_to_float
from minicpm_mlc.ops.tir import Buffer, Expr, T

EXPONENT_SHIFT = 112 << 23  # between the exponents' offsets, 127 and 15
INFINITY = 0x7C00


class HalfBuffer:
    """A float16 buffer whose elements come as float32; `store` of kernel.py rounds to it."""

    dtype = "float16"

    def __init__(self, buffer: Buffer) -> None:
        """`buffer`: the float16 argument of a kernel, outside of its workgroups."""
        self.shape = buffer.shape
        pointer = T.Bind(T.reinterpret(buffer.data, dtype=T.handle("uint16").ty))
        self.bits = T.decl_buffer(tuple(buffer.shape), "uint16", data=pointer)

    def __getitem__(self, index: Expr) -> Expr:
        return half_bits_to_float(self.bits[index])


def opened(buffer: Buffer) -> Buffer:
    """A kernel's argument as bodies read it: float16 by its bits, which come as float32."""
    return HalfBuffer(buffer) if buffer.dtype == "float16" else buffer


def constant(value: float) -> Expr:
    """A float32 constant to the last bit: TVM writes seven digits of it into OpenCL C, too few for
    most.
    """
    if np.float32(f"{value:e}") == np.float32(value):
        return T.float32(value)
    cell = T.alloc_buffer(
        (1,), "int32", scope="local"
    )  # what reinterpret takes in OpenCL C must have an address
    T.buffer_store(cell, int(np.float32(value).view(np.int32)), [0])
    return T.Bind(_float(cell[0]))


def from_float(value: Expr) -> Expr:
    """float16 bits (uint16) of the nearest float16, ties to even."""
    bits = T.Bind(T.reinterpret(value, dtype="int32"))
    size = T.Bind(T.bitwise_and(bits, 0x7FFFFFFF))
    shifted = T.Bind(size - EXPONENT_SHIFT)
    normal = T.shift_right(shifted + 0xFFF + T.bitwise_and(T.shift_right(shifted, 13), 1), 13)
    # the sum with one half has float16's subnormals as its last bits, rounded by the addition
    subnormal = T.reinterpret(_float(size) + T.float32(0.5), dtype="int32") - 0x3F000000
    special = T.Select(size > 0x7F800000, 0x7E00, INFINITY)
    half = T.Select(size < 0x38800000, subnormal, T.Select(size < 0x47800000, normal, special))
    sign = T.bitwise_and(T.shift_right(bits, 16), 0x8000)
    return T.Cast("uint16", T.bitwise_or(half, sign))


def from_bfloat16(bits: Expr) -> Expr:
    """The float32 value of bfloat16 bits."""
    return T.Bind(_float(T.shift_left(T.Cast("uint32", bits), T.uint32(16))))


def bfloat16_bits(value: Expr) -> Expr:
    """bfloat16 bits (uint16) of the nearest bfloat16, ties to even."""
    bits = T.Bind(T.reinterpret(T.Bind(value), dtype="uint32"))
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    return T.Cast("uint16", T.shift_right(bits + T.uint32(0x7FFF) + odd, T.uint32(16)))


def _float(bits: Expr) -> Expr:
    return T.reinterpret(bits, dtype="float32")
