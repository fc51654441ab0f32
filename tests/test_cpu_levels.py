"""The table of a level: what its kernels are called with, and what it says of them."""

from __future__ import annotations

import cpu_levels
import numpy as np
import pytest

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.operator import POOL, Cost
from minicpm_mlc.targets.cpu import CpuTarget


@pytest.mark.parametrize("kernel", ["w4", "swiglu w4", "float32 w4", "decode int8", "scores int8"])
def test_arguments_are_what_the_record_takes_and_finite(kernel: str, monkeypatch):
    monkeypatch.setattr(cpu_levels, "DEPTH", 4 * PAGE_SIZE)
    record = cpu_levels.RECORDS[kernel](CpuTarget.of("x86-64-v3", "x86_64"))
    dims = {"n": 3, "m": 3, "s": 1, "p": 4, POOL: 4}
    arrays = cpu_levels.random_call(record, dims)
    found = record.dims([array.shape for array in arrays])
    assert {name: dims[name] for name in found} == found
    for argument, array in zip(record.arguments().values(), arrays, strict=True):
        assert array.dtype == argument.dtype
        assert array.dtype.kind != "f" or np.isfinite(array).all()


def test_the_limit_is_that_of_the_calls_products():
    limits = cpu_levels.Limits(float32=100e9, int8=400e9)
    assert limits.share(Cost(operations=200_000_000_000, int8=True), 1) == 0.5
    assert limits.share(Cost(operations=200_000_000_000), 4) == 0.5
