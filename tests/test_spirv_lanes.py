"""Vectors in SPIR-V of ours: copied number by number, whatever memory they come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_cases import compiled, device_named
from tvm.script import tirx as T

from minicpm_mlc.ops.gpu.intrinsics import half_bits_to_float
from minicpm_mlc.ops.gpu.kernel import barrier, kernel, registers, shared, workgroups

pytestmark = pytest.mark.skipif(
    device_named("vulkan") is None, reason="no Vulkan device with its runtime: make devices"
)
THREADS, LANES = 8, 4


def test_vectors_go_through_registers_and_shared_memory():
    def emit(_: Any, x: Any, out: Any) -> None:
        with workgroups(1, THREADS) as (_, thread):
            held = registers(LANES, "int32")
            cells = shared((THREADS * LANES,), "int32")
            at = T.Bind(thread * LANES)
            T.buffer_store(held, x[T.ramp(at, 1, LANES)], [T.ramp(0, 1, LANES)])
            T.buffer_store(held, held[1] * 10, [1])
            T.buffer_store(cells, held[T.ramp(0, 1, LANES)], [T.ramp(at, 1, LANES)])
            barrier()
            other = T.Bind((THREADS - 1 - thread) * LANES)
            T.buffer_store(out, cells[T.ramp(other, 1, LANES)], [T.ramp(at, 1, LANES)])

    size = THREADS * LANES
    func = kernel("copied", {"x": ("int32", size), "out": ("int32", size)}, emit)
    x, out = np.arange(size, dtype=np.int32), np.zeros(size, np.int32)
    compiled(func, "vulkan")(x, out)
    expected = x.reshape(THREADS, LANES).copy()
    expected[:, 1] *= 10
    assert (out.reshape(THREADS, LANES) == expected[::-1]).all()


def test_every_float16_is_widened_exactly():
    def emit(_: Any, x: Any, out: Any) -> None:
        with workgroups(1 << 10, 64) as (group, thread):
            i = T.Bind(group * 64 + thread)
            T.buffer_store(out, half_bits_to_float(x[i]), [i])

    count = 1 << 16
    func = kernel("widened", {"x": ("uint16", count), "out": ("float32", count)}, emit)
    x, out = np.arange(count, dtype=np.uint16), np.zeros(count, np.float32)
    compiled(func, "vulkan")(x, out)
    expected = x.view(np.float16).astype(np.float32)
    assert np.array_equal(out, expected, equal_nan=True)
