"""Cases for every kernel of a library, from the samples of its operator.

`minicpm-mlc verify` runs them on a device, where no definition is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm.tirx import PrimFunc

from minicpm_mlc.bundle.kernel_cases import Case, Expected, Tiled, word_values
from minicpm_mlc.ops.operator import Argument, Operator
from minicpm_mlc.ops.samples import Draw, Sample

if TYPE_CHECKING:
    from minicpm_mlc.compile.kernels import Kernels


def kernel_cases(
    kernels: Kernels, module: Any, report: Callable[[int], object] = lambda steps: None
) -> list[Case]:
    """Cases of the PrimFuncs in an IRModule, under the names they have there; `report(1)` is called
    after each.
    """
    cases: list[Case] = []
    for variable, function in module.functions_items():
        if not isinstance(function, PrimFunc):
            continue
        if record := kernels.operator_of(function):
            cases += cases_of(variable.name_hint, record, kernels.traits)
        report(1)
    return cases


def cases_of(kernel: str, operator: Operator, traits: Any) -> Iterator[Case]:
    """The cases of one operator's kernel, which has this name in the library."""
    limit = operator.rounded_limit(operator.limit, traits)
    for sample in operator.samples(Draw()):
        expected = list(_expected(operator, sample))
        yield Case(kernel, operator.to_json(), limit, sample.inputs, expected)


def _expected(operator: Operator, sample: Sample) -> Iterator[Expected]:
    """What the states hold where a call changes them, then what the outputs hold."""
    inputs = [tiled.array() for tiled in sample.inputs]
    after = operator.answers(inputs) if sample.outputs is None else []
    for place in operator.states():
        yield _changed(place, inputs[place], after[place])
    outputs = sample.outputs or [Tiled.whole(array) for array in after[len(inputs) :]]
    for i, (answer, argument) in enumerate(zip(outputs, operator.outputs(), strict=True)):
        yield _written(len(inputs) + i, answer, argument)


def _changed(argument: int, before: np.ndarray, after: np.ndarray) -> Expected:
    """What an argument that is updated in place holds where it changed."""
    flat = after.ravel()
    places = np.flatnonzero(before.ravel() != flat).astype(np.int32)
    return Expected(argument, Tiled.whole(flat[places]), places)


def _written(argument: int, answer: Tiled, described: Argument) -> Expected:
    """A new tensor; int8 activations as the numbers that they stand for."""
    if not described.words:
        return Expected(argument, answer)
    values = word_values(answer.tile).astype(np.float32)
    shape = (*answer.shape[:-1], values.shape[-1])
    return Expected(argument, Tiled(values, shape), words=True)
