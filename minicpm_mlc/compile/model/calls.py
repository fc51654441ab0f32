"""Calls of kernels from the Relax functions that running a part builds.

TVM is imported where it is called, so that models can be described without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor
    from tvm.tirx import PrimFunc

Shape = Sequence[Any]  # of ints and symbolic dimensions


def call(kernel: PrimFunc, name: str, args: list[Tensor], shape: Shape, dtype="float32") -> Tensor:
    """Calls a kernel that writes one new tensor."""
    from tvm.relax.frontend.nn import Tensor, op

    return op.tensor_ir_op(kernel, name, args, Tensor.placeholder(shape, dtype))


def call_words(kernel: PrimFunc, name: str, args: list[Tensor], rows: Any, columns: int) -> Tensor:
    """Calls a kernel that writes [rows, columns] quantised as linear_int8 takes them, int32."""
    from minicpm_mlc.ops.cpu.quantize_rows import quantized_shape

    return call(kernel, name, args, quantized_shape(rows, columns), "int32")


def constant(array: np.ndarray) -> Tensor:
    """A tensor that is stored in the library."""
    from tvm.relax.frontend.nn import Tensor

    return Tensor.from_const(array)
