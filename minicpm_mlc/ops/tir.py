"""TVM's script builder `T`, imported when a kernel is built: what only describes a format can then
be imported without TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

Expr = Any  # a TIR expression; TVM's own union type says no more than this
PrimFunc = Any  # a kernel, as TVM builds it
Buffer = Any  # a TIR buffer, or one of float16 seen as float32 (ops/gpu/float16_bits.py)

if TYPE_CHECKING:
    from tvm.script import tirx as T
else:

    class _ScriptBuilder:
        """The module tvm.script.tirx, which it imports for the first name that it is asked for."""

        def __getattr__(self, name: str) -> Any:
            from tvm.script import tirx

            return getattr(tirx, name)

    T = _ScriptBuilder()

# hand-written loops: no pass may touch them
ATTRS = {"tirx.noalias": True, "tirx.is_scheduled": True}
# a running maximum before any number; finite, so that LOWEST - LOWEST is 0 and not NaN
LOWEST = -3e38


Dims = SimpleNamespace  # a kernel's dynamic dimensions by name, int64 each
Described = tuple[Any, ...]  # (dtype, *shape) of an argument; a dimension in quotes is dynamic


def prim_func(
    name: str,
    arguments: Mapping[str, Described],
    emit: Callable[..., None],
    opened: Callable[[Buffer], Buffer] = lambda buffer: buffer,
) -> PrimFunc:
    """The PrimFunc with these arguments; emit(dims, *buffers) writes its body. dims.n is the
    dynamic dimension "n", which is the same in all arguments; bodies read a buffer as `opened`
    gives it.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    with IRBuilder() as ir:
        with builder.prim_func(is_private=True):
            builder.func_name(name)
            builder.func_attr(ATTRS)
            handles = {each: builder.arg(f"{each}_handle", T.handle()) for each in arguments}
            names = [d for _, *shape in arguments.values() for d in shape if isinstance(d, str)]
            dims: dict[Any, Any] = {n: IRBuilder.name(n, T.int64()) for n in dict.fromkeys(names)}
            buffers = [
                T.match_buffer(handles[each], tuple(dims.get(d, d) for d in shape), dtype)
                for each, (dtype, *shape) in arguments.items()
            ]
            emit(Dims(**dims), *map(opened, buffers))
    return ir.get()


def typed(dtype: str, lanes: int) -> str:
    """The dtype of a vector of so many lanes; one lane is a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """The scalar in every lane; one lane is a scalar."""
    return value if lanes == 1 else T.broadcast(value, lanes)
