"""Attention over paged keys and values, for prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
    kv: KVFormat = F32,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over the slots 0..slots[r] of row r's page table, float64 [n,
    heads * d].

    q [n, heads, d]; k_pages [pages, kv_heads, d, 64], v_pages [pages, kv_heads, 64, d];
    page_tables [n, p] (decode), or [1, p] shared by all rows (prefill). `kv`: whose rounding of
    queries and weights is part of the definition.
    """
    grouped = grouped_queries(q, k_pages.shape[1], kv)
    out = np.zeros(grouped.shape)
    for row, slot in enumerate(slots):
        table = page_tables[row if len(page_tables) > 1 else 0][: slot // PAGE_SIZE + 1]
        keys = np.concatenate(k_pages[table], -1)[..., : slot + 1].astype(np.float64)
        values = np.concatenate(v_pages[table], -2)[:, : slot + 1].astype(np.float64)
        out[row] = average(grouped[row] @ keys, values, kv)
    return out.reshape(len(q), -1)


def grouped_queries(q: np.ndarray, kv_heads: int, kv: KVFormat) -> np.ndarray:
    """q [n, heads, d] -> float64 [n, kv_heads, group, d], divided by sqrt(d)."""
    n, _, head_dim = q.shape
    return kv.rounded_queries(q).reshape(n, kv_heads, -1, head_dim) / np.sqrt(head_dim)


def average(scores: np.ndarray, values: np.ndarray, kv: KVFormat) -> np.ndarray:
    """softmax(scores) values: scores [..., g, t], values [..., t, d] of pages of 64 tokens, the
    last of which may be short.
    """
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.zeros((*scores.shape[:-1], values.shape[-1]))
    for start in range(0, scores.shape[-1], PAGE_SIZE):
        page = slice(start, start + PAGE_SIZE)
        out += kv.rounded_weights(weights[..., page], values[..., page, :]) @ values[..., page, :]
    return out / weights.sum(-1, keepdims=True)


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
        rounds = self.sum_factor is None or (traits.launches and whole)
        return rounds and super().fits(traits)

    def places(self) -> dict[str, Argument]:
        """What says which slots a row sees."""
        raise NotImplementedError

    def inputs_of(self, draw: Draw, n: int, pages: int) -> list[Any]:
        """Queries of n rows, and pools."""
        q = drawn_queries(draw, n, self.num_heads, self.head_dim)
        return [q, *drawn_pools(draw, pages, self.num_kv_heads, self.head_dim, self.kv)]

    def rounded_limit(self, limit: float, traits: Any) -> float:
        halves = traits.f16_tiles and self.kv.storage == "float16"
        rounds = halves or self.kv.words or self.kv.multiplied_as_bfloat16(traits.bf16_dot)
        return ROUNDED if rounds else limit

    def cost(self, extent: Extent) -> Cost:
        cost = cost_of_pages(self, extent, self.num_heads, extent.blocks_read)
        return replace(cost, int8=self.kv.words)

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
        read = self.kv.read(k_pages, v_pages)
        return self.rounded(attend_definition(q, *read, page_tables, slots, self.kv))

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
