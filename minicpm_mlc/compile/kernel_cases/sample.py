"""What every kernel's samples are made of: arguments of random numbers, and the definition's
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Case, Expected, Tiled

ELEMENTWISE, SUMS, EXACT = (
    1e-7,
    1e-5,
    0.0,
)  # limits of NMSE; sums leave room for float16 products of tensor cores
ROUNDED = 1e-4  # of attention that rounds queries and weights to bfloat16
PERIOD = (
    67  # numbers in a row of activations that differ: prime, so that no tile of a kernel divides it
)


@dataclass(frozen=True)
class Sample:
    """A case without its kernel's names."""

    limit: float
    inputs: Sequence[Tiled]
    expected: Sequence[Expected]

    def of(self, kernel: str, operator: str) -> Case:
        return Case(kernel, operator, self.limit, self.inputs, self.expected)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def rows(n: int, width: int, seed: int = 0) -> Tiled:
    """n rows of activations, float32 [n, width]."""
    return Tiled(normal(n, min(width, PERIOD), seed=seed), (n, width))


def ids(*values: Any) -> Tiled:
    """int32 arguments."""
    return Tiled.whole(np.array(values, np.int32))


def new(
    inputs: Sequence[Tiled], answer: np.ndarray, limit: float = ELEMENTWISE, dtype: str = "float32"
) -> Sample:
    """A sample of a kernel that writes one new tensor."""
    return Sample(limit, inputs, [Expected(len(inputs), Tiled.whole(answer.astype(dtype)))])


def changed(argument: int, before: np.ndarray, after: np.ndarray) -> Expected:
    """What an argument that is updated in place holds where it changed."""
    flat = after.ravel()
    places = np.flatnonzero(before.ravel() != flat).astype(np.int32)
    return Expected(argument, Tiled.whole(flat[places]), places)
