"""What models are made of: parts, which hold other parts or are weights.

The tree of parts is the only place where a model's weights are written down: the library's
parameters, what is converted into them, and what a checkpoint must hold all come from walking it.
Building the tree needs no TVM; only running a part does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from minicpm_mlc.compile.config.model_config import LayerConfig
from minicpm_mlc.compile.convert import Param, stored_tensors
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Parameter, Tensor

    from minicpm_mlc.compile.kernels import Kernels

PARAMETER_DTYPES = {"bfloat16": "uint16"}  # of stored dtypes that kernels read by their bits


@dataclass(frozen=True)
class Plan:
    """What parts are built for: the shape of a layer, how it is stored, whose kernels it calls.

    Parts built without `target_kernels` can be walked, not run.
    """

    config: LayerConfig
    precision: Precision
    target_kernels: Kernels | None = None

    @property
    def kernels(self) -> Kernels:
        """The operators of the target. Raises AssertionError where there are none."""
        assert self.target_kernels is not None, "parts built without kernels can't be run"
        return self.target_kernels

    def sum_factor(self, scheme: Scheme) -> int:
        """What the target's quantize_rows multiplies sums by beside weights of this scheme. Raises
        AssertionError where the target multiplies no int8.
        """
        factor = self.kernels.traits.sum_factor(scheme)
        assert factor is not None, "the target multiplies no int8"
        return factor

    @property
    def kv(self) -> KVFormat:
        """How keys and values lie for the target's kernels."""
        return self.kernels.laid_out(self.precision.kv)

    @property
    def scheme(self) -> Scheme:
        """How linears are stored, unless the precision names another scheme."""
        return self.precision.matrices

    @property
    def int8(self) -> bool:
        """Whether linears meet inputs that are rounded to int8."""
        return self.scheme.int8


class Part:
    """A part of a model. Its weights are those of the parts among its attributes, in the order in
    which these were set.
    """

    def weights(self, path: str = "") -> Iterator[tuple[str, Weight]]:
        """Every weight by its name in the library: the attributes on the way to it, with dots."""
        for name, value in vars(self).items():
            for own, part in _parts(name, value):
                yield from part.weights(f"{path}.{own}" if path else own)

    def parameters(self) -> list[Param]:
        """The published tensors behind every parameter, in the library's order."""
        return [weight.param(name) for name, weight in self.weights()]

    def published(self) -> dict[str, tuple[int, ...]]:
        """The shape of every published tensor by its name; matrices are [out, in]."""
        return {
            source: (rows, weight.columns) if weight.columns else (rows,)
            for _, weight in self.weights()
            for source, rows in weight.sources.items()
        }

    def tensors(self) -> dict[str, Parameter]:
        """The library's parameters, by their stored names, in its order."""
        return {
            stored.name: tensor
            for name, weight in self.weights()
            for stored, tensor in zip(
                stored_tensors(weight.param(name)), weight.tensors, strict=True
            )
        }


def _parts(name: str, value: object) -> Iterator[tuple[str, Part]]:
    if isinstance(value, Part):
        yield name, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _parts(f"{name}.{i}", item)


class Weight(Part):
    """A stored parameter: the rows of published tensors, stacked.

    `sources`: the rows of each published tensor, by its name. `columns` 0 is a float32 vector.
    """

    def __init__(
        self, plan: Plan, sources: Mapping[str, int], columns: int, scheme: Scheme | None = None
    ) -> None:
        """`scheme`: where it isn't the plan's for these tensors."""
        self.plan = plan
        self.sources = sources
        self.columns = columns
        self.scheme = scheme or plan.precision.of(next(iter(sources)))

    @property
    def rows(self) -> int:
        """Rows of all its published tensors, one below the other."""
        return sum(self.sources.values())

    @property
    def int8(self) -> bool:
        """Whether it meets inputs that are rounded to int8."""
        return self.scheme.int8

    def weights(self, path: str = "") -> Iterator[tuple[str, Weight]]:
        yield path, self

    def param(self, name: str) -> Param:
        """What is converted into it; `name` is its name in the library."""
        return Param(name, tuple(self.sources), self.rows, self.columns, self.scheme)

    @cached_property
    def tensors(self) -> list[Parameter]:
        """The tensors that its scheme stores, as the library takes them."""
        from tvm.relax.frontend.nn import Parameter

        return [
            Parameter(stored.shape, PARAMETER_DTYPES.get(stored.dtype, stored.dtype))
            for stored in stored_tensors(self.param(""))
        ]

    def stored(self) -> list[Tensor]:
        """Its stored tensors, as kernels take them."""
        return list(self.tensors)


class Vector(Weight):
    """A float32 vector."""

    def __init__(self, plan: Plan, source: str, width: int) -> None:
        super().__init__(plan, {source: width}, 0, SCHEMES["f32"])

    @property
    def values(self) -> Tensor:
        """float32 [width]."""
        return self.tensors[0]
