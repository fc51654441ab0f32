"""Segment means of a token tree's paths: what sequential decoding would have written by the time it
reached a node.

A node at position p sees the windows that end at p or before, some of which end inside the tree.
Their means exist nowhere, since the pool holds committed segments only, so each row gets its own
copies of its path's last pages' means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import ALL_KV_FORMATS, KVFormat
from minicpm_mlc.ops.formats.tree import TAIL_PAGES, path_tables_definition
from minicpm_mlc.ops.operator import Argument, gives
from minicpm_mlc.ops.paged import (
    PagedOperator,
    key_pool,
    mean_pool,
    read_keys,
    tree_place,
)
from minicpm_mlc.ops.paged_samples import HEADS, drawn_means, drawn_pools, sampled_trees
from minicpm_mlc.ops.samples import Draw, Sample, sample


def path_means_definition(
    k_pages: np.ndarray,
    k_means: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
) -> np.ndarray:
    """float64 [n, 2, kv_heads, 4, d]: each row's means of pages base // 64 and the next; 0 where it
    has none.

    k_pages [pages, kv_heads, d, 64]; k_means [pages, kv_heads, 4, d] with the committed segments'
    means, which are copied; page_table [1, p]; base [m], whose first element is the tree's;
    ancestors int32 [n, 2].
    """
    tables, (pages,) = path_tables_definition(int(base[0]), ancestors, page_table[0], (k_pages, 3))
    first = base[0] // PAGE_SIZE
    keys = pages[tables[:, first : first + TAIL_PAGES]].astype(np.float64)
    means = keys.reshape(*keys.shape[:-1], SEGMENTS, SEGMENT_SIZE).mean(-1).swapaxes(-1, -2)
    committed = base[0] % PAGE_SIZE // SEGMENT_SIZE
    if committed:
        means[:, 0, :, :committed] = k_means[page_table[0, first], :, :committed]
    for row, bits in enumerate(ancestors.view(np.uint32)):
        tokens = base[0] % PAGE_SIZE + sum(int(word).bit_count() for word in bits)
        finished = np.arange(TAIL_PAGES * SEGMENTS) < tokens // SEGMENT_SIZE
        means[row] *= finished.reshape(TAIL_PAGES, 1, SEGMENTS, 1)
    return means


@dataclass(frozen=True)
class PathMeans(PagedOperator):
    """The means of every row's pages base // 64 and the next."""

    num_kv_heads: int
    head_dim: int
    kv: KVFormat

    def arguments(self) -> dict[str, Argument]:
        shape = TAIL_PAGES, self.num_kv_heads, SEGMENTS, self.head_dim
        return {
            "k_pages": key_pool(self.num_kv_heads, self.head_dim, self.kv),
            "k_means": mean_pool(self.num_kv_heads, self.head_dim),
            **tree_place(),
            "out": gives("float32", "n", *shape),
        }

    def define(self, k_pages: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        return path_means_definition(read_keys(self.kv, k_pages), *rest)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for each in sampled_trees(draw):
            shape = each.pages, self.num_kv_heads, self.head_dim
            stored = drawn_pools(draw, *shape, self.kv)
            yield sample(stored[0], drawn_means(draw, *shape), *each.arguments())

    @classmethod
    def variants(cls) -> Iterator[PathMeans]:
        yield from (cls(*HEADS[0][1:], kv) for kv in ALL_KV_FORMATS.values())
