"""What the converter sees of a checkpoint: tensors by their published names, wherever they come
from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from minicpm_mlc.compile.checkpoint.tensor import Tensor
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme

ODD_GROUPS = "{count:,} groups of 32 ternary weights hold other values, and are rounded"
ENDS = (EMBEDDING, HEAD)  # they have a scheme of their own


class Checkpoint(Protocol):
    """Weights by their published names; a tied head is not among them."""

    def names(self) -> list[str]:
        """Every tensor, in layer order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The published shape of a tensor. Raises KeyError for one that is not there."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 rows [start:stop) of a 1-D or 2-D tensor, in memory of their own."""
        ...

    def carried(self, name: str, scheme: Scheme, start: int, stop: int) -> Parts | None:
        """The rows as `scheme` quantises them, with integers and scales that are stored already;
        None where there are none, or the scheme doesn't hold these.
        """
        return None

    def schemes(self) -> tuple[str | None, str | None]:
        """The schemes that suit the layers' weights, and embedding and head; None where they are
        floats, which any scheme suits.
        """
        return None, None

    def notes(self, schemes: Mapping[str, Scheme]) -> list[str]:
        """What a user should know of the matrices when they are stored in these schemes."""
        return []

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        ...


class Weights(Checkpoint):
    """A checkpoint of tensors in any forms. `remarks` are told with its notes."""

    def __init__(self, tensors: Mapping[str, Tensor], remarks: Iterable[str] = ()) -> None:
        self.tensors = tensors
        self.remarks = list(remarks)

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.tensors[name].rows(start, stop)

    def carried(self, name: str, scheme: Scheme, start: int, stop: int) -> Parts | None:
        return self.tensors[name].carried(scheme, start, stop)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def schemes(self) -> tuple[str | None, str | None]:
        """The smallest ones that hold what most of the integers are stored as."""
        matrices = {name: tensor for name, tensor in self.tensors.items() if len(tensor.shape) == 2}
        ends = [tensor for name, tensor in matrices.items() if name in ENDS]
        layers = [tensor for name, tensor in matrices.items() if name not in ENDS]
        return _scheme_of(layers), _scheme_of(ends)

    def notes(self, schemes: Mapping[str, Scheme]) -> list[str]:
        """The remarks, and what is rounded, with the relative error of the weights over rows of
        each tensor.
        """
        mixed = any(self.tensors[name].quantised for name in schemes if name not in ENDS)
        errors: dict[str, list[tuple[float, float]]] = {}
        odd = 0
        for name, scheme in schemes.items():
            tensor = self.tensors[name]
            if tensor.quantised or (mixed and name not in ENDS):
                what = _what_becomes(tensor, scheme)
                errors.setdefault(what, []).append(tensor.error(scheme, name))
                odd += tensor.odd_groups if scheme.name in tensor.holders else 0
        others = [ODD_GROUPS.format(count=odd)] if odd else []
        return [*self.remarks, *others] + [
            f"{len(found)} tensors of {what}: relative error of their weights "
            f"{_relative(found):.2%}"
            for what, found in errors.items()
            if _relative(found) > 0
        ]


def _scheme_of(tensors: list[Tensor]) -> str | None:
    count: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.quantised:
            count[tensor.scheme] += tensor.nbytes
    return count.most_common(1)[0][0] if count else None


def _what_becomes(tensor: Tensor, scheme: Scheme) -> str:
    if not tensor.quantised:
        return f"{tensor.form}, which the checkpoint left as floats, become {scheme.name}"
    if scheme.name in tensor.holders:
        kept = f"{tensor.form} keep their integers in {scheme.name}"
        return f"{kept}, and their scales and minimums are rounded to f16"
    return f"{tensor.form} are quantised again, to {scheme.name}"


def _relative(errors: list[tuple[float, float]]) -> float:
    """Root of squared errors over squares."""
    error, size = (sum(column) for column in zip(*errors, strict=True))
    return (error / size) ** 0.5 if size else 0.0
