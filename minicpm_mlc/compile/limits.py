"""The machine's limits for a benchmark: memory as the runtime measures it, arithmetic by kernels compiled here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from ..ops.peak import READ_TASKS, STEPS, int8_operations
from ..runtime_py.library import use_threads
from ..runtime_py.memory import reserve
from ..runtime_py.roofline import BUFFER_BYTES, Limits, memory_bandwidth
from ..targets.cpu import PEAK_VECTORS, CpuTarget

FLOAT32_OPERATIONS = 2 * 16  # a multiply-add in 16 lanes
PASSES = 5


def measure_limits(threads: int) -> Limits:
    """Measure all limits with `threads` threads. Call it before an engine is opened: see memory_bandwidth."""
    scanned = memory_bandwidth(threads)
    use_threads(threads)
    target = CpuTarget.of("native")
    float32 = _rate(target.kernels.multiply_add_peak(), "float32", threads, FLOAT32_OPERATIONS)
    dot = target.int8_dot
    int8 = _rate(target.kernels.int8_peak(), "int32", threads, int8_operations(dot)) if dot else None
    return Limits(threads, max(scanned, _bandwidth(target)), float32, int8)


def _bandwidth(target: CpuTarget) -> float:
    """Bytes per second of ops/peak.py's kernel, which keeps memory busier than the plain scan."""
    run = _compiled(target.kernels.read_peak())
    x, out = (tvm.runtime.from_dlpack(reserve((rows, 16), np.dtype("int32"))) for rows in (BUFFER_BYTES // 64, READ_TASKS))
    np.from_dlpack(x)[...] = 1
    return BUFFER_BYTES / min(_seconds(lambda: run(x, out)) for _ in range(PASSES))


def _rate(kernel: Any, dtype: str, threads: int, operations: int) -> float:
    """Operations per second of a kernel that multiplies, the best of some passes."""
    run = _compiled(kernel)
    out = tvm.runtime.from_dlpack(reserve((threads, 16), np.dtype(dtype)))
    return threads * STEPS * PEAK_VECTORS * operations / min(_seconds(lambda: run(out)) for _ in range(PASSES))


def _compiled(kernel: Any) -> Callable[..., None]:
    target = CpuTarget.of("native").tvm_target()
    return tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target)["main"]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
