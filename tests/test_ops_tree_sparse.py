"""Sparse attention of token trees: every node selects and attends as the decode row of its own
path.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse
from sparse_cases import (
    FAMILIES,
    THREES,
    Family,
    Sequence,
    kernel,
    make_queries,
    make_sequence,
    select,
)
from tree_cases import Tree, make_tree

from minicpm_mlc.ops.attend_tree import AttendTreeBlocks, attend_tree_blocks_definition
from minicpm_mlc.ops.formats.tree import path_tables_definition
from minicpm_mlc.ops.path_means import PathMeans, path_means_definition
from minicpm_mlc.ops.score_tree import ScoreTree, score_tree_definition
from minicpm_mlc.ops.sparse_attention import sparse_attention_definition

TREES = [
    make_tree(100, 40, 0),
    make_tree(1008, 16, 0),  # the first node finishes no segment, the last ones one
    make_tree(990, 64, 1),
    make_tree(1216, 64, 2, deep=True),
    Tree(1500, tuple(range(-1, 63))),  # a chain over four ends of segments and one of a page
]


@cache
def tree_kernel(operator: str, family: Family):
    heads, kv_heads, head_dim = family.heads
    if operator == "means":
        return compiled(cpu_kernel(PathMeans(kv_heads, head_dim, family.kv)))
    if operator == "score":
        return compiled(cpu_kernel(ScoreTree(heads, kv_heads, head_dim), family.tile))
    return compiled(
        cpu_kernel(AttendTreeBlocks(*family.heads, family.kv, family.budget.blocks), family.tile)
    )


def behind(tree: Tree, family: Family) -> Sequence:
    """The committed sequence and the tree's slots; NaN in every mean that the tree may not read."""
    sequence = make_sequence("clustered", family, tree.base + len(tree.parents))
    means = sequence.k_means.copy()
    means[sequence.page_table[tree.base // 64], :, tree.base % 64 // 16 :] = np.nan
    means[sequence.page_table[tree.base // 64 + 1 :]] = np.nan
    return replace(sequence, k_means=means)


def tree_attention(
    family: Family, sequence: Sequence, q: np.ndarray, tree: Tree
) -> tuple[np.ndarray, ...]:
    """The kernels in a row -> attention, selected, pooled scores, means of the paths."""
    table, base, n = sequence.page_table[None], np.array([tree.base], np.int32), len(q)
    heads, kv_heads, head_dim = family.heads
    means = np.full((n, 2, kv_heads, 4, head_dim), np.nan, np.float32)
    tree_kernel("means", family)(
        sequence.k_pages, sequence.k_means, table, base, tree.ancestors, means
    )
    pooled = np.full((n, kv_heads, table.shape[1]), np.nan, np.float32)
    tree_kernel("score", family)(q, sequence.k_means, means, table, tree.positions, base, pooled)
    selected = select(family, pooled, tree.positions)
    out = np.full((n, heads * head_dim), np.nan, np.float32)
    arguments = [q, sequence.k_pages, sequence.v_pages, table, base, tree.ancestors, selected]
    tree_kernel("attend", family)(*arguments, out)
    assert nmse(out, attend_tree_blocks_definition(*arguments)) < 1e-11
    return out, selected, pooled, means


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.base}+{len(tree.parents)}")
@pytest.mark.parametrize("family", [*FAMILIES, THREES], ids=str)
def test_each_node_equals_the_decode_row_of_its_path(family: Family, tree: Tree):
    sequence = behind(tree, family)
    q = make_queries("clustered", family, len(tree.parents))
    attended, selected, pooled, means = tree_attention(family, sequence, q, tree)
    assert np.isfinite(pooled).all() and np.isfinite(means).all()
    table, base = sequence.page_table[None], np.array([tree.base])
    expected = path_means_definition(
        sequence.k_pages, sequence.k_means, table, base, tree.ancestors
    )
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    expected = score_tree_definition(q, sequence.k_means, means, table, tree.positions, base)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)

    pools = (sequence.k_pages, 3), (sequence.v_pages, 2)
    tables, (k, v) = path_tables_definition(tree.base, tree.ancestors, sequence.page_table, *pools)
    tables = np.ascontiguousarray(tables[:, : len(sequence.page_table)])
    decode_means = np.concatenate(
        [sequence.k_means, np.full((2 * len(q), *sequence.k_means.shape[1:]), np.nan, np.float32)]
    )
    tail = tables[0, tree.base // 64]
    decode_means[tail::2, :, : tree.base % 64 // 16] = sequence.k_means[
        table[0, tree.base // 64], :, : tree.base % 64 // 16
    ]
    decoded = np.full_like(pooled, np.nan)
    for depth in range(64):  # a row of each path at a time, as decoding would write the means
        slots = np.minimum(tree.base + depth, tree.positions)
        kernel("means", family, True)(slots, tables, k, decode_means)
    kernel("score", family, True)(q, decode_means, tables, tree.positions, decoded)
    np.testing.assert_array_equal(pooled, decoded)
    out = np.full_like(attended, np.nan)
    kernel("attend", family, True)(q, k, v, tables, tree.positions, selected, out)
    np.testing.assert_array_equal(attended, out)


def test_a_path_alone_gives_what_the_whole_definition_gives():
    family, tree = FAMILIES[0], TREES[2]
    sequence = behind(tree, family)
    q = make_queries("clustered", family, len(tree.parents))
    attended, selected, *_ = tree_attention(family, sequence, q, tree)
    pools = (sequence.k_pages, 3), (sequence.v_pages, 2)
    tables, (k, v) = path_tables_definition(tree.base, tree.ancestors, sequence.page_table, *pools)
    for row in (0, 17, 63):
        arguments = (
            q[row : row + 1],
            k,
            v,
            tables[row],
            tree.positions[row : row + 1],
            family.budget,
        )
        expected, blocks, _ = sparse_attention_definition(*arguments)
        np.testing.assert_array_equal(selected[row], blocks[0])
        assert nmse(attended[row], expected[0]) < 1e-4
