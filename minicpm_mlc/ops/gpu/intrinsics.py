"""Functions that are one instruction on most GPUs, called by name.

Each target says what the name is in its language: targets/cuda_prelude.cuh, targets/opencl.py,
targets/metal.py, and targets/vulkan/expressions.py.
"""

from __future__ import annotations

from minicpm_mlc.ops.tir import Expr, T

HALF_BITS_TO_FLOAT = "half_bits_to_float"
DOT_UNSIGNED, DOT_SIGNED = "dot_unsigned", "dot_signed"


def half_bits_to_float(bits: Expr) -> Expr:
    """The float32 value of the last 16 bits as a float16, exactly."""
    return T.Bind(T.call_pure_extern("float32", HALF_BITS_TO_FLOAT, T.Cast("uint16", bits)))


def dot(unsigned: bool, weights: Expr, values: Expr, total: Expr) -> Expr:
    """int32 `total` + the products of four bytes of a uint32 and of an int32; the values are
    signed, the weights as `unsigned` says.
    """
    name = DOT_UNSIGNED if unsigned else DOT_SIGNED
    return T.call_pure_extern("int32", name, weights, values, total)


def tile(dtype: str, name: str, *arguments: Expr, effect: bool = False) -> Expr:
    """A function of targets/cuda_prelude.cuh about a warp's tiles; with an effect it is called
    here.
    """
    if not effect:
        return T.call_pure_extern(dtype, name, *arguments)
    return T.evaluate(T.call_extern(dtype, name, *arguments))


def last_to_come(meeting: Expr, members: Expr) -> Expr:
    """int32: whether this workgroup is the last of so many that come to a meeting, of which there
    are few hundred; then it sees what the others wrote before. All threads call it, and have met.
    """
    return T.call_extern("int32", "last_to_come", meeting, members)


def kept(x: Expr) -> Expr:
    """int32 x in a register from here on: compilers would rather reckon it again in every turn of a
    loop.
    """
    result = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(result, T.call_extern("int32", "kept", x), [0])
    return result[0]
