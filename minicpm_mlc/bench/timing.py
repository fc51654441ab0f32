"""Kernels compiled for this machine, and what calls of them take, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tvm

from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.targets.cpu import CpuTarget

SHARE_ALL_CORES = -3  # TVM's affinity mode that lets the system move threads between the cores


def compiled(kernel: Any, target: CpuTarget | None = None) -> Callable[..., None]:
    """A PrimFunc as a function of tensors, compiled as libraries are, for this machine unless a
    target is given.
    """
    target = target or CpuTarget.of("native")
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())["main"]


def use_threads(threads: int) -> None:
    """Have kernels that this thread calls run on so many threads of TVM's own pool, as those of
    `compiled` do. They may run on any core that this process may.
    """
    cores = list(map(str, CORES))
    tvm.get_global_func("runtime.config_threadpool")(SHARE_ALL_CORES, threads, cores)


def seconds(call: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of each call, taking turns so that a busy machine disturbs all alike; the first round
    is not counted.
    """
    rounds = [[seconds(call) for call in calls] for _ in range(repeats + 1)][1:]
    return [statistics.median(samples) for samples in zip(*rounds, strict=True)]
