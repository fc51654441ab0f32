"""Pick rows of a matrix: the hidden states whose logits are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector


def gather_rows_definition(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x [n, h], rows [m] -> x[rows], [m, h]."""
    return x[rows]


def gather_rows(hidden: int) -> Any:
    """PrimFunc (x f32[n, hidden], rows i32[m]) -> f32[m, hidden]."""
    vectors = vector.vectors_in(hidden, "hidden_size")

    def copy(m: Any, x: Any, rows: Any, out: Any) -> None:
        def row(r: Any) -> None:
            source = T.Bind(T.Cast("int64", rows[r]))
            with T.serial(vectors) as j:
                vector.store(out, vector.load(x, source, j * 16), r, j * 16)

        vector.spread(m, row, serial_below=32)

    @T.prim_func(private=True)
    def gather_rows(x_handle: T.handle, rows_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        m = T.int64()
        x = T.match_buffer(x_handle, (n, hidden), "float32")
        rows = T.match_buffer(rows_handle, (m,), "int32")
        out = T.match_buffer(out_handle, (m, hidden), "float32")
        copy(m, x, rows, out)

    return gather_rows
