"""GPU attention on an OpenCL device where the operator grid doesn't go: unwritten slots, extremes,
ties, long contexts.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import sparse_cases
from gpu_cases import compiled, needs_opencl
from op_cases import gpu_kernel, nmse
from sparse_cases import KINDS, Family, make_queries, make_sequence, tables
from test_ops_attend import make_case
from tree_cases import make_tree

from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, attend_definition
from minicpm_mlc.ops.attend_blocks import AttendBlocks, attend_blocks_definition
from minicpm_mlc.ops.attend_tree import (
    AttendTree,
    AttendTreeBlocks,
    attend_tree_blocks_definition,
    attend_tree_definition,
)
from minicpm_mlc.ops.formats.kv import F16, F32
from minicpm_mlc.ops.path_means import PathMeans, path_means_definition
from minicpm_mlc.ops.score_blocks import ScoreBlocks, score_blocks_definition
from minicpm_mlc.ops.score_tree import ScoreTree, score_tree_definition
from minicpm_mlc.ops.select_blocks import SelectBlocks, select_blocks_definition

pytestmark = needs_opencl
OPERATORS = {"prefill": AttendPrefill, "decode": AttendDecode, "tree": AttendTree}
DENSE = [  # heads, kv heads, head_dim, KV dtype, and what the CPU's cases have besides
    (2, 2, 96, F32, 0),
    (3, 1, 64, F16, 0),
    (16, 2, 64, F32, 0),
]
FAMILIES = [  # groups of 16, 4, 1 and 3
    Family(32, 2, 128, F16, 0),
    Family(8, 2, 64, F16, 0, sparse_cases.Budget(topk=2, window_blocks=3, init_blocks=1)),
    Family(2, 2, 64, F32, 0, sparse_cases.Budget(topk=8, window_blocks=4, init_blocks=2)),
    sparse_cases.THREES,
]


@cache
def dense(kind: str, family: tuple):
    return compiled(gpu_kernel(OPERATORS[kind](*family[:4])))


@cache
def sparse(operator: str, family: Family, batched: bool = False):
    heads, budget = family.heads, family.budget
    if operator == "score":
        return compiled(gpu_kernel(ScoreBlocks(*heads, batched)))
    if operator == "select":
        return compiled(
            gpu_kernel(
                SelectBlocks(heads[1], budget.topk, budget.window_blocks, budget.init_blocks)
            )
        )
    return compiled(gpu_kernel(AttendBlocks(*heads, family.kv, budget.blocks, batched)))


@pytest.mark.parametrize("family", DENSE[:2], ids=str)
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_dense_attention_never_reads_unwritten_slots(kind: str, family: tuple):
    for n, context in [(1, 1), (2, 15), (1, 64), (7, 65), (3, 200), (2, 1000)]:
        case = make_case(kind, family, min(n, 3) if kind == "decode" else n, context)
        out = np.full((len(case[0]), family[0] * family[2]), np.nan, np.float32)
        dense(kind, family)(*case, out)
        assert nmse(out, attend_definition(*case)) < 1e-11, (n, context)


def test_scores_far_apart_stay_finite():
    case = make_case("decode", DENSE[2], 2, 200)
    case[0] *= 100
    out = np.full((2, 16 * 64), np.nan, np.float32)
    dense("decode", DENSE[2])(*case, out)
    assert nmse(out, attend_definition(*case)) < 1e-8


@pytest.mark.parametrize("base,nodes", [(1, 3), (63, 8), (64, 33), (200, 64), (1000, 16)])
@pytest.mark.parametrize("family", DENSE[1:3], ids=str)
def test_tree_rows_see_their_ancestors(family: tuple, base: int, nodes: int):
    tree = make_tree(base, nodes, seed=0)
    q, k_pages, v_pages, table, _ = make_case("prefill", family, nodes, base + nodes)
    case = [q, k_pages, v_pages, table, np.array([base], np.int32), tree.ancestors]
    out = np.full((nodes, family[0] * family[2]), np.nan, np.float32)
    dense("tree", family)(*case, out)
    assert nmse(out, attend_tree_definition(*case)) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_scores_selection_and_attention_over_it(family: Family, batched: bool, kind: str):
    sequence = make_sequence(kind, family, 6500)
    edges = np.array([0, 31, 63, 126, 127, 142, 191, 1023, 4222, 6399])
    positions = np.concatenate([edges, edges + 1]).astype(np.int32)
    q, table = make_queries(kind, family, len(positions)), tables(sequence, len(positions), batched)
    expected = score_blocks_definition(q, sequence.k_means, table, positions)
    pooled = np.full(expected.shape, np.nan, np.float32)
    sparse("score", family, batched)(q, sequence.k_means, table, positions, pooled)
    np.testing.assert_allclose(pooled, expected, rtol=2e-5 if kind != "extreme" else 2e-3)
    budget = family.budget
    selected = np.full((len(q), family.num_kv_heads, budget.blocks), -9, np.int32)
    sparse("select", family)(pooled, positions, selected)
    chosen = select_blocks_definition(
        pooled, positions, budget.topk, budget.window_blocks, budget.init_blocks
    )
    np.testing.assert_array_equal(selected, chosen)
    arguments = [q, sequence.k_pages, sequence.v_pages, table, positions, selected]
    out = np.full((len(q), family.num_heads * family.head_dim), np.nan, np.float32)
    sparse("attend", family, batched)(*arguments, out)
    assert nmse(out, attend_blocks_definition(*arguments)) < (1e-11 if kind != "extreme" else 1e-7)


@pytest.mark.parametrize("values", [[0.0], [np.inf, 1.0], [0.25, 0.25000003, 0.0, 1e-45, 1e-38]])
def test_selection_gives_ties_to_the_lower_block(values: list[float]):
    family, budget = FAMILIES[2], FAMILIES[2].budget
    pooled = np.random.default_rng(0).choice(np.array(values, np.float32), (4, 2, 300))
    positions = np.array([64 * 300 - 1, 64 * 20, 64 * 12, 900], np.int32)
    selected = np.full((4, 2, budget.blocks), -9, np.int32)
    sparse("select", family)(pooled, positions, selected)
    expected = select_blocks_definition(
        pooled, positions, budget.topk, budget.window_blocks, budget.init_blocks
    )
    np.testing.assert_array_equal(selected, expected)


@pytest.mark.parametrize("base,nodes", [(30, 20), (127, 2), (192, 64), (1009, 16), (1340, 60)])
@pytest.mark.parametrize("family", FAMILIES[1:2], ids=str)
def test_a_trees_rows_select_and_attend_along_their_paths(family: Family, base: int, nodes: int):
    tree, budget = make_tree(base, nodes, seed=1, deep=True), family.budget
    sequence = make_sequence("random", family, base + nodes)
    table, start = sequence.page_table[None], np.array([base], np.int32)
    q, k_pages = make_queries("random", family, nodes), np.nan_to_num(sequence.k_pages)
    heads, kv_heads = family.heads, family.num_kv_heads
    means = np.zeros((nodes, 2, kv_heads, 4, family.head_dim), np.float32)
    compiled(gpu_kernel(PathMeans(*heads[1:], family.kv)))(
        k_pages, sequence.k_means, table, start, tree.ancestors, means
    )
    expected = path_means_definition(
        k_pages, np.nan_to_num(sequence.k_means), table, start, tree.ancestors
    )
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    scored = [q, np.nan_to_num(sequence.k_means), means, table, tree.positions, start]
    pooled = np.full((nodes, kv_heads, table.shape[1]), np.nan, np.float32)
    compiled(gpu_kernel(ScoreTree(*heads)))(*scored, pooled)
    np.testing.assert_allclose(pooled, score_tree_definition(*scored), rtol=2e-5)
    selected = select_blocks_definition(
        pooled, tree.positions, budget.topk, budget.window_blocks, budget.init_blocks
    )
    attended = [q, k_pages, np.nan_to_num(sequence.v_pages), table, start, tree.ancestors, selected]
    out = np.full((nodes, family.num_heads * family.head_dim), np.nan, np.float32)
    compiled(gpu_kernel(AttendTreeBlocks(*heads, family.kv, budget.blocks)))(*attended, out)
    assert nmse(out, attend_tree_blocks_definition(*attended)) < 1e-11
