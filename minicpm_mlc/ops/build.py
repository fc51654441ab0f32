"""From an operator's record to its PrimFunc: the body is found by name, the head is generated."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder
from tvm.tirx import PrimFunc

from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.operator import Operator, file_of, operator_name
from minicpm_mlc.ops.tir import ATTRS, Buffer

Dims = SimpleNamespace  # a kernel's dynamic dimensions by name, int64 each


class Traits(Protocol):
    """What kernels may assume of a kind of device. Equal traits give equal kernels."""

    folder: ClassVar[str]  # of ops/ where the bodies are

    def opened(self, buffer: Buffer) -> Buffer:
        """An argument as bodies read it."""
        ...

    def sum_factor(self, scheme: Scheme) -> int | None:
        """What quantize_rows multiplies sums by beside weights of this scheme; None where the
        device multiplies no int8.
        """
        ...


@cache
def build(operator: Operator, traits: Traits) -> PrimFunc:
    """The kernel of an operator; equal calls share one.

    A body is `operator_name(operator, traits, dims, *buffers)`: dims.n is the dynamic dimension
    "n", the buffers are the record's arguments. Raises CompileError for shapes that a body can't
    have, ImportError or AttributeError where the device has no such kernel.
    """
    body = getattr(import_module(_module(type(operator), traits)), operator.name)
    arguments = operator.arguments()
    with IRBuilder() as ir:
        with builder.prim_func(is_private=True):
            builder.func_name(operator.name)
            builder.func_attr(ATTRS)
            handles = {name: builder.arg(f"{name}_handle", T.handle()) for name in arguments}
            names = [d for each in arguments.values() for d in each.shape if isinstance(d, str)]
            dims: dict[Any, Any] = {n: IRBuilder.name(n, T.int64()) for n in dict.fromkeys(names)}
            buffers = [
                T.match_buffer(handles[name], tuple(dims.get(d, d) for d in each.shape), each.dtype)
                for name, each in arguments.items()
            ]
            opened = [traits.opened(buffer) for buffer in buffers]
            body(operator, traits, Dims(**dims), *opened)
    kernel: Any = ir.get()
    return kernel


def has_kernel(kind: type[Operator], traits: Traits) -> bool:
    """Whether a kind of device has a body for an operator."""
    module = _module(kind, traits)
    return find_spec(module) is not None and hasattr(import_module(module), operator_name(kind))


def _module(kind: type[Operator], traits: Traits) -> str:
    return f"minicpm_mlc.ops.{traits.folder}.{file_of(kind)}"
