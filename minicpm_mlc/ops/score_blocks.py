"""How much each block matters to a query: InfLLM-v2's first stage, from the segments' means
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import F32, WORDS, KVFormat
from minicpm_mlc.ops.operator import Argument, Cost, Extent, Operator, gives, takes
from minicpm_mlc.ops.paged import cost_of_pages, mean_pool, page_tables
from minicpm_mlc.ops.paged_samples import HEADS, drawn_means, drawn_queries, sampled_rows
from minicpm_mlc.ops.samples import Draw, Sample, sample


def score_blocks_definition(
    q: np.ndarray,
    k_means: np.ndarray,
    page_tables: np.ndarray,
    positions: np.ndarray,
    page_size: int = PAGE_SIZE,
    kv: KVFormat = F32,
) -> np.ndarray:
    """Pooled scores, float64 [n, kv_heads, p]; blocks without a finished window, and those past the
    query's own, get 0.

    q [n, heads, d]; k_means [pages, kv_heads, 4, d]; page_tables [n, p], or [1, p]; positions [n].
    With K1[j] = (M[j] + M[j+1]) / 2 and K2[j] = mean(M[4j .. 4j+7]), both only of keys up to the
    position, a window's score is s[j] = sum over the group's heads of exp(q K1[j] / sqrt(d) -
    logsumexp of q K2 / sqrt(d)); a block's is the largest of the five windows that touch it. Scores
    have float32's range: a head's below 2^-126 counts as 0. `kv`: whose rounding of queries and
    means is part of the definition.
    """
    segment = page_size // SEGMENTS
    kv_heads, head_dim = k_means.shape[1], k_means.shape[-1]
    pooled = np.zeros((len(q), kv_heads, page_tables.shape[1]))
    for row, position in enumerate(positions):
        windows, coarse = (int(position) + 1) // segment - 1, (int(position) + 1) // page_size - 1
        if coarse <= 0:
            continue
        table = page_tables[row if len(page_tables) > 1 else 0][: windows // SEGMENTS + 1]
        means = kv.rounded_means(k_means[table]).swapaxes(1, 2).reshape(-1, kv_heads, head_dim)
        queries = kv.rounded_queries(q[row]).reshape(kv_heads, -1, head_dim) / np.sqrt(head_dim)
        logits = np.einsum("kgd,jkd->kgj", queries, means[: windows + 1])
        fine = (logits[..., :-1] + logits[..., 1:]) / 2
        pages = (
            logits[..., : (coarse + 1) * SEGMENTS].reshape(*logits.shape[:2], -1, SEGMENTS).sum(-1)
        )
        lse = np.logaddexp.reduce((pages[..., :-1] + pages[..., 1:]) / (2 * SEGMENTS), axis=-1)
        exponents = np.minimum(fine - lse[..., None], 700.0)
        scores = np.where(exponents < np.log(2.0**-126), 0.0, np.exp(exponents)).sum(1)
        scores[scores > np.finfo(np.float32).max] = np.inf
        for block in range(windows // SEGMENTS + 1):
            touching = scores[:, max(0, SEGMENTS * block - 1) : SEGMENTS * block + SEGMENTS]
            pooled[row, :, block] = touching.max(-1, initial=0.0)
    return pooled


@dataclass(frozen=True)
class ScoreBlocks(Operator):
    """The score of each page of a row's page table for each key/value head, as in
    score_blocks_definition.

    Row r uses page table r when `batched` (decode), else the only one (prefill). A chunk's rows are
    multiplied as integers where attention multiplies those of `kv`; decode reads each mean once, as
    fast as memory gives it.
    """

    grid_limit: ClassVar[float] = 1e-9
    num_heads: int
    num_kv_heads: int
    head_dim: int
    batched: bool
    kv: KVFormat = F32

    @property
    def integers(self) -> bool:
        """Whether queries and means are rounded and multiplied as integers."""
        return self.kv.words and not self.batched

    @property
    def dtype_label(self) -> str:
        return self.kv.dtype if self.integers else super().dtype_label

    def fits(self, traits: Any) -> bool:
        return not self.integers or self.kv.fits(traits)

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def arguments(self) -> dict[str, Argument]:
        return {
            "q": takes("float32", "n", self.num_heads, self.head_dim),
            "k_means": mean_pool(self.num_kv_heads, self.head_dim),
            "page_tables": page_tables(),
            "positions": takes("int32", "n"),
            "pooled": gives("float32", "n", self.num_kv_heads, "p"),
        }

    def define(
        self, q: np.ndarray, k_means: np.ndarray, tables: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        rounding = self.kv if self.integers else F32
        return score_blocks_definition(q, k_means, tables, positions, kv=rounding)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for rows in sampled_rows(draw, self.batched, contexts=(1, 128), longest=2560):
            q = drawn_queries(draw, len(rows.slots), self.num_heads, self.head_dim, scale=3)
            means = drawn_means(draw, rows.pages, self.num_kv_heads, self.head_dim)
            yield sample(q, means, *rows.arguments())

    def cost(self, extent: Extent) -> Cost:
        cost = cost_of_pages(self, extent, self.num_heads, extent.blocks)
        return replace(cost, int8=self.integers)

    def shape_label(self, extent: Extent) -> str:
        return f"{extent.blocks} of {extent.blocks} pages"

    @classmethod
    def variants(cls) -> Iterator[ScoreBlocks]:
        yield from (cls(*heads, batched) for heads in HEADS for batched in (False, True))
        yield from (cls(*heads, False, kv) for heads in HEADS for kv in WORDS.values())
