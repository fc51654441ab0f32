"""A pool in a device's memory, whose pages are read and written as an array's are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from minicpm_mlc.runtime_py.memory import DeviceMemory


class DevicePool:
    """`pool[pages]` and `pool[pages] = values`, with a list of page numbers; values are an array
    [len(pages), ...]. Raises DeviceError where the device fails.
    """

    def __init__(self, memory: DeviceMemory, tensor: Any) -> None:
        """`tensor`: the pool's, [pages, ...]."""
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype))
        self._memory = memory
        self._tensor = tensor

    def __getitem__(self, pages: Sequence[int]) -> np.ndarray:
        values = np.empty((len(pages), *self.shape[1:]), self.dtype)
        for place, first, count in _runs(pages):
            part = self._memory.part(self._tensor, first, count)
            values[place : place + count] = self._memory.array(part)
        return values

    def __setitem__(self, pages: Sequence[int], values: np.ndarray) -> None:
        for place, first, count in _runs(pages):
            part = self._memory.part(self._tensor, first, count)
            self._memory.write(part, values[place : place + count])


def page_bytes(pool: np.ndarray | DevicePool) -> int:
    """Bytes of one page of a pool."""
    return prod(pool.shape[1:]) * pool.dtype.itemsize


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The runs of consecutive numbers: the first one's place among all, itself, and how many."""
    start = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or pages[end] != pages[end - 1] + 1:
            yield start, pages[start], end - start
            start = end
