"""Row gather."""

from __future__ import annotations

import numpy as np
from op_cases import compiled, cpu_kernel

from minicpm_mlc.ops.gather_rows import GatherRows, gather_rows_definition


def test_picks_rows_in_any_order_and_more_than_once():
    x = np.random.default_rng(0).standard_normal((9, 48)).astype(np.float32)
    call = compiled(cpu_kernel(GatherRows(48)))
    for rows in ([8], [3, 3, 0], list(range(9)), [i % 9 for i in range(70)]):
        out = np.full((len(rows), 48), np.nan, np.float32)
        call(x, np.array(rows, np.int32), out)
        np.testing.assert_array_equal(out, gather_rows_definition(x, np.array(rows)))
