"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.embed import Embed
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.tir import Buffer, Expr


def embed(operator: Embed, _: CpuTraits, dims: Dims, ids: Buffer, *rest: Buffer) -> None:
    """A row a task."""
    *tensors, out = rest
    scheme, hidden = operator.scheme, operator.hidden
    table = dict(zip(scheme.arguments(operator.vocab, hidden), tensors, strict=True))

    def row(r: Expr) -> None:
        block, lane = T.Bind(ids[r] // LANES), T.Bind(ids[r] % LANES)
        with T.serial(hidden // GROUP) as g, T.serial(GROUP // 2) as j:
            for half, number in enumerate(scheme.pair(table, block, g, j, lane)):
                terms = scheme.terms(table, block, g, lane, half=half)
                value = T.float32(operator.scale) * terms.weight(number)
                T.buffer_store(out, value, [r, g * GROUP + half * 16 + j])

    vector.spread(dims.n, row, serial_below=8)
