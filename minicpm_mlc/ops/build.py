"""From an operator's record to its PrimFunc: the body is found by name, the head is generated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar, Protocol

from tvm.tirx import PrimFunc

from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.operator import Operator, file_of, operator_name
from minicpm_mlc.ops.tir import Buffer, Dims, prim_func

__all__ = ["Dims", "Traits", "build", "has_kernel"]  # a body is typed with Dims


class Traits(Protocol):
    """What kernels may assume of a kind of device. Equal traits give equal kernels."""

    folder: ClassVar[str]  # of ops/ where the bodies are
    # what `minicpm-mlc tune` tries, by operator: fields and their values
    choices: ClassVar[dict[str, dict[str, tuple[int, ...]]]]

    @property
    def normalises(self) -> bool:
        """Whether linears normalise their rows themselves."""
        ...

    def opened(self, buffer: Buffer) -> Buffer:
        """An argument as bodies read it."""
        ...

    def tuned(self, parameters: Mapping[str, int]) -> Traits:
        """With these values of what `choices` names."""
        ...

    def sum_factor(self, scheme: Scheme) -> int | None:
        """What quantize_rows multiplies sums by beside weights of this scheme; None where the
        device multiplies no int8.
        """
        ...

    def laid_out(self, kv: KVFormat) -> KVFormat:
        """How keys and values of a format lie for the device's kernels."""
        ...


@cache
def build(operator: Operator, traits: Traits) -> PrimFunc:
    """The kernel of an operator; equal calls share one.

    A body is `operator_name(operator, traits, dims, *buffers)`: dims.n is the dynamic dimension
    "n", the buffers are the record's arguments. Raises CompileError for shapes that a body can't
    have, ImportError or AttributeError where the device has no such kernel.
    """
    body = getattr(import_module(_module(type(operator), traits)), operator.name)
    arguments = {name: (a.dtype, *a.shape) for name, a in operator.arguments().items()}
    return prim_func(operator.name, arguments, partial(body, operator, traits), traits.opened)


def has_kernel(kind: type[Operator], traits: Traits) -> bool:
    """Whether a kind of device has a body for an operator."""
    module = _module(kind, traits)
    return find_spec(module) is not None and hasattr(import_module(module), operator_name(kind))


def _module(kind: type[Operator], traits: Traits) -> str:
    return f"minicpm_mlc.ops.{traits.folder}.{file_of(kind)}"
