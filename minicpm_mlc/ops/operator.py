"""What an operator is: one record that says its arguments, definition, samples and cost.

A record is a frozen dataclass in a file of its own; its fields are what a kernel is compiled for.
Its bodies in TIR stand in ops/cpu and ops/gpu, in a file of the same name, as a function of the
operator's name; ops/build.py finds them and makes their heads from `arguments`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from math import prod
from pkgutil import iter_modules
from typing import Any, ClassVar, get_type_hints

import numpy as np

from minicpm_mlc import ops
from minicpm_mlc.ops.samples import Draw, Sample

ELEMENTWISE = 1e-7  # NMSE; of operators that add few numbers
SUMS = 1e-5  # of long sums: room for float16 products of tensor cores
EXACT = 0.0
POOL = "num_pages"  # the dimension by which an argument is a pool of pages

Dimension = int | str


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel. A dimension that is a string is dynamic: it has the same size in
    every argument that names it. `role`: "input", "state" (updated in place) or "output".
    `words`: int8 activations as quantize_rows writes them, compared by what they stand for.
    """

    dtype: str
    shape: tuple[Dimension, ...]
    role: str = "input"
    words: bool = False

    def sizes(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape, its dynamic dimensions as `dims` says."""
        return tuple(dims[d] if isinstance(d, str) else d for d in self.shape)

    def nbytes(self, dims: Mapping[str, int]) -> int:
        """Bytes of the whole argument."""
        return prod(self.sizes(dims)) * np.dtype(self.dtype).itemsize


def takes(dtype: str, *shape: Dimension) -> Argument:
    """An argument that is read."""
    return Argument(dtype, shape)


def updates(dtype: str, *shape: Dimension) -> Argument:
    """An argument that is read and updated in place."""
    return Argument(dtype, shape, "state")


def gives(dtype: str, *shape: Dimension, words: bool = False) -> Argument:
    """An argument that is written."""
    return Argument(dtype, shape, "output", words)


@dataclass(frozen=True)
class Cost:
    """What one call must move and compute. `int8`: its products are of int8 numbers."""

    bytes: int = 0
    operations: int = 0
    int8: bool = False


@dataclass(frozen=True)
class Extent:
    """The sizes of one call: its dynamic dimensions, and of the cached sequence's blocks of 64
    tokens how many there are and how many attention reads.
    """

    dims: Mapping[str, int]
    blocks_read: int = 0
    blocks: int = 0


class Operator:
    """Base of all records.

    `limit` is the NMSE that a device may show in `minicpm-mlc verify`, `grid_limit` what the tests
    allow on the devices that they run on.
    """

    limit: ClassVar[float] = ELEMENTWISE
    grid_limit: ClassVar[float] = 1e-11

    @property
    def dtype_label(self) -> str:
        """The stored dtype that the support table tells apart."""
        return "f32"

    @cached_property
    def name(self) -> str:
        """The class's name in lower case, its words joined by underscores."""
        return operator_name(type(self))

    def arguments(self) -> dict[str, Argument]:
        """Every argument by name, in the kernel's order: inputs and states, then outputs."""
        raise NotImplementedError

    def define(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """The definition: inputs and states in, outputs returned, states updated in place."""
        raise NotImplementedError

    def samples(self, draw: Draw) -> Iterator[Sample]:
        """Calls to check a kernel with, of numbers that `draw` gives."""
        raise NotImplementedError

    @classmethod
    def variants(cls) -> Iterator[Operator]:
        """The records that the test grid checks: shapes that a kernel may get wrong."""
        raise NotImplementedError

    def cost(self, extent: Extent) -> Cost:
        """Bytes and operations of one call: here every argument but the pools moves once."""
        return Cost(self.moved_bytes(extent.dims))

    def shape_label(self, extent: Extent) -> str:
        """What a table of operators tells calls of one name apart by."""
        return ""

    def fits(self, traits: Any) -> bool:
        """Whether a kind of device that has the operator can have this record's kernel."""
        return True

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """What counts of the arguments after a call, as one array: here the last argument."""
        return arguments[-1]

    def rounded_limit(self, limit: float, traits: Any) -> float:
        """`limit`, or a wider one where a device's arithmetic rounds what this operator reads."""
        return limit

    def moved_bytes(self, dims: Mapping[str, int]) -> int:
        """Bytes of all arguments that are no pool of pages."""
        arguments = self.arguments().values()
        return sum(each.nbytes(dims) for each in arguments if POOL not in each.shape)

    def inputs(self) -> list[Argument]:
        """The arguments that a call is given."""
        return [each for each in self.arguments().values() if each.role != "output"]

    def outputs(self) -> list[Argument]:
        """The arguments that a call makes."""
        return [each for each in self.arguments().values() if each.role == "output"]

    def states(self) -> list[int]:
        """The places, among the inputs, of those that are updated in place."""
        return [i for i, each in enumerate(self.inputs()) if each.role == "state"]

    def dims(self, shapes: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """The dynamic dimensions of a call, from the shapes of its inputs: numbers, or symbols.

        Raises ValueError where a shape is not the argument's, or two give a dimension two sizes.
        """
        found: dict[str, Any] = {}
        for (name, argument), shape in zip(self.arguments().items(), shapes, strict=False):
            if len(shape) != len(argument.shape):
                raise ValueError(f"{self.name}: {name} has shape {shape}, not {argument.shape}")
            for own, size in zip(argument.shape, shape, strict=True):
                expected = found.setdefault(own, size) if isinstance(own, str) else own
                if isinstance(size, int) and isinstance(expected, int) and expected != size:
                    raise ValueError(f"{self.name}: {name} has {size} where {own} is {expected}")
        return found

    def answers(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All arguments after a call, by the definition: copies of the inputs, then the outputs."""
        after = [array.copy() for array in inputs]
        made = self.define(*after)
        made = () if made is None else made if isinstance(made, tuple) else (made,)
        outputs = zip(made, self.outputs(), strict=True)
        return [*after, *(array.astype(argument.dtype) for array, argument in outputs)]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes an equal record of; formats go by their keys or names."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        values = {
            name: getattr(value, "key", getattr(value, "name", value))
            for name, value in own.items()
        }
        return {"file": file_of(type(self)), "operator": self.name, "fields": values}


def operator_name(kind: type[Operator]) -> str:
    """RmsNorm -> rms_norm."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def file_of(kind: type[Operator]) -> str:
    """The file of ops/ that a record stands in, and of ops/cpu and ops/gpu that its bodies do."""
    return kind.__module__.rpartition(".")[2]


def records_in(file: str) -> dict[str, type[Operator]]:
    """The records of one file of ops/, by the operators' names. A base of theirs has no
    definition.
    """
    module = import_module(f"minicpm_mlc.ops.{file}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type))
    found = (k for k in kinds if issubclass(k, Operator) and k is not Operator)
    own = [k for k in found if k.__module__ == module.__name__ and k.define is not Operator.define]
    return {operator_name(kind): kind for kind in own}


def all_records() -> dict[str, type[Operator]]:
    """Every operator that there is, by name."""
    files = [module.name for module in iter_modules(ops.__path__) if not module.ispkg]
    return {name: kind for file in files for name, kind in records_in(file).items()}


def from_json(value: Mapping[str, Any]) -> Operator:
    """The record that `to_json` described. Raises KeyError for an operator that is not there."""
    kind = records_in(value["file"])[value["operator"]]
    hints = get_type_hints(kind)

    def own(name: str, stored: Any) -> Any:
        """A field's value; a format's class gives the format of a name."""
        named = getattr(hints.get(name), "named", None)
        return named(stored) if named else stored

    return kind(**{name: own(name, stored) for name, stored in value["fields"].items()})
