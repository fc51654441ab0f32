"""Attention of a token tree's rows, dense and over selected blocks: each row as the decode row of
its own path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.attend import Attention, average, grouped_queries, rounding
from minicpm_mlc.ops.attend_blocks import GRID_BUDGET, attend_blocks_definition, selected_blocks
from minicpm_mlc.ops.formats.kv import ALL_KV_FORMATS, F32, KVFormat
from minicpm_mlc.ops.formats.tree import path_tables_definition, paths_definition
from minicpm_mlc.ops.operator import Argument
from minicpm_mlc.ops.paged import tree_place
from minicpm_mlc.ops.paged_samples import HEADS, drawn_blocks, heads_and_formats, sampled_trees
from minicpm_mlc.ops.samples import Draw, Sample, sample


def attend_tree_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
    kv: KVFormat = F32,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over slots < base[0], and base[0] + j for each bit j of a row's
    mask; float64 [n, h * d].

    q [n, heads, d]; pools and `kv` as in attend_definition; page_table [1, p]; ancestors int32
    [n, 2].
    """
    grouped = grouped_queries(q, k_pages.shape[1], kv)
    keys = np.concatenate(k_pages[page_table[0]], -1)
    values = np.concatenate(v_pages[page_table[0]], -2)
    out = np.zeros(grouped.shape)
    for row, path in enumerate(paths_definition(ancestors)):
        seen = [*range(base[0]), *(base[0] + node for node in path)]
        scores = grouped[row] @ keys[..., seen].astype(np.float64)
        out[row] = average(scores, values[:, seen].astype(np.float64), kv)
    return out.reshape(len(q), -1)


def attend_tree_blocks_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
    selected: np.ndarray,
    kv: KVFormat = F32,
) -> np.ndarray:
    """As attend_blocks_definition over each row's own sequence; arguments as in
    attend_tree_definition.
    """
    tables, pools = path_tables_definition(
        int(base[0]), ancestors, page_table[0], (k_pages, 3), (v_pages, 2)
    )
    slots = base[0] + np.array([len(path) - 1 for path in paths_definition(ancestors)])
    return attend_blocks_definition(q, pools[0], pools[1], tables, slots, selected, kv)


class AttendTree(Attention):
    """A row sees the committed slots and its ancestors; it equals AttendDecode's row of its path,
    bit for bit.
    """

    def places(self) -> dict[str, Argument]:
        return tree_place()

    def define(
        self, q: np.ndarray, k_pages: np.ndarray, v_pages: np.ndarray, *places: np.ndarray
    ) -> np.ndarray:
        read = self.kv.read(k_pages, v_pages)
        return self.rounded(attend_tree_definition(q, *read, *places, kv=self.kv))

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for tree in sampled_trees(draw):
            given = self.inputs_of(draw, len(tree.ancestors), tree.pages)
            yield sample(*given, *tree.arguments())

    @classmethod
    def variants(cls) -> Iterator[AttendTree]:
        yield from (cls(*shape) for shape in heads_and_formats())
        yield from rounding(cls)


@dataclass(frozen=True)
class AttendTreeBlocks(Attention):
    """The same over each row's selected blocks. A list ends at its first -1."""

    budget: int

    def places(self) -> dict[str, Argument]:
        return tree_place() | selected_blocks(self.num_kv_heads, self.budget)

    def define(
        self, q: np.ndarray, k_pages: np.ndarray, v_pages: np.ndarray, *places: np.ndarray
    ) -> np.ndarray:
        read = self.kv.read(k_pages, v_pages)
        return self.rounded(attend_tree_blocks_definition(q, *read, *places, kv=self.kv))

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for tree in sampled_trees(draw):
            given = self.inputs_of(draw, len(tree.ancestors), tree.pages)
            blocks = drawn_blocks(draw, tree.positions, self.num_kv_heads, self.budget)
            yield sample(*given, *tree.arguments(), blocks)

    @classmethod
    def variants(cls) -> Iterator[AttendTreeBlocks]:
        yield from (cls(*HEADS[0], kv, GRID_BUDGET) for kv in ALL_KV_FORMATS.values())
        yield from rounding(cls, GRID_BUDGET)
