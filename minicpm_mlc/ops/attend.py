"""Attention over paged keys and values, for prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.operator import SUMS, Argument, Cost, Extent, gives, takes
from minicpm_mlc.ops.paged import PagedOperator, cost_of_pages, kv_pools, row_places
from minicpm_mlc.ops.paged_samples import (
    drawn_pools,
    drawn_queries,
    heads_and_formats,
    sampled_rows,
)
from minicpm_mlc.ops.samples import Draw, Sample, sample

ROUNDED = 1e-4  # NMSE; of attention that rounds queries and weights


def attend_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_tables: np.ndarray,
    slots: np.ndarray,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over the slots 0..slots[r] of row r's page table, float64 [n,
    heads * d].

    q [n, heads, d]; k_pages [pages, kv_heads, d, 64], v_pages [pages, kv_heads, 64, d];
    page_tables [n, p] (decode), or [1, p] shared by all rows (prefill).
    """
    n, heads, head_dim = q.shape
    grouped = q.astype(np.float64).reshape(n, k_pages.shape[1], -1, head_dim) / np.sqrt(head_dim)
    out = np.zeros(grouped.shape)
    for row, slot in enumerate(slots):
        table = page_tables[row if len(page_tables) > 1 else 0][: slot // PAGE_SIZE + 1]
        keys = np.concatenate(k_pages[table], -1)[..., : slot + 1].astype(np.float64)
        values = np.concatenate(v_pages[table], -2)[:, : slot + 1].astype(np.float64)
        scores = grouped[row] @ keys
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[row] = weights / weights.sum(-1, keepdims=True) @ values
    return out.reshape(n, heads * head_dim)


@dataclass(frozen=True)
class Attention(PagedOperator):
    """What all attention has: `num_heads` queries a row, of which groups share a key/value head."""

    limit: ClassVar[float] = SUMS
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv: KVFormat

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def arguments(self) -> dict[str, Argument]:
        return {
            "q": takes("float32", "n", self.num_heads, self.head_dim),
            **kv_pools(self.num_kv_heads, self.head_dim, self.kv),
            **self.places(),
            "out": gives("float32", "n", self.num_heads * self.head_dim),
        }

    def places(self) -> dict[str, Argument]:
        """What says which slots a row sees."""
        raise NotImplementedError

    def inputs_of(self, draw: Draw, n: int, pages: int) -> list[Any]:
        """Queries of n rows, and pools."""
        q = drawn_queries(draw, n, self.num_heads, self.head_dim)
        return [q, *drawn_pools(draw, pages, self.num_kv_heads, self.head_dim, self.kv)]

    def rounded_limit(self, limit: float, traits: Any) -> float:
        halves = traits.f16_tiles and self.kv.storage == "float16"
        rounds = halves or self.kv.multiplied_as_bfloat16(traits.bf16_dot)
        return ROUNDED if rounds else limit

    def cost(self, extent: Extent) -> Cost:
        return cost_of_pages(self, extent, self.num_heads, extent.blocks_read)

    def shape_label(self, extent: Extent) -> str:
        return f"{extent.blocks_read} of {extent.blocks} pages"


class AttendPrefill(Attention):
    """Rows of one sequence; row r sees the slots up to slots[r]."""

    batched: ClassVar[bool] = False

    def places(self) -> dict[str, Argument]:
        return row_places()

    def define(
        self,
        q: np.ndarray,
        k_pages: np.ndarray,
        v_pages: np.ndarray,
        page_tables: np.ndarray,
        slots: np.ndarray,
    ) -> np.ndarray:
        return attend_definition(q, *self.kv.read(k_pages, v_pages), page_tables, slots)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for rows in sampled_rows(draw, self.batched):
            given = self.inputs_of(draw, len(rows.slots), rows.pages)
            yield sample(*given, *rows.arguments())

    @classmethod
    def variants(cls) -> Iterator[AttendPrefill]:
        yield from (cls(*shape) for shape in heads_and_formats())


class AttendDecode(AttendPrefill):
    """One row of each of several sequences, up to its slot."""

    batched = True
