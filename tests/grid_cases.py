"""What the operator grid calls: generated shapes and data, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from op_cases import nmse

from minicpm_mlc.ops.build import build, has_kernel
from minicpm_mlc.ops.operator import Operator, all_records
from minicpm_mlc.ops.samples import Draw, Sample
from minicpm_mlc.targets import Target

ROWS = (1, 2, 3, 4, 7, 8, 9, 16, 33, 65)


@dataclass(frozen=True)
class Kernel:
    """One operator's kernel. `dtype`: what the table tells apart."""

    record: Operator

    @property
    def operator(self) -> str:
        return self.record.name

    @property
    def dtype(self) -> str:
        return self.record.dtype_label

    def build(self, target: Target) -> Any:
        return build(self.record, target.traits)

    def is_there(self, target: Target) -> bool:
        return has_kernel(type(self.record), target.traits) and self.record.fits(target.traits)


@dataclass(frozen=True)
class Case:
    """One call. `outcome` takes what counts from the arguments after it, the last one if nothing
    else is said.
    """

    kernel: Kernel
    arguments: list[np.ndarray]
    expected: np.ndarray
    allowed: float = 1e-11  # NMSE
    outcome: Callable[[list[np.ndarray]], np.ndarray] = lambda arguments: arguments[-1]

    def error(self, call: Callable[..., None]) -> float:
        """The NMSE of a call on copies of the arguments."""
        arguments = [array.copy() for array in self.arguments]
        call(*arguments)
        return nmse(self.outcome(arguments), self.expected)


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def empty(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.full(shape, np.nan if dtype == "float32" else -9, dtype)


def records_of(kind: type[Operator], rng: np.random.Generator) -> Iterator[Case]:
    """An operator's own samples of all its variants."""
    draw = Draw(whole=True)
    draw.random = rng
    for record in kind.variants():
        for sample in record.samples(draw):
            yield record_case(record, sample)


def record_case(record: Operator, sample: Sample) -> Case:
    """A sample, and what counts of the definition's answer."""
    inputs = [tiled.array() for tiled in sample.inputs]
    if sample.outputs is None:
        after = record.answers(inputs)
    else:
        after = [*inputs, *(tiled.array() for tiled in sample.outputs)]
    outputs = [empty(*array.shape, dtype=str(array.dtype)) for array in after[len(inputs) :]]
    expected = record.outcome(after)
    kernel = Kernel(record)
    return Case(kernel, [*inputs, *outputs], expected, record.grid_limit, record.outcome)


FAMILIES = {name: partial(records_of, kind) for name, kind in all_records().items()}


@cache
def all_cases() -> dict[str, list[Case]]:
    """By family; no int8 products where this machine's processor has none."""
    rng = np.random.default_rng(2026)
    return {name: list(family(rng)) for name, family in FAMILIES.items()}
