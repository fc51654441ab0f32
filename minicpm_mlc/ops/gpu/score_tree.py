"""InfLLM-v2's scores of blocks for the rows of a token tree."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.tree import TAIL_PAGES
from minicpm_mlc.ops.gpu.score_spread import FOUR, Four, Spread
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.windows import Mean
from minicpm_mlc.ops.score_tree import ScoreTree
from minicpm_mlc.ops.tir import Buffer, Expr, T


def score_tree(
    operator: ScoreTree,
    traits: GpuTraits,
    dims: Dims,
    q: Buffer,
    k_means: Buffer,
    path_means: Buffer,
    page_table: Buffer,
    positions: Buffer,
    base: Buffer,
    pooled: Buffer,
) -> None:
    """As score_blocks in decode."""

    def means(row: Expr, kv_head: Expr) -> Mean:
        first = T.Bind(base[0] // PAGE_SIZE)

        def mean(segment: Expr, i: Expr) -> Expr:
            number, s = T.Bind(segment // SEGMENTS), segment % SEGMENTS
            tail = T.Bind(T.min(T.max(number - first, 0), TAIL_PAGES - 1))
            committed = T.Bind(T.min(number, T.max(first - 1, 0)))
            return T.if_then_else(
                number < first,
                k_means[page_table[0, committed], kv_head, s, i],
                path_means[row, tail, kv_head, s, i],
            )

        return mean

    def four(row: Expr, kv_head: Expr) -> Four:
        mean = means(row, kv_head)

        def read(to: Buffer, segment: Expr, i: Expr) -> None:
            for c in range(FOUR):
                T.buffer_store(to, mean(segment, i + c), [c])

        return read

    heads = operator.num_kv_heads, operator.group
    Spread(dims.n, dims.p, *heads, q, positions, pooled, four, traits.f32_tiles).emit()
