"""Commit of a token tree's path: its keys and values move to the slots behind the committed ones.

segment_means over the same `slots` then writes the means of the segments that the path finishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.formats.kv import ALL_KV_FORMATS, KVFormat
from minicpm_mlc.ops.operator import EXACT, Argument, takes
from minicpm_mlc.ops.paged import PagedOperator, kv_pools
from minicpm_mlc.ops.paged_samples import BASE, drawn_pools, shuffled, small_rows
from minicpm_mlc.ops.samples import Draw, Sample, ids, sample


def move_rows_definition(
    sources: np.ndarray,
    slots: np.ndarray,
    page_table: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    kv: KVFormat,
) -> None:
    """Copy keys and values of each sources[r] to slots[r], in order of r, in place.

    sources and slots [m], both ascending, sources[r] >= slots[r]; page_table [1, p];
    both pools as the format stores them.
    """
    for source, slot in zip(sources, slots, strict=True):
        to, at = page_table[0, slot // PAGE_SIZE], page_table[0, source // PAGE_SIZE]
        kv.move(k_pages, v_pages, (to, slot % PAGE_SIZE), (at, source % PAGE_SIZE))


@dataclass(frozen=True)
class MoveRows(PagedOperator):
    """Tokens move within one sequence, in order: a slot is read before it is written."""

    limit: ClassVar[float] = EXACT
    grid_limit: ClassVar[float] = EXACT
    num_kv_heads: int
    head_dim: int
    kv: KVFormat

    def arguments(self) -> dict[str, Argument]:
        return {
            "sources": takes("int32", "m"),
            "slots": takes("int32", "m"),
            "page_table": takes("int32", 1, "p"),
            **kv_pools(self.num_kv_heads, self.head_dim, self.kv, "state"),
        }

    def define(self, *arrays: np.ndarray) -> None:
        move_rows_definition(*arrays, kv=self.kv)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        if not draw.whole:
            moved, to = ids(BASE, 130, 200), ids(BASE, BASE + 1, BASE + 2)
            yield self.sample(draw, moved, to, small_rows(False, []).table)
            return
        for _ in range(4):
            base, m = int(draw.random.integers(0, 100)), int(draw.random.integers(1, 20))
            sources = np.sort(base + draw.random.choice(60, m, replace=False))
            yield self.sample(draw, ids(*sources), ids(*range(base, base + m)), shuffled(draw, 3))

    def sample(self, draw: Draw, sources: Tiled, slots: Tiled, table: np.ndarray) -> Sample:
        """A call in pools that the page table fills."""
        pages = 1 + int(table.max())
        stored = drawn_pools(draw, pages, self.num_kv_heads, self.head_dim, self.kv)
        return sample(sources, slots, Tiled.whole(table), *stored)

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.ravel() for x in self.kv.read(*arguments[-2:])])

    @classmethod
    def variants(cls) -> Iterator[MoveRows]:
        yield from (cls(2, 64, kv) for kv in ALL_KV_FORMATS.values())
