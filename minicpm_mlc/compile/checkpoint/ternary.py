"""Ternary weights: floats that are -a, 0 or a within a group of columns, as BitCPM4 and BitCPM-CANN
are published; and the rule that they were trained by, for files that hold what it was applied to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.tensor import (
    SAMPLED_ROWS,
    Derived,
    Integers,
    Tensor,
    contiguous_groups,
)
from minicpm_mlc.compile.checkpoint.weights import ENDS
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme
from minicpm_mlc.ops.formats.weights.groups import GroupScheme

LEAST = 0.999  # of the sampled groups; a published model has 0.003 % of others
BLOCK = 256  # rows counted at a time
LATENT = (
    "these weights are not ternary, as the model's name says: they may be those that training "
    "rounded; --ternary 128 rounds them as BitCPM's training does, in groups of 128 columns"
)


@dataclass(frozen=True)
class Ternary(Derived):
    """A matrix of floats whose groups of 32 columns have three values each, but for a few."""

    @property
    def form(self) -> str:
        return f"ternary {self.base.form}"

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.base.rows(start, stop)

    def carried(self, scheme: Scheme, start: int, stop: int) -> Parts | None:
        """Groups of other values are quantised."""
        if not isinstance(scheme, GroupScheme) or scheme.group != GROUP:
            return None
        rows = self.rows(start, stop)
        signs, scale, fits = _taken_apart(rows)
        groups = contiguous_groups(rows.shape[1], scale.shape[1])
        exact = Integers(signs.astype(np.uint8), scale, groups, 1).carried(scheme)
        if exact is None or fits.all():
            return exact
        parts = scheme.quantize(rows)
        for name, part in exact.items():
            held = part.reshape(fits.size, -1)
            parts[name].reshape(fits.size, -1)[fits.reshape(-1)] = held[fits.reshape(-1)]
        return parts

    @cached_property
    def odd_groups(self) -> int:
        blocks = range(0, self.shape[0], BLOCK)
        return sum(int((~_taken_apart(self.rows(i, i + BLOCK))[2]).sum()) for i in blocks)


@dataclass(frozen=True)
class Rounded(Ternary):
    """A matrix as training rounded it: s * clip(round(w / s), -1, 1), where s is the mean size of
    the group's weights, here as an f16.
    """

    columns: int  # of a group

    @property
    def form(self) -> str:
        return f"ternary weights made of {self.base.form}"

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = self.base.rows(start, stop)
        groups = rows.reshape(len(rows), -1, self.columns)
        scale = np.abs(groups).mean(-1, keepdims=True).astype(np.float16).astype(np.float32)
        signs = np.rint(groups / np.where(scale == 0, 1, scale)).clip(-1, 1)
        return (signs * scale).reshape(rows.shape)


def with_ternary(tensors: Mapping[str, Tensor], columns: int | None) -> dict[str, Tensor]:
    """The same tensors, linears of floats that are ternary as such. `columns`: the group that all
    are rounded in, as training did. Raises CheckpointError where it doesn't divide a matrix.
    """

    def seen(name: str, tensor: Tensor) -> Tensor:
        if tensor.quantised or len(tensor.shape) != 2 or name in ENDS:
            return tensor
        if columns is None:
            return Ternary(tensor) if _is_ternary(tensor) else tensor
        if columns < GROUP or tensor.shape[1] % columns or columns % GROUP:
            raise CheckpointError(
                f"--ternary {columns}: tensor {name} has {tensor.shape[1]} columns; give a "
                f"multiple of {GROUP} that divides them, such as 128"
            )
        return Rounded(tensor, columns)

    made = {name: seen(name, tensor) for name, tensor in tensors.items()}
    if columns is not None and not any(isinstance(tensor, Rounded) for tensor in made.values()):
        raise CheckpointError(
            f"--ternary {columns}: the linears are quantised already; leave it out"
        )
    return made


def _is_ternary(tensor: Tensor) -> bool:
    rows = tensor.rows(0, SAMPLED_ROWS)
    return bool(rows.any()) and float(_taken_apart(rows)[2].mean()) >= LEAST


def _taken_apart(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 + signs [n, k], sizes float32 [n, k / 32], and bool [n, k / 32]: whether a group has no
    other values. Groups that have are all zeros here.
    """
    groups = rows.reshape(len(rows), -1, GROUP)
    size = np.abs(groups).max(-1)
    with np.errstate(over="ignore"):
        fits = size.astype(np.float16) == size
    fits &= ((groups == 0) | (np.abs(groups) == size[..., None])).all(-1)
    size = np.where(fits, size, 0)
    signs = np.where(fits[..., None], np.sign(groups), 0)
    return (signs + 1).reshape(rows.shape), size, fits
