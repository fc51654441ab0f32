"""embed: rows of the packed embedding table as float32 activations."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.embed import Embed
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, T


def embed(operator: Embed, _: GpuTraits, dims: Dims, ids: Buffer, *rest: Buffer) -> None:
    """A row a workgroup."""
    *tensors, out = rest
    scheme, hidden = operator.scheme, operator.hidden
    table = dict(zip(scheme.arguments(operator.vocab, hidden), tensors, strict=True))
    with workgroups(dims.n) as (row, thread):
        block, lane = T.Bind(ids[row] // 16), T.Bind(ids[row] % 16)
        with strided(hidden // 2, thread) as pair:
            g, j = T.Bind(pair // 16), T.Bind(pair % 16)
            for half, number in enumerate(scheme.pair(table, block, g, j, lane)):
                terms = scheme.terms(table, block, g, lane, half=half)
                value = constant(operator.scale) * terms.weight(number)
                T.buffer_store(out, value, [row, g * GROUP + half * 16 + j])
