"""The float32 peak that kernels are held against: no kernel may be faster in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import tvm

from minicpm_mlc.bench.limits import FLOAT32_OPERATIONS
from minicpm_mlc.bench.timing import compiled, use_threads
from minicpm_mlc.ops.attend import AttendPrefill
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu import speed_limits
from minicpm_mlc.ops.formats.kv import F32
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.targets.cpu import CpuTarget

ROWS, COLUMNS, TOKENS, HEADS = 64, 512, 512, (8, 1, 128)
ROUNDS = 60


def tensors(*arrays: np.ndarray) -> list[tvm.runtime.Tensor]:
    return [tvm.runtime.tensor(array) for array in arrays]


def peak() -> tuple[Callable[[], object], float]:
    """A call, and the operations that a thread makes in it."""
    vectors = CpuTarget.of("native").traits.peak_vectors
    call = compiled(speed_limits.multiply_add_peak(vectors))
    out = tensors(np.zeros((1, 16), np.float32))
    return lambda: call(*out), vectors * speed_limits.STEPS * FLOAT32_OPERATIONS


def linear() -> tuple[Callable[[], object], float]:
    rng, scheme = np.random.default_rng(0), SCHEMES["f32"]
    call = compiled(build(Linear(COLUMNS, COLUMNS, scheme), CpuTarget.of("native").traits))
    weights = (scheme.random(t.name, t.shape) for t in scheme.tensors(COLUMNS, COLUMNS))
    x = rng.standard_normal((ROWS, COLUMNS), np.float32)
    given = tensors(x, *weights, np.zeros((ROWS, COLUMNS), np.float32))
    return lambda: call(*given), 2 * ROWS * COLUMNS**2


def attention() -> tuple[Callable[[], object], float]:
    heads, kv_heads, head_dim = HEADS
    rng, pages = np.random.default_rng(0), TOKENS // 64
    call = compiled(build(AttendPrefill(*HEADS, F32), CpuTarget.of("native").traits))
    q = rng.standard_normal((ROWS, heads, head_dim), np.float32)
    table, slots = np.arange(pages, dtype=np.int32)[None], np.full(ROWS, TOKENS - 1, np.int32)
    out = np.zeros((ROWS, heads * head_dim), np.float32)
    given = tensors(q, *F32.random_pages(rng, pages, kv_heads, head_dim), table, slots, out)
    return lambda: call(*given), 4 * ROWS * heads * head_dim * TOKENS


@pytest.mark.campaign
def test_no_kernel_is_faster_than_the_peak(monkeypatch):
    """By the processor time of one thread, the best of many turns."""
    use_threads(1)
    monkeypatch.setattr(speed_limits, "STEPS", 20_000)
    sides = [peak(), linear(), attention()]
    best = [0.0] * len(sides)
    for _ in range(ROUNDS):
        for i, (call, operations) in enumerate(sides):
            start = time.thread_time()
            call()
            best[i] = max(best[i], operations / (time.thread_time() - start))
    assert best[0] >= max(best[1:]), [round(each / 1e9, 1) for each in best]
