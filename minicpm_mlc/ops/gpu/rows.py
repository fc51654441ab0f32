"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP, WeightFormat
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import (
    kernel,
    strided,
    workgroups,
)


def embed(vocab: int, hidden: int, fmt: WeightFormat, *, scale: float = 1.0) -> Any:
    """PrimFunc (token_ids i32[n], table, scales) -> f32[n, hidden]; the table is packed as `fmt`
    says.
    """

    def emit(dims: Any, ids: Any, w: Any, s: Any, out: Any) -> None:
        with workgroups(dims.n) as (row, thread):
            block, lane = T.Bind(ids[row] // 16), T.Bind(ids[row] % 16)
            with strided(hidden // 2, thread) as pair:
                g, j = T.Bind(pair // 16), T.Bind(pair % 16)
                for half, value in enumerate(fmt.pair(w, block, g, j, lane, 1)):
                    value = value * fmt.scale(s, block, g, lane, 1) if fmt.group else value
                    T.buffer_store(out, constant(scale) * value, [row, g * GROUP + half * 16 + j])

    arguments = {
        "ids": ("int32", "n"),
        "w": (fmt.dtype, *fmt.weight_shape(vocab, hidden)),
        "s": (fmt.scale_dtype, *fmt.scale_shape(vocab, hidden)),
        "out": ("float32", "n", hidden),
    }
    return kernel("embed", arguments, emit)
