"""How much each block matters to the rows of a token tree: score_blocks over each row's own
path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.score_blocks import Call, score_blocks_definition
from minicpm_mlc.ops.cpu.score_segments import Lanes, Scorer
from minicpm_mlc.ops.formats.tree import TAIL_PAGES
from minicpm_mlc.ops.tir import T


def score_tree_definition(
    q: np.ndarray,
    k_means: np.ndarray,
    path_means: np.ndarray,
    page_table: np.ndarray,
    positions: np.ndarray,
    base: np.ndarray,
) -> np.ndarray:
    """As score_blocks_definition, row r's means from page base // 64 on being path_means[r], [n, 2,
    kv_heads, 4, d].
    """
    n, first = len(q), base[0] // PAGE_SIZE
    tables = np.tile(page_table, (n, 1))
    tails = len(k_means) + np.arange(n * TAIL_PAGES, dtype=np.int32).reshape(n, TAIL_PAGES)
    tables[:, first : first + TAIL_PAGES] = tails[:, : tables.shape[1] - first]
    means = np.concatenate([k_means, path_means.reshape(-1, *k_means.shape[1:])])
    return score_blocks_definition(q, means, tables, positions)


def score_tree(num_heads: int, num_kv_heads: int, head_dim: int, tile_vectors: int = 4) -> Any:
    """PrimFunc (q f32[n, h, d], k_means f32[pages, k, 4, d], path_means f32[n, 2, k, 4, d],
    page_table i32[1, p], positions i32[n], base i32[m]) -> f32[n, k, p]; as in
    score_tree_definition, only base[0] counts.

    A row's scores equal those of score_blocks' decode row of its path, bit for bit.
    """
    lanes = Lanes.of(num_heads // num_kv_heads, True, tile_vectors)
    tile_pages = 2 if tile_vectors >= 2 * SEGMENTS else 1

    def emit(*arguments: Any) -> None:
        TreeCall(lanes, tile_pages, num_kv_heads, *arguments).decode()

    @T.prim_func(private=True)
    def score_tree(
        q_handle: T.handle,
        k_means_handle: T.handle,
        path_means_handle: T.handle,
        page_table_handle: T.handle,
        positions_handle: T.handle,
        base_handle: T.handle,
        pooled_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        m = T.int64()
        p = T.int64()
        num_pages = T.int64()
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        k_means = T.match_buffer(
            k_means_handle, (num_pages, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        path_means = T.match_buffer(
            path_means_handle, (n, TAIL_PAGES, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        page_table = T.match_buffer(page_table_handle, (1, p), "int32")
        positions = T.match_buffer(positions_handle, (n,), "int32")
        base = T.match_buffer(base_handle, (m,), "int32")
        pooled = T.match_buffer(pooled_handle, (n, num_kv_heads, p), "float32")
        emit(n, p, q, k_means, page_table, positions, pooled, path_means, base)

    return score_tree


@dataclass(frozen=True)
class TreeCall(Call):
    """A call whose rows share a page table up to the tree's first page."""

    path_means: Any
    base: Any

    def multiply(
        self, scorer: Scorer, rows: list[Any], kv_head: Any, begin: Any, end: Any, table: Any = 0
    ) -> Any:
        first = T.Bind(T.Cast("int64", self.base[0] // PAGE_SIZE))
        split = T.Bind(T.max(begin, T.min(end, first)))
        queries = super().multiply(scorer, rows, kv_head, begin, split)
        with T.serial(end - split) as step:
            page = T.Bind(split + step)
            tail = T.Bind(page - first)
            scorer.multiply(
                queries, lambda _, s, i: self.path_means[table, tail, kv_head, s, i], page, 1
            )
        return queries
