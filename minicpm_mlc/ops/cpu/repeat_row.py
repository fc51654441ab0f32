"""One row under every row of another matrix: a bias, ready to be a linear's residual."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector


def repeat_row_definition(row: np.ndarray, n: int) -> np.ndarray:
    """row [h] -> n copies of it, [n, h]."""
    return np.tile(row, (n, 1))


def repeat_row(width: int) -> Any:
    """PrimFunc (row f32[width]) -> f32[n, width]; n is the output's."""
    vectors = vector.vectors_in(width, "hidden_size")

    @T.prim_func(private=True)
    def repeat_row(row_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        row = T.match_buffer(row_handle, (width,), "float32")
        out = T.match_buffer(out_handle, (n, width), "float32")
        with T.serial(n) as r, T.serial(vectors) as j:
            vector.store(out, vector.load(row, j * 16), r, j * 16)

    return repeat_row
