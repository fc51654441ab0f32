"""The machine's limits for a benchmark, by kernels compiled here."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.bench.roofline import Limits, MemoryReader
from minicpm_mlc.bench.timing import compiled, seconds, use_threads
from minicpm_mlc.ops.cpu.speed_limits import (
    PEAK_VECTORS,
    STEPS,
    int8_operations,
    int8_peak,
    multiply_add_peak,
    read_peak,
)
from minicpm_mlc.runtime_py.memory import reserve
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
    """All limits with `threads` threads; memory's is the reader's best."""
    return Limits(threads, reader.best, *_rates(threads, min))


def usual_limits(threads: int, reader: MemoryReader) -> Limits:
    """What a program may count on beside others: medians, where `measure_limits` has the best."""
    return Limits(threads, reader.usual, *_rates(threads, statistics.median))


def _rates(threads: int, choose: Callable[[list[float]], float]) -> tuple[float, float | None]:
    """float32 and int8 operations per second; `choose` takes one of the passes' seconds."""
    use_threads(threads)
    target = CpuTarget.of("native")
    kernel = multiply_add_peak(PEAK_VECTORS)
    float32 = _rate(kernel, "float32", threads, FLOAT32_OPERATIONS, choose)
    dot = target.int8_dot
    if not dot:
        return float32, None
    kernel = int8_peak(PEAK_VECTORS, dot)
    return float32, _rate(kernel, "int32", threads, int8_operations(dot), choose)


def _rate(
    kernel: Any,
    dtype: str,
    threads: int,
    operations: int,
    choose: Callable[[list[float]], float],
) -> float:
    """Operations per second of a kernel that multiplies."""
    run = compiled(kernel)
    out = tvm.runtime.from_dlpack(reserve((threads, 16), np.dtype(dtype)))
    passes = [seconds(lambda: run(out)) for _ in range(PASSES)]
    return threads * STEPS * PEAK_VECTORS * operations / choose(passes)
