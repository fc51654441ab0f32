"""The machine's limits for a benchmark, by kernels compiled here."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.timing import compiled, seconds, use_threads
from minicpm_mlc.ops.cpu.speed_limits import (
    INT8_CHAINS,
    STEPS,
    int8_operations,
    int8_peak,
    multiply_add_peak,
    read_peak,
)
from minicpm_mlc.runtime_py.memory import reserve
from minicpm_mlc.runtime_py.memory_reader import MemoryReader
from minicpm_mlc.targets.cpu import CpuTarget

FLOAT32_OPERATIONS = 2 * 16  # a multiply-add in 16 lanes
PASSES = 5


def memory_reader(threads: int) -> MemoryReader:
    """What measures this machine's memory with `threads` threads, sampled a few times."""
    use_threads(threads)
    reader = MemoryReader(compiled(read_peak()))
    reader.sample(PASSES)
    return reader


def measure_limits(threads: int, reader: MemoryReader) -> Limits:
    """All limits with `threads` threads, the best of some passes; memory's is the reader's best."""
    multipliers = Multipliers(threads)
    for _ in range(PASSES):
        multipliers.sample()
    return Limits(threads, reader.best, *multipliers.chosen(max))


class UsualLimits:
    """What a program may count on beside others: medians of samples, which are best taken between
    the measurements that they explain. `measure_limits` has the best.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._memory = memory_reader(threads)
        self._multipliers = Multipliers(threads)

    def sample(self) -> None:
        """Measures all of them once."""
        use_threads(self.threads)
        self._memory.sample()
        self._multipliers.sample()

    def forget(self) -> None:
        """Begins anew."""
        self._memory.forget()
        self._multipliers.forget()

    def limits(self) -> Limits:
        """By the samples since the beginning."""
        rates = self._multipliers.chosen(statistics.median)
        return Limits(self.threads, self._memory.usual, *rates)


class Multipliers:
    """How many operations per second the processor multiplies and adds, float32 and int8 where it
    has int8 dot products.
    """

    def __init__(self, threads: int) -> None:
        use_threads(threads)
        traits = CpuTarget.of("native").traits
        vectors, dot = traits.peak_vectors, traits.int8_dot
        self._threads = threads
        self._kernels = [_multiplier(multiply_add_peak(vectors), "float32", threads)]
        self._operations = [vectors * FLOAT32_OPERATIONS]  # of a step
        if dot:
            self._kernels.append(_multiplier(int8_peak(INT8_CHAINS, dot), "int32", threads))
            self._operations.append(INT8_CHAINS * int8_operations(dot))
        self._samples: list[list[float]] = [[] for _ in self._kernels]

    def sample(self) -> None:
        """Runs each once."""
        for kernel, operations, samples in zip(
            self._kernels, self._operations, self._samples, strict=True
        ):
            samples.append(self._threads * STEPS * operations / seconds(kernel))

    def forget(self) -> None:
        """Begins anew."""
        self._samples = [[] for _ in self._kernels]

    def chosen(self, choose: Callable[[list[float]], float]) -> tuple[float, float | None]:
        """One of the samples of float32, and of int8."""
        float32, *int8 = map(choose, self._samples)
        return float32, int8[0] if int8 else None


def _multiplier(kernel: Any, dtype: str, threads: int) -> Callable[[], Any]:
    run = compiled(kernel)
    out = tvm.runtime.from_dlpack(reserve((threads, 16), np.dtype(dtype)))
    return lambda: run(out)
