"""SwiGLU against its float64 definition."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse

from minicpm_mlc.ops.swiglu import Swiglu, swiglu_definition


@pytest.mark.parametrize("intermediate", [16, 96, 4608])
def test_matches_definition(intermediate: int):
    call = compiled(cpu_kernel(Swiglu(intermediate)))
    for n in (1, 2, 7, 64, 65):
        gate_up = 5 * np.random.default_rng(n).standard_normal((n, 2 * intermediate)).astype(
            np.float32
        )
        out = np.full((n, intermediate), np.nan, np.float32)
        call(gate_up, out)
        assert nmse(out, swiglu_definition(gate_up)) < 1e-12


def test_large_gates_saturate():
    gate_up = np.ones((1, 32), np.float32)
    gate_up[0, :4] = [-1000, -88, 88, 1000]
    out = np.full((1, 16), np.nan, np.float32)
    compiled(cpu_kernel(Swiglu(16)))(gate_up, out)
    np.testing.assert_allclose(out[0, :4], [0, 0, 88, 1000], atol=1e-30)
