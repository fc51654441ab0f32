"""InfLLM-v2, the sparse attention of MiniCPM4: a query reads a fixed number of blocks of 64 tokens.

Blocks are scored by the means of their 16-token segments, and only the best are attended to
(ops/sparse_attention.py has the definition). Below `dense_len` the same layer attends to all
tokens; the means are written in both gears, so that shifting costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.model.layers import Attention, Batch, Pools
from minicpm_mlc.compile.model.parts import Plan
from minicpm_mlc.ops.attend_blocks import AttendBlocks
from minicpm_mlc.ops.attend_tree import AttendTreeBlocks
from minicpm_mlc.ops.path_means import PathMeans
from minicpm_mlc.ops.rope_append import RopeAppendMeans
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.score_tree import ScoreTree
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.select_blocks import SelectBlocks

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor


class SparseAttention(Attention):
    """Attention with one more pool, the segment means, float32."""

    def __init__(self, plan: Plan, at: str, sparse: SparseConfig) -> None:
        super().__init__(plan, at)
        self.sparse = sparse
        self.local = sparse.window_size // sparse.block_size
        self.budget = sparse.topk + self.local

    def append(self, qkv: Tensor, pools: Pools, batch: Batch) -> tuple[Tensor, Pools]:
        """Also writes the means of the segments that the rows finish."""
        if batch.tree:  # its segments are means of its paths, and are never stored
            return super().append(qkv, pools, batch)
        place = batch.slots, batch.page_tables
        operator = RopeAppendMeans(*self.heads, self.plan.kv, batch.decode)
        if batch.decode and operator.fits(self.plan.kernels.traits):
            stored = pools["keys"], pools["values"], pools["means"]
            *stored, q = self.plan.kernels(operator, qkv, batch.cos_sin, *place, *stored)
            return q, pools | dict(zip(("keys", "values", "means"), stored, strict=True))
        q, pools = super().append(qkv, pools, batch)
        means = self.update(pools["keys"], pools["means"], *place, batch.decode)
        return q, pools | {"means": means}

    def attend(
        self,
        q: Tensor,
        pools: Pools,
        batch: Batch,
        selected: list[Tensor],
        rounded: bool = False,
    ) -> Tensor:
        """What each query reads, of its selected blocks where the batch is sparse."""
        if not batch.sparse:
            return super().attend(q, pools, batch, selected, rounded)
        blocks = self.blocks(q, pools["keys"], pools["means"], batch)
        selected.append(blocks)
        return self.attend_blocks(q, pools, blocks, batch, rounded)

    def attend_blocks(
        self, q: Tensor, pools: Pools, blocks: Tensor, batch: Batch, rounded: bool
    ) -> Tensor:
        """What each query reads of its blocks, as `attend` gives it."""
        keys, values = pools["keys"], pools["values"]
        shape, cached = (*self.heads, self.plan.kv, self.budget), (keys, values, batch.page_tables)
        operator, place = AttendBlocks(*shape, batch.decode), (batch.slots,)
        if batch.tree:
            operator, place = AttendTreeBlocks(*shape), batch.tree
        operator = self.rounding(operator, rounded)
        return self.plan.kernels(operator, q, *cached, *place, blocks)

    def update(
        self, keys: Tensor, means: Tensor, slots: Tensor, page_tables: Tensor, decode: bool
    ) -> Tensor:
        """Writes the means of the segments that these slots finish -> the pool of means."""
        operator = SegmentMeans(*self.heads[1:], self.plan.kv, decode)
        return self.plan.kernels(operator, slots, page_tables, keys, means)

    def blocks(self, q: Tensor, keys: Tensor, means: Tensor, batch: Batch) -> Tensor:
        """The blocks that each row reads, int32 [n, kv_heads, budget], ascending, then -1."""
        limits = self.sparse.topk, self.local, self.sparse.init_blocks
        scores = self.scores(q, keys, means, batch)
        return self.plan.kernels(SelectBlocks(self.heads[1], *limits), scores, batch.positions)

    def scores(self, q: Tensor, keys: Tensor, means: Tensor, batch: Batch) -> Tensor:
        """The score of each page for each key/value head, float32 [n, kv_heads, pages]."""
        kernels, places = self.plan.kernels, (batch.page_tables, batch.positions)
        if not batch.tree:
            operator = ScoreBlocks(*self.heads, batch.decode, self.plan.kv)
            return kernels(operator, q, means, *places)
        path_means = self.path_means(keys, means, batch.page_tables, *batch.tree)
        return kernels(ScoreTree(*self.heads), q, means, path_means, *places, batch.tree[0])

    def path_means(
        self, keys: Tensor, means: Tensor, page_tables: Tensor, base: Tensor, ancestors: Tensor
    ) -> Tensor:
        """The means of the last segments of each node's path, float32 [n, TAIL_PAGES, kv_heads,
        SEGMENTS, head_dim].
        """
        operator = PathMeans(*self.heads[1:], self.plan.kv)
        return self.plan.kernels(operator, keys, means, page_tables, base, ancestors)

    def commit(self, sources: Tensor, slots: Tensor, page_table: Tensor, pools: Pools) -> Pools:
        """Also writes the means of the segments that the moved rows finish."""
        pools = super().commit(sources, slots, page_table, pools)
        keys, means = pools["keys"], pools["means"]
        return pools | {"means": self.update(keys, means, slots, page_table, decode=False)}
