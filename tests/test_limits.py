"""The kernels that the machine's limits are measured with do the work that is counted."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled

from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.host import this_host
from minicpm_mlc.ops.cpu import speed_limits

VECTORS = 3


def test_read_peak_reads_every_row_once():
    x = np.random.default_rng(0).integers(-9, 9, (7 * speed_limits.READ_STREAMS * 5, 16), np.int32)
    out = np.zeros((7, 16), np.int32)
    compiled(speed_limits.read_peak())(x, out)
    assert np.array_equal(out.sum(axis=0), x.sum(axis=0))


@pytest.mark.parametrize("dot", ["avx512vnni", "avxvnni", "i8mm", "dotprod"])
def test_int8_peak_makes_every_step(monkeypatch, dot):
    if dot not in (this_host().features or ()):
        pytest.skip(f"this processor has no {dot}")
    monkeypatch.setattr(speed_limits, "STEPS", 100)
    out = np.zeros((2, 16), np.int32)
    compiled(speed_limits.int8_peak(VECTORS, dot))(out)
    width = speed_limits.DOTS[dot].rows
    words = speed_limits.DOTS[dot].products() // (4 * width)
    assert (
        out[:, :width] == sum(range(VECTORS)) + VECTORS * 100 * 3 * words
    ).all()  # each: four weights of 1 meet 3, 0, 0, 0


def test_int8_operations_are_four_pairs_per_lane_and_twice_that_in_a_matrix_product():
    assert speed_limits.int8_operations("avx512vnni") == 2 * 4 * 16
    assert speed_limits.int8_operations("i8mm") == 2 * speed_limits.int8_operations("dotprod")


def test_limits_name_only_what_the_processor_has():
    assert (
        Limits(1, 40e9, 500e9, None).text()
        == "1 thread: memory reads 40.0 GB/s, 500 GFLOP/s float32"
    )
    assert Limits(2, 40e9, 500e9, 2e12).text().startswith("2 threads: ")
    assert Limits(2, 40e9, 500e9, 2e12).text().endswith("GFLOP/s float32, 2000 GOP/s int8")
