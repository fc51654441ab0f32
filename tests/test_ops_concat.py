"""Rows side by side, and one row under every row."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.concat import Concat, concat_definition
from minicpm_mlc.ops.repeat_row import RepeatRow, repeat_row_definition


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_keep_their_order(parts):
    call = compiled(cpu_kernel(Concat(48, parts)))
    for n in (1, 5, 70):
        x = np.random.default_rng(n).standard_normal((parts, n, 48)).astype(np.float32)
        out = np.full((n, parts * 48), np.nan, np.float32)
        call(*x, out)
        np.testing.assert_array_equal(out, concat_definition(*x))


def test_a_row_is_repeated():
    row, out = np.arange(32, dtype=np.float32), np.full((5, 32), np.nan, np.float32)
    compiled(cpu_kernel(RepeatRow(32)))(row, out)
    np.testing.assert_array_equal(out, repeat_row_definition(row, 5))


def test_widths_that_fill_no_vectors_are_refused():
    for operator in (Concat(40, 2), RepeatRow(40)):
        with pytest.raises(CompileError, match="hidden_size is 40"):
            cpu_kernel(operator)
