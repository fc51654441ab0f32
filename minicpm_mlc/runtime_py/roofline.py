"""What this machine has to give: how fast it reads memory, which bounds a decode step, and how fast it multiplies."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

BUFFER_BYTES = 512 << 20  # far larger than any last-level cache
SLICE_BYTES = 8 << 20  # small enough that a slow core doesn't hold up the others


@dataclass(frozen=True)
class Limits:
    """Measured with as many threads as the run: bytes/s of memory, operations/s of float32 and int8 multiply-adds.

    `int8` is None where the processor has no int8 dot products.
    """

    threads: int
    bandwidth: float
    float32: float
    int8: float | None

    def text(self) -> str:
        """One line, without an end."""
        rates = [f"memory reads {self.bandwidth / 1e9:.1f} GB/s", f"{self.float32 / 1e9:.0f} GFLOP/s float32"]
        rates += [f"{self.int8 / 1e9:.0f} GOP/s int8"] if self.int8 else []
        return f"{self.threads} thread{'s' * (self.threads > 1)}: {', '.join(rates)}"


def memory_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES, passes: int = 5) -> float:
    """Bytes read per second by `threads` threads scanning one buffer: the best of `passes` passes.

    Call it before an engine is opened: TVM may pin the calling thread to a core, and new threads inherit that.
    """
    buffer = np.full(buffer_bytes, 1, np.uint8)
    slices = [buffer[start : start + SLICE_BYTES] for start in range(0, buffer_bytes, SLICE_BYTES)]
    scan = _scanner()
    with ThreadPoolExecutor(threads) as pool:
        seconds = [_timed(lambda: list(pool.map(scan, slices))) for _ in range(passes)]
    return buffer_bytes / min(seconds)


def _scanner():
    """memchr for a byte that isn't there: reads as fast as the C library can, and ctypes lets go of the GIL."""
    memchr = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memchr.restype = ctypes.c_void_p
    return lambda part: memchr(part.ctypes.data, 0, part.nbytes)


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
