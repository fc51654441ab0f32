"""Sequences, kernels and calls that the tests of sparse attention share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from op_cases import compiled, cpu_kernel

from minicpm_mlc.ops.attend_blocks import AttendBlocks
from minicpm_mlc.ops.formats.kv import BF16, F16, F32, KVFormat
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.select_blocks import SelectBlocks
from minicpm_mlc.ops.sparse_attention import Budget, all_segment_means

BUDGET = Budget(topk=3, window_blocks=2, init_blocks=1)


@dataclass(frozen=True)
class Family:
    """What kernels are compiled for; `tile`: vectors of 16 accumulators."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv: KVFormat
    tile: int
    budget: Budget = BUDGET

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.num_heads, self.num_kv_heads, self.head_dim


FAMILIES = [  # groups of 16, 8, 4 and 1
    Family(32, 2, 128, F16, 16),
    Family(8, 1, 64, F32, 8, Budget(topk=4, window_blocks=1, init_blocks=0)),
    Family(8, 2, 64, F16, 4, Budget(topk=2, window_blocks=3, init_blocks=1)),
    Family(2, 2, 64, F32, 4, Budget(topk=8, window_blocks=4, init_blocks=2)),
]
THREES = Family(6, 2, 64, F32, 8)  # groups of 3, which no vector's width divides
GRID = [  # and bfloat16 in groups of 3, and the published budget
    *FAMILIES,
    replace(THREES, kv=BF16),
    Family(16, 1, 128, F16, 16, Budget(topk=64, window_blocks=32, init_blocks=1)),
]
KINDS = ["random", "clustered", "periodic", "equal", "extreme"]


@dataclass
class Sequence:
    """One sequence in shuffled pages; NaN in every slot and mean past its last token."""

    kv: KVFormat
    k_pages: np.ndarray
    v_pages: np.ndarray
    k_means: np.ndarray
    page_table: np.ndarray
    tokens: int

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """The pages of keys and of values as numbers, float64."""
        return self.kv.read(self.k_pages, self.v_pages)


def make_keys(kind: str, family: Family, pages: int, rng: np.random.Generator) -> np.ndarray:
    """Keys [pages, kv_heads, d, 64], in the order of the sequence.

    clustered: pages share eight directions, as topics do; periodic: every third page is the same,
        which ties blocks;
    equal: one key everywhere.
    """
    shape = (pages, family.num_kv_heads, family.head_dim, 64)
    keys = rng.standard_normal(shape)
    if kind == "clustered":
        return 0.5 * keys + rng.standard_normal((8, *shape[1:3], 1))[rng.integers(0, 8, pages)]
    if kind == "periodic":
        return keys[np.arange(pages) % 3]
    if kind == "equal":
        return np.broadcast_to(keys[:1, :, :, :1], shape)
    return keys


@cache
def make_sequence(kind: str, family: Family, tokens: int, seed: int = 0) -> Sequence:
    rng = np.random.default_rng([tokens, seed, KINDS.index(kind)])
    pages = -(-tokens // 64)
    table = rng.permutation(pages).astype(np.int32)
    keys = np.empty((pages, family.num_kv_heads, family.head_dim, 64))
    keys[table] = make_keys(kind, family, pages, rng)
    values = rng.standard_normal((pages, family.num_kv_heads, 64, family.head_dim))
    keys[table[-1], :, :, (tokens - 1) % 64 + 1 :] = np.nan
    values[table[-1], :, (tokens - 1) % 64 + 1 :] = np.nan
    kv = family.kv
    k_pages, v_pages = kv.pack(keys, values)
    means = all_segment_means(kv.read(k_pages, v_pages)[0], table, tokens).astype(np.float32)
    return Sequence(kv, k_pages, v_pages, means, table, tokens)


def make_queries(kind: str, family: Family, rows: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, heads, d]; extreme: logits of hundreds, most of whose exponentials
    underflow.
    """
    rng = np.random.default_rng([rows, seed])
    scale = {"random": 3, "clustered": 1, "extreme": 200}.get(kind, 1)
    return (scale * rng.standard_normal((rows, family.num_heads, family.head_dim))).astype(
        np.float32
    )


@cache
def kernel(operator: str, family: Family, batched: bool = False):
    budget = family.budget
    if operator == "means":
        return compiled(cpu_kernel(SegmentMeans(*family.heads[1:], family.kv, batched)))
    if operator == "score":
        return compiled(cpu_kernel(ScoreBlocks(*family.heads, batched), family.tile))
    if operator == "select":
        return compiled(
            cpu_kernel(
                SelectBlocks(
                    family.num_kv_heads, budget.topk, budget.window_blocks, budget.init_blocks
                )
            )
        )
    return compiled(
        cpu_kernel(AttendBlocks(*family.heads, family.kv, budget.blocks, batched), family.tile)
    )


def tables(sequence: Sequence, rows: int, batched: bool) -> np.ndarray:
    return np.tile(sequence.page_table, (rows if batched else 1, 1))


def score(
    family: Family, sequence: Sequence, q: np.ndarray, positions: np.ndarray, batched: bool
) -> np.ndarray:
    pooled = np.full((len(q), family.num_kv_heads, len(sequence.page_table)), np.nan, np.float32)
    table = tables(sequence, len(q), batched)
    kernel("score", family, batched)(q, sequence.k_means, table, positions, pooled)
    return pooled


def select(family: Family, pooled: np.ndarray, positions: np.ndarray) -> np.ndarray:
    selected = np.full((*pooled.shape[:2], family.budget.blocks), -9, np.int32)
    kernel("select", family)(pooled, positions, selected)
    return selected


def attend(
    family: Family,
    sequence: Sequence,
    q: np.ndarray,
    slots: np.ndarray,
    selected: np.ndarray,
    batched: bool,
) -> np.ndarray:
    out = np.full((len(q), family.num_heads * family.head_dim), np.nan, np.float32)
    table = tables(sequence, len(q), batched)
    kernel("attend", family, batched)(
        q, sequence.k_pages, sequence.v_pages, table, slots, selected, out
    )
    return out


def sparse_attention(
    family: Family, sequence: Sequence, q: np.ndarray, positions: np.ndarray, batched: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three kernels in a row -> what sparse_attention_definition returns: attention, selected,
    pooled.
    """
    pooled = score(family, sequence, q, positions, batched)
    selected = select(family, pooled, positions)
    return attend(family, sequence, q, positions, selected, batched), selected, pooled
