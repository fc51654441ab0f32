"""The machine's limits for a benchmark, by kernels compiled here."""

from __future__ import annotations

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
    use_threads(threads)
    target = CpuTarget.of("native")
    float32 = _rate(multiply_add_peak(PEAK_VECTORS), "float32", threads, FLOAT32_OPERATIONS)
    dot = target.int8_dot
    int8 = None
    if dot:
        int8 = _rate(int8_peak(PEAK_VECTORS, dot), "int32", threads, int8_operations(dot))
    return Limits(threads, reader.best, float32, int8)


def _rate(kernel: Any, dtype: str, threads: int, operations: int) -> float:
    """Operations per second of a kernel that multiplies, the best of some passes."""
    run = compiled(kernel)
    out = tvm.runtime.from_dlpack(reserve((threads, 16), np.dtype(dtype)))
    return (
        threads
        * STEPS
        * PEAK_VECTORS
        * operations
        / min(seconds(lambda: run(out)) for _ in range(PASSES))
    )
