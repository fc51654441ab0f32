"""Parameters of kernels that were measured on a device: `minicpm-mlc tune` writes such a table,
`compile --tuning` takes it. Tables of known devices lie beside this file; a device that has none
takes the nearest one.

A parameter is a field of a target's traits, and what it may be stands there too (`choices`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.files import as_object, read_json_object
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.targets.base import Target

if TYPE_CHECKING:
    from minicpm_mlc.ops.build import Traits

TABLES = Path(__file__).parent
ADVICE = "make a table: minicpm-mlc tune BUNDLE"


@dataclass(frozen=True)
class TunedKernel:
    """One operator at one shape. `record`: Operator.to_json(); `parameters`: the fastest found,
    empty for the usual ones. Times in microseconds; `of_ceiling`: of the speed of memory.
    """

    record: dict[str, Any]
    parameters: dict[str, int]
    microseconds: float
    usual_microseconds: float
    of_ceiling: float
    nmse: float


@dataclass(frozen=True)
class Tuning:
    """The kernels of one device: its kind, name, dot products of int8, bytes per second of its
    memory.
    """

    device: str
    name: str
    int8_dot: str | None
    bandwidth: float
    kernels: list[TunedKernel]

    @classmethod
    def read(cls, path: str | Path) -> Tuning:
        """A table. Raises CompileError for a file that is none."""
        stored = read_json_object(Path(path), CompileError, ADVICE)
        try:
            rows = [
                TunedKernel(**as_object(row, path, CompileError, ADVICE))
                for row in stored.pop("kernels")
            ]
            table = cls(**stored, kernels=rows)
            table.check()
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise CompileError(
                f"{path} is no table of minicpm-mlc tune ({error}); {ADVICE}"
            ) from None
        return table

    @classmethod
    def nearest(cls, target: Target, folder: Path = TABLES) -> Tuning | None:
        """The shipped table of a device of the target's kind that multiplies int8 as it does."""
        tables = map(cls.read, sorted(folder.glob("*.json")))
        alike = (t for t in tables if (t.device, t.int8_dot) == (target.device, target.int8_dot))
        return next(alike, None)

    def check(self) -> None:
        """Raises ValueError for parameters that no kernel has."""
        kind = CpuTraits if self.device == "cpu" else GpuTraits
        for kernel in self.kernels:
            kernel.record["fields"].keys()
            choices = kind.choices.get(str(kernel.record["operator"]), {})
            for name, value in kernel.parameters.items():
                if value not in choices.get(name, ()):
                    raise ValueError(f"{kernel.record['operator']} has no {name} of {value}")

    def suits(self, target: Target) -> bool:
        """Whether its parameters are those of the target's kernels."""
        return self.device == target.device

    def applied(self, operator: Operator, traits: Traits) -> Traits:
        """The traits that an operator's kernel is built with: with the parameters of the nearest
        shape, if the operator was measured.
        """
        own = operator.to_json()
        measured = [each for each in self.kernels if each.record["operator"] == own["operator"]]
        if not measured:
            return traits
        nearest = min(measured, key=lambda each: _distance(own["fields"], each.record["fields"]))
        return traits.tuned(nearest.parameters)

    def json(self) -> str:
        """What `read` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Of two records' fields: how many times larger or smaller, and another format counts most."""
    if one.keys() != other.keys():
        return inf
    return sum(map(_apart, one.values(), other.values()))


def _apart(one: Any, other: Any) -> float:
    if one == other:
        return 0.0
    sizes = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return abs(log((one or 1) / (other or 1))) if sizes and one * other >= 0 else 100.0
