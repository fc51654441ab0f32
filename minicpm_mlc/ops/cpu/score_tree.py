"""How much each block matters to the rows of a token tree: score_blocks over each row's own
path.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu.score_call import ScoreCall
from minicpm_mlc.ops.cpu.score_segments import Lanes, Scorer
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.score_tree import ScoreTree
from minicpm_mlc.ops.tir import Buffer, Expr, T


def score_tree(
    operator: ScoreTree,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_means: Buffer,
    path_means: Buffer,
    page_table: Expr,
    positions: Buffer,
    base: Buffer,
    pooled: Buffer,
) -> None:
    """As score_blocks in decode."""
    lanes = Lanes.of(operator.group, True, traits)
    buffers = q, k_means, page_table, positions, pooled, path_means, base
    TreeScoreCall(lanes, operator.num_kv_heads, dims.n, dims.p, *buffers).decode()


@dataclass(frozen=True)
class TreeScoreCall(ScoreCall):
    """A call whose rows share a page table up to the tree's first page."""

    path_means: Buffer
    base: Expr

    def multiply(
        self,
        scorer: Scorer,
        rows: list[Expr],
        kv_head: Expr,
        begin: Expr,
        end: Expr,
        table: Expr = 0,
    ) -> Expr:
        first = T.Bind(T.Cast("int64", self.base[0] // PAGE_SIZE))
        split = T.Bind(T.max(begin, T.min(end, first)))
        queries = super().multiply(scorer, rows, kv_head, begin, split)
        with T.serial(end - split) as step:
            page = T.Bind(split + step)
            tail = T.Bind(page - first)
            scorer.multiply(
                queries, lambda _, s, i: self.path_means[table, tail, kv_head, s, i], page, 1
            )
        return queries
