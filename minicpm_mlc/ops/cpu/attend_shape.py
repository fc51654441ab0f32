"""Which arithmetic and register tile an attention kernel has."""

from __future__ import annotations

from minicpm_mlc.ops.attend import Attention
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend_floats import Bf16Pairs, Float32
from minicpm_mlc.ops.cpu.attend_integers import Integers
from minicpm_mlc.ops.cpu.attend_page import Shape
from minicpm_mlc.ops.cpu.attend_pairs import PairedIntegers
from minicpm_mlc.ops.cpu.int8_dot import DOTS, SmMlA
from minicpm_mlc.ops.cpu.traits import CpuTraits


def shape_of(operator: Attention, traits: CpuTraits, most_rows: int) -> Shape:
    """Of a kernel whose blocks have at most so many rows. Raises CompileError for a head_dim that
    fills no vectors.
    """
    vector.vectors_in(operator.head_dim, "head_dim")
    if operator.kv.words:
        return _of_integers(operator, traits, most_rows)
    return _of_floats(operator, traits, most_rows)


def _of_floats(operator: Attention, traits: CpuTraits, most_rows: int) -> Shape:
    """A tile of as many accumulators as the registers hold beside their operands (8 hide the
    latency of AVX-512, 4 are what AVX2 and NEON hold), as many of them rows as there is use for.

    A processor with dot products of bfloat16 multiplies pages of it as they are, where the tile is
    two vectors wide or more.
    """
    head_dim, vectors = operator.head_dim, traits.attention_vectors(most_rows)
    rows = min(8, most_rows, vectors)
    columns = max(
        c for c in (1, 2, 4) if c * rows <= vectors and head_dim % (c * vector.LANES) == 0
    )
    paired = operator.kv.multiplied_as_bfloat16(traits.bf16_dot) and columns > 1
    heads = operator.num_heads, operator.num_kv_heads, head_dim
    return Shape(*heads, rows, columns * vector.LANES, Bf16Pairs() if paired else Float32())


def _of_integers(operator: Attention, traits: CpuTraits, most_rows: int) -> Shape:
    if traits.int8_dot is None or not operator.fits(traits):
        raise ValueError(f"a cache of {operator.kv} beside {traits}")
    dot = DOTS[traits.int8_dot]
    arithmetic = PairedIntegers(dot) if isinstance(dot, SmMlA) else Integers(dot)
    heads = operator.num_heads, operator.num_kv_heads, operator.head_dim
    return Shape(*heads, *arithmetic.tile(operator.head_dim, most_rows), arithmetic)
