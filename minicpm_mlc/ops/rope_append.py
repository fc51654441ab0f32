"""Rotary position embedding, and the write of the new keys and values into their pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import F32, KVFormat
from minicpm_mlc.ops.operator import Argument, gives, takes
from minicpm_mlc.ops.paged import PagedOperator, kv_pools, mean_pool, page_tables, read_keys
from minicpm_mlc.ops.paged_samples import (
    SLOTS,
    Rows,
    drawn_pools,
    formats_by_batch,
    shuffled,
    small_rows,
)
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.segment_means import segment_means_definition

PERIOD = 193  # numbers of a row that differ


def rotate_definition(x: np.ndarray, cos_sin: np.ndarray) -> np.ndarray:
    """x [n, heads, d] rotated by cos_sin [n, d] in pairs (i, i + d/2), float64."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.split(cos_sin.astype(np.float64)[:, None, :], 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def rope_append_definition(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    slots: np.ndarray,
    page_tables: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    num_heads: int,
    kv: KVFormat,
) -> np.ndarray:
    """Returns rotated q, float64 [n, heads, d]; writes k and v of each row into the pools in place.

    qkv [n, (heads + 2 kv_heads) d]; page_tables [n, p], or [1, p] shared by all rows;
    k_pages [pages, kv_heads, d, 64] (transposed in the page), v_pages [pages, kv_heads, 64, d].
    """
    kv_heads, head_dim = v_pages.shape[1], v_pages.shape[3]
    q, k, v = np.split(
        qkv.reshape(len(qkv), -1, head_dim), [num_heads, num_heads + kv_heads], axis=1
    )
    k = rotate_definition(k, cos_sin)
    for row, slot in enumerate(slots):
        page = page_tables[row if len(page_tables) > 1 else 0, slot // PAGE_SIZE]
        kv.write(k_pages, v_pages, page, slot % PAGE_SIZE, k[row], v[row])
    return rotate_definition(q, cos_sin)


@dataclass(frozen=True)
class RopeAppend(PagedOperator):
    """Queries, keys and values side by side; a row's key and value go to its slot.

    Row r uses page table r when `batched` (decode), else the only one (prefill, s == 1).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv: KVFormat
    batched: bool

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key/value heads, numbers of a head."""
        return self.num_heads, self.num_kv_heads, self.head_dim

    @property
    def width(self) -> int:
        """Columns of a row."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def grid_limit(self) -> float:  # type: ignore[override]
        """Room for another way at a tie of the rounding."""
        return 1e-12 if self.kv is F32 else 1e-6

    def arguments(self) -> dict[str, Argument]:
        return {
            "qkv": takes("float32", "n", self.width),
            "cos_sin": takes("float32", "n", self.head_dim),
            "slots": takes("int32", "n"),
            "page_tables": page_tables(),
            **kv_pools(self.num_kv_heads, self.head_dim, self.kv, "state"),
            "q": gives("float32", "n", self.num_heads, self.head_dim),
        }

    def define(self, *arrays: np.ndarray) -> np.ndarray:
        return rope_append_definition(*arrays, num_heads=self.num_heads, kv=self.kv)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for rows in self.rows(draw):
            table, slots = rows.arguments()
            n = len(rows.slots)
            qkv, cos_sin = draw.normal(n, self.width), draw.normal(n, self.head_dim)
            if not draw.whole:
                qkv, cos_sin = self.short_numbers(draw, n)
            stored = drawn_pools(draw, rows.pages, self.num_kv_heads, self.head_dim, self.kv)
            yield sample(qkv, cos_sin, slots, table, *stored, *self.more_pools(rows))

    def more_pools(self, rows: Rows) -> list[Tiled]:
        """What it updates beside keys and values."""
        return []

    def rows(self, draw: Draw) -> Iterator[Rows]:
        """The slots to write: those of a chunk follow each other."""
        if not draw.whole:
            yield small_rows(self.batched, SLOTS)
            return
        random = draw.random
        middle, late = int(random.integers(1, 60)), int(random.integers(60, 120))
        for n, first in ((1, 0), (2, 62), (7, middle), (65, 3), (4, late)):
            table = shuffled(draw, (first + n) // PAGE_SIZE + 1, n if self.batched else 1)
            chunk, batch = np.arange(first, first + n), random.integers(0, first + n, n)
            yield Rows(table, (batch if self.batched else chunk).astype(np.int32))

    def short_numbers(self, draw: Draw, n: int) -> tuple[Tiled, Tiled]:
        """qkv and cos_sin of few digits, so that every format stores exactly one answer."""
        normal = draw.normal(n, self.width, period=PERIOD)
        qkv = Tiled(np.rint(16 * normal.tile) / np.float32(16), normal.shape)
        turns = np.array([-1, -0.5, 0.5, 1], np.float32)
        return qkv, Tiled.whole(draw.random.choice(turns, (n, self.head_dim)))

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        *_, k_pages, v_pages, q = arguments
        return np.concatenate([x.ravel() for x in (*self.kv.read(k_pages, v_pages), q)])

    @classmethod
    def variants(cls) -> Iterator[RopeAppend]:
        yield from (cls(*shape) for shape in formats_by_batch())


@dataclass(frozen=True)
class RopeAppendMeans(RopeAppend):
    """RopeAppend and SegmentMeans of a batch in one: what each row's segment has before it lies in
    the pool already. Of a batch only, as the rows of a chunk read each other's keys.
    """

    def arguments(self) -> dict[str, Argument]:
        arguments = super().arguments()
        q = arguments.pop("q")
        means = mean_pool(self.num_kv_heads, self.head_dim, "state")
        return arguments | {"k_means": means, "q": q}

    def define(self, *arrays: np.ndarray) -> np.ndarray:
        *others, k_means = arrays
        q = super().define(*others)
        _, _, slots, page_tables, k_pages, _ = others
        segment_means_definition(slots, page_tables, read_keys(self.kv, k_pages), k_means)
        return q

    def more_pools(self, rows: Rows) -> list[Tiled]:
        means = np.zeros((rows.pages, self.num_kv_heads, SEGMENTS, self.head_dim), np.float32)
        return [Tiled.whole(means)]

    def rows(self, draw: Draw) -> Iterator[Rows]:
        """Every other row ends its segment."""
        for rows in super().rows(draw):
            slots = rows.slots.copy()
            slots[::2] |= SEGMENT_SIZE - 1
            yield Rows(rows.table, slots)

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        *others, k_means, q = arguments
        return np.concatenate([super().outcome([*others, q]), k_means.ravel()])

    def fits(self, traits: Any) -> bool:
        return self.batched and traits.launches and super().fits(traits)

    @classmethod
    def variants(cls) -> Iterator[RopeAppendMeans]:
        yield from (cls(*shape) for shape in formats_by_batch() if shape[-1])
