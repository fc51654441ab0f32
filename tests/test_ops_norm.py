"""RMSNorm against its float64 definition."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse

from minicpm_mlc.ops.rms_norm import RmsNorm, rms_norm_definition


@pytest.mark.parametrize("hidden", [16, 1024, 1536])
def test_matches_definition(hidden: int):
    call = compiled(cpu_kernel(RmsNorm(hidden, 1e-6)))
    for n in (1, 2, 7, 64, 65):
        rng = np.random.default_rng(n)
        x = 5 * rng.standard_normal((n, hidden)).astype(np.float32)
        weight = rng.standard_normal(hidden).astype(np.float32)
        out = np.full_like(x, np.nan)
        call(x, weight, out)
        assert nmse(out, rms_norm_definition(x, weight, 1e-6)) < 1e-12


def test_tiny_rows_are_held_by_eps():
    x = np.full((1, 64), 1e-4, np.float32)
    out = np.full_like(x, np.nan)
    compiled(cpu_kernel(RmsNorm(64, 1e-5)))(x, np.ones(64, np.float32), out)
    np.testing.assert_allclose(out, 1e-4 / np.sqrt(1e-8 + 1e-5), rtol=1e-6)
