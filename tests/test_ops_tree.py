"""Rows of token trees against the definition and, bit for bit, against decode of each row's own
path.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse
from tree_cases import Tree, make_tree

from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.attend_tree import AttendTree, attend_tree_definition
from minicpm_mlc.ops.formats.kv import F16, F32
from minicpm_mlc.ops.formats.tree import path_tables_definition
from minicpm_mlc.ops.move_rows import MoveRows, move_rows_definition

FAMILIES = [  # heads, kv heads, head_dim, KV format, register tile: groups of 1, 3, 8 and 16
    (2, 2, 96, F32, 4),
    (3, 1, 64, F16, 8),
    (16, 2, 64, F32, 8),
    (32, 2, 128, F16, 8),
]
TREES = [
    *(
        make_tree(base, nodes, 0)
        for base, nodes in [(0, 1), (0, 64), (1, 5), (63, 2), (64, 7), (200, 16), (1000, 64)]
    ),
    make_tree(50, 64, 1, deep=True),
    make_tree(315, 33, 1, deep=True),
    Tree(
        1023, tuple(range(-1, 63))
    ),  # a chain over a page's end, where decode starts to use a split more
]


@cache
def kernel(operator, family: tuple):
    return compiled(cpu_kernel(operator(*family[:4]), family[4]))


def make_case(family: tuple, tree: Tree) -> list[np.ndarray]:
    """q, k_pages, v_pages, page_table, base, ancestors; NaN in the slots behind the tree."""
    num_heads, num_kv_heads, head_dim, kv, _ = family
    rng = np.random.default_rng([tree.base, len(tree.parents)])
    used = tree.base + len(tree.parents)
    pages = -(-used // 64)
    table = rng.permutation(pages).astype(np.int32)
    q = 2 * rng.standard_normal((len(tree.parents), num_heads, head_dim)).astype(np.float32)
    k_pages = rng.standard_normal((pages, num_kv_heads, head_dim, 64)).astype(kv.storage)
    v_pages = rng.standard_normal((pages, num_kv_heads, 64, head_dim)).astype(kv.storage)
    k_pages[table[-1], :, :, (used - 1) % 64 + 1 :] = np.nan
    v_pages[table[-1], :, (used - 1) % 64 + 1 :] = np.nan
    return [q, k_pages, v_pages, table[None], np.array([tree.base], np.int32), tree.ancestors]


def attend(operator, family: tuple, arguments: list[np.ndarray]) -> np.ndarray:
    out = np.full((len(arguments[0]), family[0] * family[2]), np.nan, np.float32)
    kernel(operator, family)(*arguments, out)
    return out


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.base}+{len(tree.parents)}")
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_each_node_sees_the_committed_slots_and_its_own_path(family: tuple, tree: Tree):
    case = make_case(family, tree)
    got = attend(AttendTree, family, case)
    assert nmse(got, attend_tree_definition(*case)) < 1e-11
    q, k, v, table, _, ancestors = case
    tables, (k, v) = path_tables_definition(tree.base, ancestors, table[0], (k, 3), (v, 2))
    decoded = attend(AttendDecode, family, [q, k, v, tables, tree.positions])
    np.testing.assert_array_equal(got, decoded)


def test_rows_may_be_only_the_last_nodes_of_a_tree():
    family, tree = FAMILIES[2], make_tree(130, 40, 2)
    q, *rest, ancestors = make_case(family, tree)
    whole = attend(AttendTree, family, [q, *rest, ancestors])
    part = attend(AttendTree, family, [q[31:].copy(), *rest, ancestors[31:].copy()])
    np.testing.assert_array_equal(part, whole[31:])


def test_moved_rows_are_the_bits_that_were_there():
    family = FAMILIES[2]
    _, k_pages, v_pages, table, *_ = make_case(family, make_tree(120, 64, 0))
    k_pages, v_pages = np.nan_to_num(k_pages), np.nan_to_num(v_pages)
    sources = np.array([120, 122, 123, 129, 140, 183], np.int32)
    slots = np.arange(120, 126).astype(np.int32)
    keys, values = k_pages.copy(), v_pages.copy()
    compiled(cpu_kernel(MoveRows(2, 64, F32)))(sources, slots, table, keys, values)
    move_rows_definition(sources, slots, table, k_pages, v_pages, F32)
    np.testing.assert_array_equal(keys, k_pages)
    np.testing.assert_array_equal(values, v_pages)
