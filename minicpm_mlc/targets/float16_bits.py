"""float16 widened by its bits, for processors without an instruction: LLVM calls a function for
each number there, which costs more than all else that a kernel does with it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_LARGEST_EXPONENT = 2.0**112  # between the exponents' offsets, 127 and 15


@cache
def widened_by_bits() -> Any:
    """Pass: a float16 that becomes a float32 is computed from its bits, exactly, subnormals too;
    infinities come as 2**16.
    """
    import tvm_ffi
    from tvm import tirx

    @tirx.transform.prim_func_pass(opt_level=0, name="WidenFloat16")
    def widen(function: Any, *_: Any) -> Any:
        body = tvm_ffi.structural_map(function.body, (tirx.Cast, _widened))
        return function.with_body(body)

    return widen


def _widened(cast: Any) -> Any:
    """float32 of the value of a Cast, where it makes that of float16; else the Cast."""
    from minicpm_mlc.ops.tir import T, splat, typed

    source, target = cast.value.ty.dtype, cast.ty.dtype
    kind, _, lanes = str(source).partition("x")
    n = int(lanes or 1)
    if kind != "float16" or str(target) != typed("float32", n):
        return cast

    def bits(value: int) -> Any:
        return splat(T.int32(value), n)

    half = T.Cast(typed("int32", n), T.reinterpret(cast.value, dtype=typed("uint16", n)))
    size = T.reinterpret(T.shift_left(half & bits(0x7FFF), bits(13)), dtype=typed("float32", n))
    scaled = size * splat(T.float32(_LARGEST_EXPONENT), n)
    sign = T.shift_left(half & bits(0x8000), bits(16))
    joined = T.bitwise_or(T.reinterpret(scaled, dtype=typed("int32", n)), sign)
    return T.reinterpret(joined, dtype=typed("float32", n))
