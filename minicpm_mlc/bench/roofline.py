"""What this machine has to give: how fast it reads memory, which bounds a decode step, and how fast
it multiplies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.runtime_py.memory import HostMemory, reserve

BUFFER_BYTES = 512 << 20  # far larger than any last-level cache
TASKS = 64  # small enough that a slow core doesn't hold up the others
LANES = 16  # int32 in a row of the buffer


@dataclass(frozen=True)
class Limits:
    """Measured with as many threads as the run: bytes/s of memory, operations/s of float32 and int8
    multiply-adds.

    `int8` is None where the processor has no int8 dot products.
    """

    threads: int
    bandwidth: float
    float32: float
    int8: float | None

    def text(self) -> str:
        """One line, without an end."""
        rates = [
            f"memory reads {self.bandwidth / 1e9:.1f} GB/s",
            f"{self.float32 / 1e9:.0f} GFLOP/s float32",
        ]
        rates += [f"{self.int8 / 1e9:.0f} GOP/s int8"] if self.int8 else []
        return f"{self.threads} thread{'s' * (self.threads > 1)}: {', '.join(rates)}"


class MemoryReader:
    """How fast READ_KERNEL, a compiled function (x i32[n, 16], out i32[tasks, 16]), goes through a
    buffer with TVM's threads.

    `best` is the best of all samples so far, in bytes per second, `usual` their median. Other
    programs, and other guests of a virtual machine, slow memory down at times: sample it between
    the measurements that it bounds.
    """

    def __init__(self, read: Callable[[Any, Any], None], nbytes: int = BUFFER_BYTES) -> None:
        buffer, sums = (
            reserve((rows, LANES), np.dtype(np.int32)) for rows in (nbytes // (4 * LANES), TASKS)
        )
        buffer[...] = 1  # untouched pages would all be the system's one page of zeros
        self._read = read
        self._bytes = buffer.nbytes
        self._samples: list[float] = []
        self._arguments = [HostMemory().tensor(array) for array in (buffer, sums)]

    @property
    def best(self) -> float:
        """Of all samples; 0 before the first."""
        return max(self._samples, default=0.0)

    @property
    def usual(self) -> float:
        """What a program may count on: the median of the samples."""
        return statistics.median(self._samples)

    def forget(self) -> None:
        """Begins anew."""
        self._samples.clear()

    def sample(self, passes: int = 1) -> None:
        """Goes through the buffer `passes` times."""
        for _ in range(passes):
            start = time.perf_counter()
            self._read(*self._arguments)
            self._samples.append(self._bytes / (time.perf_counter() - start))
