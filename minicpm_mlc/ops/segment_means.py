"""The one extra state of sparse attention: the mean of each finished segment of 16 keys.

InfLLM-v2's two compressed caches are averages of these: K1[j] = (M[j] + M[j+1]) / 2, K2[j] =
mean(M[4j .. 4j+7]).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.operator import Argument, takes
from minicpm_mlc.ops.paged import (
    PagedOperator,
    key_pool,
    mean_pool,
    page_tables,
    read_keys,
)
from minicpm_mlc.ops.paged_samples import (
    Rows,
    drawn_pools,
    formats_by_batch,
    shuffled,
    small_rows,
)
from minicpm_mlc.ops.samples import Draw, Sample, sample


def segment_means_definition(
    slots: np.ndarray, page_tables: np.ndarray, k_pages: np.ndarray, k_means: np.ndarray
) -> None:
    """Write the float64 mean of every segment that a row of this call finishes into k_means, in
    place.

    slots [n]; page_tables [n, p], or [1, p] shared by all rows; k_pages [pages, kv_heads, d,
    page_size]; k_means [pages, kv_heads, 4, d].
    """
    page_size = k_pages.shape[-1]
    size = page_size // SEGMENTS
    for row, slot in enumerate(slots):
        page = page_tables[row if len(page_tables) > 1 else 0, slot // page_size]
        segment, offset = divmod(slot % page_size, size)
        if offset == size - 1:
            here = k_pages[page, :, :, segment * size : (segment + 1) * size]
            k_means[page, :, segment] = here.astype(np.float64).mean(-1)


@dataclass(frozen=True)
class SegmentMeans(PagedOperator):
    """Rows whose slot ends a segment write its mean; all 16 keys must lie in the pool already.

    Page tables as in RopeAppend. float32 even for float16 keys: a mean rounded to float16 moves a
    selection.
    """

    num_kv_heads: int
    head_dim: int
    kv: KVFormat
    batched: bool

    def arguments(self) -> dict[str, Argument]:
        return {
            "slots": takes("int32", "n"),
            "page_tables": page_tables(),
            "k_pages": key_pool(self.num_kv_heads, self.head_dim, self.kv),
            "k_means": mean_pool(self.num_kv_heads, self.head_dim, "state"),
        }

    def define(
        self, slots: np.ndarray, page_tables: np.ndarray, k_pages: np.ndarray, k_means: np.ndarray
    ) -> None:
        segment_means_definition(slots, page_tables, read_keys(self.kv, k_pages), k_means)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for rows in self.rows(draw):
            table, slots = rows.arguments()
            stored = drawn_pools(draw, rows.pages, self.num_kv_heads, self.head_dim, self.kv)
            before = np.zeros((rows.pages, self.num_kv_heads, SEGMENTS, self.head_dim), np.float32)
            yield sample(slots, table, stored[0], Tiled.whole(before))

    def rows(self, draw: Draw) -> Iterator[Rows]:
        """Those of a chunk follow each other, those of a batch all end a segment."""
        if not draw.whole:
            yield small_rows(self.batched, [79, 255] if self.batched else [62, 63, 79, 127])
            return
        late = int(draw.random.integers(60, 120))
        for n, first in ((1, 0), (2, 62), (7, 15), (65, 3), (4, late)):
            table = shuffled(draw, (first + n) // PAGE_SIZE + 1, n if self.batched else 1)
            chunk = np.arange(first, first + n)
            batch = draw.random.integers(0, first + n, n) | SEGMENT_SIZE - 1
            yield Rows(table, (batch if self.batched else chunk).astype(np.int32))

    @classmethod
    def variants(cls) -> Iterator[SegmentMeans]:
        yield from (cls(*shape[1:]) for shape in formats_by_batch())
