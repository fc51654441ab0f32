"""Rows side by side: what an EAGLE head makes one input of."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector


def concat_definition(*parts: np.ndarray) -> np.ndarray:
    """parts [n, width] each -> [n, the sum of widths], the first part leftmost."""
    return np.concatenate(parts, -1)


def concat(width: int, parts: int) -> Any:
    """PrimFunc (2 or 3 parts f32[n, width]) -> f32[n, parts * width]."""
    vectors = vector.vectors_in(width, "hidden_size")

    def copy(n: Any, sources: list[Any], out: Any) -> None:
        def row(r: Any) -> None:
            for i, source in enumerate(sources):
                with T.serial(vectors) as j:
                    vector.store(out, vector.load(source, r, j * 16), r, i * width + j * 16)

        vector.spread(n, row, serial_below=32)

    @T.prim_func(private=True)
    def concat_2(a_handle: T.handle, b_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        a = T.match_buffer(a_handle, (n, width), "float32")
        b = T.match_buffer(b_handle, (n, width), "float32")
        out = T.match_buffer(out_handle, (n, 2 * width), "float32")
        copy(n, [a, b], out)

    @T.prim_func(private=True)
    def concat_3(a_handle: T.handle, b_handle: T.handle, c_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        a = T.match_buffer(a_handle, (n, width), "float32")
        b = T.match_buffer(b_handle, (n, width), "float32")
        c = T.match_buffer(c_handle, (n, width), "float32")
        out = T.match_buffer(out_handle, (n, 3 * width), "float32")
        copy(n, [a, b, c], out)

    return {2: concat_2, 3: concat_3}[parts]
