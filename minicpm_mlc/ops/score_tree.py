"""How much each block matters to the rows of a token tree: score_blocks over each row's own
path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.tree import TAIL_PAGES
from minicpm_mlc.ops.operator import Argument, Cost, Extent, Operator, gives, takes
from minicpm_mlc.ops.paged import cost_of_pages, mean_pool
from minicpm_mlc.ops.paged_samples import (
    HEADS,
    PERIOD,
    drawn_means,
    drawn_queries,
    sampled_trees,
)
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.score_blocks import score_blocks_definition


def score_tree_definition(
    q: np.ndarray,
    k_means: np.ndarray,
    path_means: np.ndarray,
    page_table: np.ndarray,
    positions: np.ndarray,
    base: np.ndarray,
) -> np.ndarray:
    """As score_blocks_definition, row r's means from page base // 64 on being path_means[r], [n, 2,
    kv_heads, 4, d].
    """
    n, first = len(q), base[0] // PAGE_SIZE
    tables = np.tile(page_table, (n, 1))
    tails = len(k_means) + np.arange(n * TAIL_PAGES, dtype=np.int32).reshape(n, TAIL_PAGES)
    tables[:, first : first + TAIL_PAGES] = tails[:, : tables.shape[1] - first]
    means = np.concatenate([k_means, path_means.reshape(-1, *k_means.shape[1:])])
    return score_blocks_definition(q, means, tables, positions)


@dataclass(frozen=True)
class ScoreTree(Operator):
    """As ScoreBlocks, the means from page base[0] // 64 on being those of each row's path.

    A row's scores equal those of ScoreBlocks' decode row of its path, bit for bit.
    """

    grid_limit: ClassVar[float] = 1e-9
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def arguments(self) -> dict[str, Argument]:
        shape = TAIL_PAGES, self.num_kv_heads, SEGMENTS, self.head_dim
        return {
            "q": takes("float32", "n", self.num_heads, self.head_dim),
            "k_means": mean_pool(self.num_kv_heads, self.head_dim),
            "path_means": takes("float32", "n", *shape),
            "page_table": takes("int32", 1, "p"),
            "positions": takes("int32", "n"),
            "base": takes("int32", "m"),
            "pooled": gives("float32", "n", self.num_kv_heads, "p"),
        }

    def define(self, *arrays: np.ndarray) -> np.ndarray:
        return score_tree_definition(*arrays)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for tree in sampled_trees(draw):
            n = len(tree.ancestors)
            q = drawn_queries(draw, n, self.num_heads, self.head_dim)
            means = drawn_means(draw, tree.pages, self.num_kv_heads, self.head_dim)
            shape = n, TAIL_PAGES, self.num_kv_heads, SEGMENTS, self.head_dim
            own = draw.normal(*shape, scale=0.25, period=PERIOD)
            table, base, _ = tree.arguments()
            yield sample(q, means, own, table, Tiled.whole(tree.positions), base)

    def cost(self, extent: Extent) -> Cost:
        return cost_of_pages(self, extent, self.num_heads, extent.blocks)

    def shape_label(self, extent: Extent) -> str:
        return f"{extent.blocks} of {extent.blocks} pages"

    @classmethod
    def variants(cls) -> Iterator[ScoreTree]:
        yield cls(*HEADS[0])
