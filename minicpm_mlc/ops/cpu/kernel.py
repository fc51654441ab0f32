"""How a CPU kernel's arguments become the head of its PrimFunc."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder

from minicpm_mlc.ops.cpu.vector import ATTRS


def kernel(name: str, arguments: dict[str, tuple], emit: Callable[..., None]) -> Any:
    """PrimFunc with these arguments, (dtype, *shape) by name; emit(dims, *buffers) writes its body.

    A dimension that is a string is dynamic, the same in all arguments: dims.n is "n", int64.
    """
    with IRBuilder() as ir:
        with builder.prim_func(is_private=True):
            builder.func_name(name)
            builder.func_attr(ATTRS)
            handles = [builder.arg(f"{argument}_handle", T.handle()) for argument in arguments]
            names = [d for _, *shape in arguments.values() for d in shape if isinstance(d, str)]
            dims = {d: T.int64() for d in dict.fromkeys(names)}
            buffers = [
                T.match_buffer(handle, tuple(dims.get(d, d) for d in shape), dtype)
                for handle, (dtype, *shape) in zip(handles, arguments.values(), strict=True)
            ]
            emit(SimpleNamespace(**dims), *buffers)
    return ir.get()
