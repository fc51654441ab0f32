"""Attention of each query over its selected blocks: the second stage of sparse attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.attend import Attention, average, grouped_queries, rounding
from minicpm_mlc.ops.formats.kv import F32, KVFormat
from minicpm_mlc.ops.operator import Argument, takes
from minicpm_mlc.ops.paged import row_places
from minicpm_mlc.ops.paged_samples import drawn_blocks, formats_by_batch, sampled_rows
from minicpm_mlc.ops.samples import Draw, Sample, sample

GRID_BUDGET = 5  # blocks


def attend_blocks_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_tables: np.ndarray,
    slots: np.ndarray,
    selected: np.ndarray,
    kv: KVFormat = F32,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over the slots <= slots[r] of row r's selected blocks, float64 [n,
    heads * d].

    Shapes and `kv` as in attend_definition; selected i32[n, kv_heads, budget], ascending, -1 past a
    list's end. A block is a page.
    """
    head_dim = q.shape[-1]
    kv_heads, page_size = k_pages.shape[1], k_pages.shape[-1]
    grouped = grouped_queries(q, kv_heads, kv)
    out = np.zeros(grouped.shape)
    for row, slot in enumerate(slots):
        table = page_tables[row if len(page_tables) > 1 else 0]
        for head in range(kv_heads):
            blocks = selected[row, head][selected[row, head] >= 0]
            seen = (blocks[:, None] * page_size + np.arange(page_size)).ravel() <= slot
            keys = (
                k_pages[table[blocks], head]
                .swapaxes(1, 2)
                .reshape(-1, head_dim)[seen]
                .astype(np.float64)
            )
            values = v_pages[table[blocks], head].reshape(-1, head_dim)[seen].astype(np.float64)
            out[row, head] = average(grouped[row, head] @ keys.T, values, kv)
    return out.reshape(len(q), -1)


@dataclass(frozen=True)
class AttendBlocks(Attention):
    """Row r sees the slots up to slots[r] of its blocks, at most `budget` for each key/value head.

    It uses its own page table when `batched` (decode), else the only one (prefill). A list ends at
    its first -1.
    """

    budget: int
    batched: bool

    @property
    def in_splits(self) -> bool:
        return self.batched

    def places(self) -> dict[str, Argument]:
        return row_places() | selected_blocks(self.num_kv_heads, self.budget)

    def define(
        self, q: np.ndarray, k_pages: np.ndarray, v_pages: np.ndarray, *places: np.ndarray
    ) -> np.ndarray:
        read = self.kv.read(k_pages, v_pages)
        return self.rounded(attend_blocks_definition(q, *read, *places, kv=self.kv))

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for rows in sampled_rows(draw, self.batched):
            given = self.inputs_of(draw, len(rows.slots), rows.pages)
            blocks = drawn_blocks(draw, rows.slots, self.num_kv_heads, self.budget)
            yield sample(*given, *rows.arguments(), blocks)

    @classmethod
    def variants(cls) -> Iterator[AttendBlocks]:
        for heads, kv_heads, head_dim, kv, batched in formats_by_batch():
            yield cls(heads, kv_heads, head_dim, kv, GRID_BUDGET, batched)
        yield from rounding(cls, GRID_BUDGET, True)


def selected_blocks(num_kv_heads: int, budget: int) -> dict[str, Argument]:
    """What select_blocks gives, as an argument."""
    return {"selected": takes("int32", "n", num_kv_heads, budget)}
