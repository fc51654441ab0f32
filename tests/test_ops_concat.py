"""Rows side by side, and one row under every row."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu.concat import concat, concat_definition
from minicpm_mlc.ops.cpu.repeat_row import repeat_row, repeat_row_definition


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_keep_their_order(parts):
    call = compiled(concat(48, parts))
    for n in (1, 5, 70):
        x = np.random.default_rng(n).standard_normal((parts, n, 48)).astype(np.float32)
        out = np.full((n, parts * 48), np.nan, np.float32)
        call(*x, out)
        np.testing.assert_array_equal(out, concat_definition(*x))


def test_a_row_is_repeated():
    row, out = np.arange(32, dtype=np.float32), np.full((5, 32), np.nan, np.float32)
    compiled(repeat_row(32))(row, out)
    np.testing.assert_array_equal(out, repeat_row_definition(row, 5))


def test_widths_that_fill_no_vectors_are_refused():
    for build in (lambda: concat(40, 2), lambda: repeat_row(40)):
        with pytest.raises(CompileError, match="hidden_size is 40"):
            build()
