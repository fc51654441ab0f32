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


def call_in_place(
    kernel: PrimFunc,
    name: str,
    args: list[Tensor],
    updated: list[int],
    new: Sequence[tuple[Shape, str]] = (),
) -> Any:
    """Calls a kernel that updates the arguments at the places `updated` and writes `new` tensors
    after them -> what it updated and wrote; one tensor alone if there is only one.
    """
    from tvm.relax.frontend.nn import Tensor, op

    outputs = [Tensor.placeholder(args[i].shape, args[i].dtype) for i in updated]
    outputs += [Tensor.placeholder(*out) for out in new]
    places = [*updated, *([-1] * len(new))]
    return op.tensor_ir_inplace_op(
        kernel, name, args, places if len(places) > 1 else places[0], _alone(outputs)
    )


def _alone(tensors: list[Tensor]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def constant(array: np.ndarray) -> Tensor:
    """A tensor that is stored in the library."""
    from tvm.relax.frontend.nn import Tensor

    return Tensor.from_const(array)
