"""InfLLM-v2 sparse attention, whole, in float64: what segment_means, score_blocks, select_blocks
and attend_blocks compute together.

    means of finished segments -> pooled scores of blocks -> selected blocks -> attention over their
    tokens

Every query decides by its absolute position, so chunks of any size and decode give the same rows.
This is the variant of MiniCPM4.1: the log-sum-exp from coarse windows, local blocks inside the
budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.manifest import SEGMENTS
from minicpm_mlc.ops.attend_blocks import attend_blocks_definition
from minicpm_mlc.ops.score_blocks import score_blocks_definition
from minicpm_mlc.ops.segment_means import segment_means_definition
from minicpm_mlc.ops.select_blocks import select_blocks_definition


@dataclass(frozen=True)
class Budget:
    """How many blocks a query reads: topk + window_blocks, of which init_blocks and window_blocks +
    1 are forced.
    """

    topk: int
    window_blocks: int
    init_blocks: int

    @property
    def blocks(self) -> int:
        return self.topk + self.window_blocks


def all_segment_means(k_pages: np.ndarray, page_table: np.ndarray, tokens: int) -> np.ndarray:
    """float64 [pages, kv_heads, 4, d]: the means of one sequence's finished segments; NaN
    elsewhere.
    """
    pages, kv_heads, head_dim, page_size = k_pages.shape
    means = np.full((pages, kv_heads, SEGMENTS, head_dim), np.nan)
    ends = np.arange(page_size // SEGMENTS - 1, tokens, page_size // SEGMENTS)
    segment_means_definition(ends, page_table[None], k_pages, means)
    return means


def sparse_attention_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_table: np.ndarray,
    positions: np.ndarray,
    budget: Budget,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one sequence -> attention float64 [n, heads * d], selected [n, kv_heads, budget],
    pooled scores.

    q [n, heads, d] roped; k_pages [pages, kv_heads, d, page_size], v_pages [pages, kv_heads,
    page_size, d] holding the keys and values up to every row's own; page_table [p]; positions [n],
    which are also the slots. A page is a block; its size and a segment's, a quarter of it, follow
    from the pools.
    """
    page_size = k_pages.shape[-1]
    means = all_segment_means(k_pages, page_table, int(positions.max()) + 1)
    pooled = score_blocks_definition(q, means, page_table[None], positions, page_size)
    selected = select_blocks_definition(
        pooled, positions, budget.topk, budget.window_blocks, budget.init_blocks, page_size
    )
    attended = attend_blocks_definition(q, k_pages, v_pages, page_table[None], positions, selected)
    return attended, selected, pooled
