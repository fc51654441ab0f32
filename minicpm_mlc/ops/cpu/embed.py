"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.weights import GROUP, LANES, WeightFormat


def embed_definition(token_ids: np.ndarray, table: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale * table[token_ids]. token_ids i32[n], table [vocab, h] dequantised -> float64 [n,
    h].
    """
    return scale * table.astype(np.float64)[token_ids]


def embed(vocab: int, hidden: int, fmt: WeightFormat, *, scale: float = 1.0) -> Any:
    """PrimFunc (token_ids i32[n], table, scales) -> f32[n, hidden].

    The table is packed like any weight, so that a tied head and the embedding are one tensor.
    """

    def look_up(n: Any, ids: Any, w: Any, s: Any, out: Any) -> None:
        def row(r: Any) -> None:
            block, lane = T.Bind(ids[r] // LANES), T.Bind(ids[r] % LANES)
            with T.serial(hidden // GROUP) as g, T.serial(GROUP // 2) as j:
                for half, value in enumerate(fmt.pair(w, block, g, j, lane, 1)):
                    value = value * fmt.scale(s, block, g, lane, 1) if fmt.group else value
                    T.buffer_store(out, T.float32(scale) * value, [r, g * GROUP + half * 16 + j])

        vector.spread(n, row, serial_below=8)

    @T.prim_func(private=True)
    def embed(ids_handle: T.handle, w_handle: T.handle, s_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        ids = T.match_buffer(ids_handle, (n,), "int32")
        w = T.match_buffer(w_handle, fmt.weight_shape(vocab, hidden), fmt.dtype)
        s = T.match_buffer(s_handle, fmt.scale_shape(vocab, hidden), fmt.scale_dtype)
        out = T.match_buffer(out_handle, (n, hidden), "float32")
        look_up(n, ids, w, s, out)

    return embed
