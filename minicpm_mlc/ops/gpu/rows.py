"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import (
    kernel,
    strided,
    workgroups,
)
from minicpm_mlc.ops.tir import Buffer


def embed(vocab: int, hidden: int, scheme: Scheme, *, scale: float = 1.0) -> Any:
    """PrimFunc (token_ids i32[n], the table's stored tensors) -> f32[n, hidden]."""
    stored = scheme.arguments(vocab, hidden)

    def emit(dims: Any, ids: Buffer, *rest: Buffer) -> None:
        *tensors, out = rest
        table = dict(zip(stored, tensors, strict=True))
        with workgroups(dims.n) as (row, thread):
            block, lane = T.Bind(ids[row] // 16), T.Bind(ids[row] % 16)
            with strided(hidden // 2, thread) as pair:
                g, j = T.Bind(pair // 16), T.Bind(pair % 16)
                for half, number in enumerate(scheme.pair(table, block, g, j, lane)):
                    value = scheme.terms(table, block, g, lane).weight(number)
                    T.buffer_store(out, constant(scale) * value, [row, g * GROUP + half * 16 + j])

    arguments = {"ids": ("int32", "n"), **stored, "out": ("float32", "n", hidden)}
    return kernel("embed", arguments, emit)
