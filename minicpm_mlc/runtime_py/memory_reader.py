"""How fast a device reads its memory, which bounds a decode step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minicpm_mlc.runtime_py.memory import DeviceMemory, HostMemory, Memory, reserve

BUFFER_BYTES = 512 << 20  # far larger than any last-level cache
CUDA_BYTES = 1 << 30
DEVICE_BYTES = 128 << 20  # what one tensor may have on every other GPU
TASKS = 64  # small enough that a slow core doesn't hold up the others
LANES = 16  # int32 in a row of the buffer
GROUPS, THREADS = 2048, 128  # workgroups of a GPU that read at once
STEP = 4 * GROUPS * 4 * THREADS  # bytes of one turn of all of them
LONG = 0.02  # seconds of a sample on a GPU, beside which one wait is little
MOST_PASSES = 256


class MemoryReader:
    """How fast READ_KERNEL goes through a buffer: of a CPU, with TVM's threads, a compiled function
    (x i32[n, 16], out i32[tasks, 16]); of a GPU (x i32[n], out i32[groups, 128]).

    `best` is the best of all samples so far, in bytes per second, `usual` their median. Other
    programs, and other guests of a virtual machine, slow memory down at times: sample it between
    the measurements that it bounds.
    """

    def __init__(
        self,
        read: Callable[[Any, Any], None],
        nbytes: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        """`nbytes` of the buffer; None: what is surely larger than a cache. `memory`: where it
        lies; None: in this process's. Raises DeviceError where a device has no room for it.
        """
        self._read = read
        self._samples: list[float] = []
        self._memory = memory or HostMemory()
        if isinstance(self._memory, DeviceMemory):
            usual = CUDA_BYTES if self._memory.kind == "cuda" else DEVICE_BYTES
            self._bytes = _whole_steps(nbytes or usual, self._memory.free // 2)
            shapes = (self._bytes // 4,), (GROUPS, THREADS)
            int32 = np.dtype(np.int32)
            self._arguments = [self._memory.zeros(shape, int32) for shape in shapes]
            self._passes = min(MOST_PASSES, max(1, round(LONG / self._seconds(1))))
        else:
            buffer, sums = _host_arrays(nbytes or min(BUFFER_BYTES, self._memory.free // 4))
            self._bytes, self._passes = buffer.nbytes, 1
            self._arguments = [self._memory.tensor(array) for array in (buffer, sums)]

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
        """Goes through the buffer `passes` times, on a GPU each time long enough to be timed."""
        for _ in range(passes):
            self._samples.append(self._passes * self._bytes / self._seconds(self._passes))

    def _seconds(self, passes: int) -> float:
        start = time.perf_counter()
        for _ in range(passes):
            self._read(*self._arguments)
        self._memory.array(self._arguments[1])  # waits for a device
        return time.perf_counter() - start


def _host_arrays(nbytes: int) -> tuple[np.ndarray, np.ndarray]:
    buffer, sums = (
        reserve((rows, LANES), np.dtype(np.int32)) for rows in (nbytes // (4 * LANES), TASKS)
    )
    buffer[...] = 1  # untouched pages would all be the system's one page of zeros
    return buffer, sums


def _whole_steps(wanted: int, room: int) -> int:
    """Bytes that every workgroup's threads read the same number of."""
    return max(1, min(wanted, room) // STEP) * STEP
