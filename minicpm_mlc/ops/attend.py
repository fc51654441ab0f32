"""Attention over paged keys and values, for prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import word_values
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.formats.kv import F16, F32, KVFormat
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.operator import SUMS, Argument, Cost, Extent, gives, takes
from minicpm_mlc.ops.paged import PagedOperator, cost_of_pages, kv_pools, row_places
from minicpm_mlc.ops.paged_samples import (
    HEADS,
    drawn_pools,
    drawn_queries,
    heads_and_formats,
    sampled_rows,
)
from minicpm_mlc.ops.quantize_rows import ROUNDED as ROUNDED_WORDS
from minicpm_mlc.ops.quantize_rows import gives_words, words_of
from minicpm_mlc.ops.samples import Draw, Sample, sample

ROUNDED = 1e-4  # NMSE; of attention that rounds queries and weights
Kind = TypeVar("Kind", bound="Attention")


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
    """What all attention has: `num_heads` queries a row, of which groups share a key/value head.

    With a `sum_factor` the outputs are words of quantize_rows.
    """

    limit: ClassVar[float] = SUMS
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv: KVFormat
    sum_factor: int | None = field(kw_only=True, default=None)

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def dtype_label(self) -> str:
        return self.kv.dtype if self.sum_factor is None else f"{self.kv.dtype} to int8"

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.num_heads * self.head_dim

    @property
    def in_splits(self) -> bool:
        """Whether rows are few, so that a GPU takes each in splits and merges them."""
        return True

    @property
    def grid_limit(self) -> float:  # type: ignore[override]
        """Room for another way at a tie of the rounding."""
        return 1e-11 if self.sum_factor is None else ROUNDED_WORDS

    def arguments(self) -> dict[str, Argument]:
        return {
            "q": takes("float32", "n", self.num_heads, self.head_dim),
            **kv_pools(self.num_kv_heads, self.head_dim, self.kv),
            **self.places(),
            "out": self.given(),
        }

    def given(self) -> Argument:
        """What it writes."""
        if self.sum_factor is None:
            return gives("float32", "n", self.width)
        return gives_words(self.width, rows="n")

    def rounded(self, out: np.ndarray) -> np.ndarray:
        """The output as it is written."""
        if self.sum_factor is None:
            return out
        return words_of(out.astype(np.float32), self.sum_factor)

    def outcome(self, arguments: Any) -> np.ndarray:
        out = arguments[-1]
        return out if self.sum_factor is None else word_values(out)

    def fits(self, traits: Any) -> bool:
        """Only the merge of splits rounds, where it sees whole groups of columns."""
        whole = self.in_splits and self.head_dim % GROUP == 0
        return self.sum_factor is None or (traits.launches and whole)

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

    @property
    def in_splits(self) -> bool:
        return self.batched

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
        pools = self.kv.read(k_pages, v_pages)
        return self.rounded(attend_definition(q, *pools, page_tables, slots))

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

    @classmethod
    def variants(cls) -> Iterator[AttendDecode]:
        yield from (cls(*shape) for shape in heads_and_formats())
        yield from rounding(cls)


def rounding(kind: Callable[..., Kind], *others: Any) -> Iterator[Kind]:
    """Records whose outputs are rounded."""
    for heads, kv, factor in zip(HEADS, (F32, F16), (1, -8), strict=True):
        yield kind(*heads, kv, *others, sum_factor=factor)
