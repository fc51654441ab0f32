"""Arguments of random numbers, to check kernels with: small and repeated, or whole.

`minicpm-mlc verify` keeps its arguments in the bundle, so they are small tiles that repeat to a
model's shapes. The test grid makes them anew and wants every number to differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled

PERIOD = 67  # numbers in a row of activations that differ: prime, so no kernel's tile divides it
ROWS = (1, 2, 3, 4, 7, 8, 9, 16, 33, 65)  # counts of rows that the test grid tries


@dataclass(frozen=True)
class Sample:
    """One call: inputs and states in the kernel's order.

    `outputs`: the answers where they repeat as the inputs do; else the definition gives them.
    """

    inputs: Sequence[Tiled]
    outputs: Sequence[Tiled] | None = None


def sample(*inputs: Tiled) -> Sample:
    """A call whose answers the definition gives."""
    return Sample(inputs)


class Draw:
    """Gives samples their numbers. `whole`: every number differs and there are many sizes; else
    arguments repeat small tiles, which come out the same whenever they are asked for in one order.
    """

    def __init__(self, whole: bool = False, seed: int = 0) -> None:
        self.whole = whole
        self.random = np.random.default_rng(seed)
        self._drawn: Counter[tuple[int, ...]] = Counter()

    def rows(self, *few: int, most: int = 6) -> list[int]:
        """How many rows to try: `few` in a bundle, `most` of ROWS in the grid."""
        return self.random.choice(ROWS, most, replace=False).tolist() if self.whole else list(few)

    def normal(self, *shape: int, scale: float = 1.0, period: int = PERIOD) -> Tiled:
        """float32 normal numbers times `scale`; where they repeat, they do along the last axis."""
        size = shape if self.whole else (*shape[:-1], min(shape[-1], period))
        numbers = self.generator(size).standard_normal(size, np.float32)
        return Tiled(numbers * np.float32(scale), shape)

    def below(self, high: int, count: int) -> Tiled:
        """int32 [count], whole numbers from 0 to high - 1."""
        return ids(*self.generator((count,)).integers(0, high, count))

    def generator(self, shape: tuple[int, ...]) -> np.random.Generator:
        """Where numbers of this shape come from. Small tiles of one shape are the same in every
        sample, so that a bundle stores them once.
        """
        if self.whole:
            return self.random
        self._drawn[shape] += 1
        return np.random.default_rng([self._drawn[shape] - 1, *shape])


def ids(*values: Any) -> Tiled:
    """int32 arguments."""
    return Tiled.whole(np.array(values, np.int32))
