"""A target's operators as a model calls them.

TVM is imported where it is called, so that models can be described without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minicpm_mlc.ops.operator import Argument, Operator

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor
    from tvm.tirx import PrimFunc

    from minicpm_mlc.ops.build import Traits
    from minicpm_mlc.ops.formats.kv import KVFormat
    from minicpm_mlc.targets.tuning import Tuning


class Kernels:
    """`kernels(RmsNorm(width, eps), x, weight)` calls the operator's kernel and returns what it
    gives: the states that it updates in place, then its outputs; alone if that is one tensor.

    A state has to be used as it is returned, or the call is removed as dead code.
    """

    def __init__(self, traits: Traits, tuning: Tuning | None = None) -> None:
        """`tuning`: parameters that were measured on a device; None: the usual ones."""
        self.traits = traits
        self._tuning = tuning
        self.operators: list[tuple[PrimFunc, Operator]] = []  # every kernel that was called

    def __call__(self, operator: Operator, *inputs: Tensor, **dims: Any) -> Any:
        """`dims`: dynamic dimensions that no input has. Raises ValueError for inputs of a shape
        that is not the operator's.
        """
        from tvm.relax.frontend.nn import Tensor, op

        from minicpm_mlc.ops.build import build

        tuned = self._tuning.applied(operator, self.traits) if self._tuning else self.traits
        kernel = build(operator, tuned)
        self.operators.append((kernel, operator))
        sizes = _sizes(operator, inputs) | dims
        states = operator.states()
        made = [_placeholder(argument, sizes) for argument in operator.outputs()]
        if not states:
            return op.tensor_ir_op(kernel, operator.name, list(inputs), _alone(made))
        updated = [Tensor.placeholder(inputs[i].shape, inputs[i].dtype) for i in states]
        places = [*states, *(-1 for _ in made)]
        given, name = list(inputs), operator.name
        return op.tensor_ir_inplace_op(kernel, name, given, places, _alone([*updated, *made]))

    def laid_out(self, kv: KVFormat) -> KVFormat:
        """How keys and values of a format lie for these kernels."""
        return self.traits.laid_out(kv)

    def operator_of(self, kernel: PrimFunc) -> Operator | None:
        """The operator that a kernel was built for here."""
        return next((operator for own, operator in self.operators if kernel.same_as(own)), None)


def _sizes(operator: Operator, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The dynamic dimensions of a call, numbers or symbols."""
    for argument, tensor in zip(operator.inputs(), inputs, strict=True):
        if tensor.dtype != argument.dtype:
            raise ValueError(f"{operator.name}: an input is {tensor.dtype}, not {argument.dtype}")
    return operator.dims([tuple(tensor.shape) for tensor in inputs])


def _placeholder(argument: Argument, sizes: dict[str, Any]) -> Tensor:
    from tvm.relax.frontend.nn import Tensor

    shape = [sizes[d] if isinstance(d, str) else d for d in argument.shape]
    return Tensor.placeholder(shape, argument.dtype)


def _alone(tensors: list[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
