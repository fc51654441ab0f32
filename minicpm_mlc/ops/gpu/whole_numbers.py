"""Whole numbers as the last bits of a float32: an addition in place of a conversion, which most
GPUs do at a quarter of the speed or less.
"""

from __future__ import annotations

from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.tir import Expr, T

# a float32 of this size has whole numbers as its last bits: adding one, as floats or as the bits'
# integers, is the same for all below MOST
WHOLE, WHOLE_BITS, MOST = 1.5 * 2.0**23, 0x4B400000, 2**22


def from_whole(bits: Expr) -> Expr:
    """The float32 of an int32 x, exactly, given WHOLE_BITS + x; |x| < MOST. `bits` is an element
    of a buffer, as OpenCL C takes the bits only of what has an address.
    """
    return T.reinterpret(bits, dtype="float32") - constant(WHOLE)
