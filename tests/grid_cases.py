"""What the operator grid calls: generated shapes and data, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from op_cases import nmse
from test_ops_linear import packed
from test_ops_linear_int8 import stored, words_of

from minicpm_mlc.ops.build import build, has_kernel
from minicpm_mlc.ops.cpu.embed import embed_definition
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.cpu.linear import linear_definition
from minicpm_mlc.ops.cpu.linear_int8 import linear_int8_definition
from minicpm_mlc.ops.cpu.quantize_rows import WORDS
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.operator import Operator, all_records
from minicpm_mlc.ops.samples import Draw, Sample
from minicpm_mlc.targets import Target, get_target

ROWS = (1, 2, 3, 4, 7, 8, 9, 16, 33, 65)


@dataclass(frozen=True)
class Kernel:
    """One function: a method of the kernel sets and its arguments. `dtype`: what the table tells
    apart.
    """

    operator: str
    dtype: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def build(self, target: Target) -> Any:
        return getattr(target.kernels, self.operator)(*self.arguments, **dict(self.options))

    def is_there(self, target: Target) -> bool:
        """Whether the target has such a kernel."""
        return hasattr(target.kernels, self.operator)


@dataclass(frozen=True)
class RecordKernel:
    """The same of an operator that has a record."""

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
        return has_kernel(type(self.record), target.traits)


@dataclass(frozen=True)
class Case:
    """One call. `outcome` takes what counts from the arguments after it, the last one if nothing
    else is said.
    """

    kernel: Kernel | RecordKernel
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


def weights(rng: np.random.Generator) -> Iterator[Case]:
    """Operators that read packed weights."""
    for name in SCHEMES:
        for n, k, residual in ((33, 96, False), (80, 1056, True), (160, 256, False)):
            stored, exact, scheme = packed(name, n, k, seed=n)
            kernel = Kernel(
                "linear", name, (n, k, scheme), (("residual", residual), ("scale", 0.25))
            )
            for m in (1, *rng.choice(ROWS[1:], 5, replace=False).tolist()):
                x, added = numbers(rng, m, k), numbers(rng, m, n)
                expected = np.pad(
                    linear_definition(x, exact, added if residual else None, 0.25),
                    ((0, 0), (0, -n % 16)),
                )
                yield Case(
                    kernel,
                    [x, *stored, *([added] if residual else []), empty(*expected.shape)],
                    expected,
                )
        stored, exact, scheme = packed(name, 67, 96, seed=1)
        for n in rng.choice(ROWS, 4, replace=False).tolist():
            ids = rng.integers(0, 67, n).astype(np.int32)
            expected = embed_definition(ids, exact, 12.0)
            yield Case(
                Kernel("embed", name, (67, 96, scheme), (("scale", 12.0),)),
                [ids, *stored, empty(n, 96)],
                expected,
            )


def integers(rng: np.random.Generator) -> Iterator[Case]:
    """Operators on activations rounded to int8."""
    if (dot := get_target("cpu").int8_dot) is None:
        return
    for name in (name for name in SCHEMES if SCHEMES[name].takes_int8):
        for n, k, residual in ((33, 96, False), (80, 1056, True)):
            arrays, exact, scheme = stored(name, n, k)
            factor, options = DOTS[dot].factor(scheme), (("residual", residual), ("scale", 0.25))
            for m in (1, *rng.choice(ROWS[1:], 4, replace=False).tolist()):
                x, added = numbers(rng, m, k), numbers(rng, m, n)
                words, out = words_of(x, factor), empty(m, k // 32, WORDS, dtype="int32")
                yield Case(Kernel("quantize_rows", name, (k, scheme)), [x, out], words, 0)
                expected = np.pad(
                    linear_int8_definition(x, exact, added if residual else None, 0.25),
                    ((0, 0), (0, -n % 16)),
                )
                arguments = [words, *arrays, *([added] if residual else []), empty(*expected.shape)]
                yield Case(
                    Kernel("linear_int8", name, (n, k, scheme), options), arguments, expected
                )


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
    kernel = RecordKernel(record)
    return Case(kernel, [*inputs, *outputs], expected, record.grid_limit, record.outcome)


FAMILIES = {
    family.__name__: family
    for family in (
        weights,
        integers,
    )
} | {name: partial(records_of, kind) for name, kind in all_records().items()}


@cache
def all_cases() -> dict[str, list[Case]]:
    """By family; no int8 products where this machine's processor has none."""
    rng = np.random.default_rng(2026)
    return {name: list(family(rng)) for name, family in FAMILIES.items()}
