"""Which blocks a query reads: the first ones, the local ones, and the best of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, ids, sample

SCORED = 131  # pages whose scores are compared: more than a selection has
TIES = [0, 1e-45, 0.25, 0.5, np.inf]  # scores that come again and again


def select_blocks_definition(
    pooled: np.ndarray,
    positions: np.ndarray,
    topk: int,
    window_blocks: int,
    init_blocks: int,
    block_size: int = PAGE_SIZE,
) -> np.ndarray:
    """int32 [n, kv_heads, topk + window_blocks]: ascending block numbers, then -1 where there are
    fewer blocks.

    pooled [n, kv_heads, p], positions [n]. Blocks up to the query's own one, qb, compete: the first
    `init_blocks` and those from qb - window_blocks on always win, the rest go by score, ties to the
    lower block.
    """
    budget = topk + window_blocks
    selected = np.full((*pooled.shape[:2], budget), -1, np.int32)
    for row, position in enumerate(positions):
        own = position // block_size
        blocks = np.arange(own + 1)
        forced = (blocks < init_blocks) | (blocks >= own - window_blocks)
        for head, scores in enumerate(pooled[row, :, : own + 1]):
            best = np.lexsort((blocks, -scores, ~forced))[:budget]
            selected[row, head, : len(best)] = np.sort(best)
    return selected


@dataclass(frozen=True)
class SelectBlocks(Operator):
    """The blocks that each row reads for each key/value head, as in select_blocks_definition.

    Scores must not be negative. Raises CompileError where topk leaves no room for the initial
    blocks and the query's own.
    """

    limit: ClassVar[float] = EXACT
    grid_limit: ClassVar[float] = EXACT
    num_kv_heads: int
    topk: int
    window_blocks: int
    init_blocks: int

    def __post_init__(self) -> None:
        if self.topk <= self.init_blocks:
            raise CompileError(
                f"sparse_config: topk {self.topk} must exceed init_blocks {self.init_blocks}, or a "
                "query's own block has no place"
            )

    @property
    def budget(self) -> int:
        """Blocks that a row reads at most."""
        return self.topk + self.window_blocks

    @property
    def free(self) -> int:
        """Of these, the ones that go by score."""
        return self.topk - self.init_blocks - 1

    def arguments(self) -> dict[str, Argument]:
        return {
            "pooled": takes("float32", "n", self.num_kv_heads, "p"),
            "positions": takes("int32", "n"),
            "selected": gives("int32", "n", self.num_kv_heads, self.budget),
        }

    def define(self, pooled: np.ndarray, positions: np.ndarray) -> np.ndarray:
        limits = self.topk, self.window_blocks, self.init_blocks
        return select_blocks_definition(pooled, positions, *limits)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        if not draw.whole:
            pooled = np.abs(draw.normal(3, self.num_kv_heads, SCORED, period=SCORED).tile)
            yield sample(Tiled.whole(pooled), ids(100, 60 * PAGE_SIZE + 5, SCORED * PAGE_SIZE - 1))
            return
        random = draw.random
        for pages in (1, 5, 13, *random.integers(14, 400, 5).tolist()):
            scores = np.array([*TIES, *random.uniform(0, 1, 20)], np.float32)
            pooled = random.choice(scores, (6, self.num_kv_heads, pages))
            yield sample(Tiled.whole(pooled), ids(*random.integers(0, PAGE_SIZE * pages, 6)))

    @classmethod
    def variants(cls) -> Iterator[SelectBlocks]:
        yield from (cls(2, *limits) for limits in ((3, 2, 1), (8, 4, 2)))
