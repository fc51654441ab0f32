"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.kernel import kernel
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.tir import Buffer, Expr


def embed_definition(token_ids: np.ndarray, table: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale * table[token_ids]. token_ids i32[n], table [vocab, h] dequantised -> float64 [n,
    h].
    """
    return scale * table.astype(np.float64)[token_ids]


def embed(vocab: int, hidden: int, scheme: Scheme, *, scale: float = 1.0) -> Any:
    """PrimFunc (token_ids i32[n], the table's stored tensors) -> f32[n, hidden].

    The table is packed like any weight, so that a tied head and the embedding are one matrix.
    """
    stored = scheme.arguments(vocab, hidden)

    def emit(dims: Any, ids: Buffer, *rest: Buffer) -> None:
        *tensors, out = rest
        table = dict(zip(stored, tensors, strict=True))

        def row(r: Expr) -> None:
            block, lane = T.Bind(ids[r] // LANES), T.Bind(ids[r] % LANES)
            with T.serial(hidden // GROUP) as g, T.serial(GROUP // 2) as j:
                for half, number in enumerate(scheme.pair(table, block, g, j, lane)):
                    value = scheme.terms(table, block, g, lane).weight(number)
                    T.buffer_store(out, T.float32(scale) * value, [r, g * GROUP + half * 16 + j])

        vector.spread(dims.n, row, serial_below=8)

    arguments = {"ids": ("int32", "n"), **stored, "out": ("float32", "n", hidden)}
    return kernel("embed", arguments, emit)
