"""Scores of a chunk's rows as products of integers, with every dot product that this processor
has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel
from sparse_cases import FAMILIES, THREES, Family, make_queries, make_sequence, tables

from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import INT8, KVFormat
from minicpm_mlc.ops.score_blocks import ScoreBlocks, score_blocks_definition
from minicpm_mlc.ops.select_blocks import select_blocks_definition
from minicpm_mlc.targets.cpu import INT8_DOTS, CpuTarget

HERE = [dot for dot in INT8_DOTS if dot in CpuTarget.of("native").features]
WIDE = {"avx512vnni": 8}  # vectors of accumulators, where they are not 4
pytestmark = pytest.mark.skipif(not HERE, reason="this processor has no int8 dot products")
CASES = [  # every dot product, and every group
    *((dot, FAMILIES[0]) for dot in HERE),
    *((dot, family) for dot in HERE[-1:] for family in (FAMILIES[1], THREES, FAMILIES[3])),
]


def rounding(dot: str) -> KVFormat:
    return CpuTraits(4, dot).laid_out(INT8)


@cache
def kernel(dot: str, family: Family):
    operator = ScoreBlocks(*family.heads, False, rounding(dot))
    return compiled(cpu_kernel(operator, WIDE.get(dot, 4), int8_dot=dot))


def score(dot: str, family: Family, sequence: Any, q: np.ndarray, positions: np.ndarray):
    pooled = np.full((len(q), family.num_kv_heads, len(sequence.page_table)), np.nan, np.float32)
    kernel(dot, family)(q, sequence.k_means, tables(sequence, 1, False), positions, pooled)
    return pooled


@pytest.mark.parametrize("dot, family", CASES, ids=str)
def test_scores_match_the_definition_at_every_edge_of_a_window(dot: str, family: Family):
    sequence = make_sequence("random", family, 1500)
    edges = np.array([0, 15, 31, 63, 79, 126, 127, 142, 191, 1023, 1498])
    positions = np.concatenate([edges, edges + 1]).astype(np.int32)
    q = make_queries("random", family, len(positions))
    table = tables(sequence, 1, False)
    expected = score_blocks_definition(q, sequence.k_means, table, positions, kv=rounding(dot))
    got = score(dot, family, sequence, q, positions)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (got[positions < 127] == 0).all() and (got[positions >= 127, :, 0] > 0).all()


@pytest.mark.parametrize("dot", HERE)
def test_a_rows_scores_do_not_depend_on_its_chunk(dot: str):
    family = FAMILIES[0]
    sequence = make_sequence("clustered", family, 1000)
    positions = np.arange(900, 931).astype(np.int32)
    q = make_queries("clustered", family, len(positions))
    whole = score(dot, family, sequence, q, positions)
    for start, end in [(0, 1), (0, 7), (4, 31), (30, 31)]:
        part = score(dot, family, sequence, q[start:end], positions[start:end])
        np.testing.assert_array_equal(part, whole[start:end])


@dataclass(frozen=True)
class Swaps:
    """Of some rows: blocks chosen by score, those that rounding changes, and the largest change of
    a score's logarithm.
    """

    chosen: int
    swapped: int
    moved: float


def swaps(dot: str, family: Family, kind: str) -> Swaps:
    """Asserts that a block is chosen in another's place only where rounding moves both scores by
    as much as they differ.
    """
    sequence = make_sequence(kind, family, 6500)
    positions = np.arange(2000, 6500, 90).astype(np.int32)
    q = make_queries(kind, family, len(positions))
    table, budget, chosen, swapped, moved = tables(sequence, 1, False), family.budget, 0, 0, 0.0
    limits = budget.topk, budget.window_blocks, budget.init_blocks
    exact = score_blocks_definition(q, sequence.k_means, table, positions)
    rounded = score(dot, family, sequence, q, positions)
    by_exact, by_rounded = (
        select_blocks_definition(pooled, positions, *limits) for pooled in (exact, rounded)
    )
    for row, head in np.ndindex(by_exact.shape[:2]):
        blocks = range(positions[row] // 64 - budget.window_blocks)
        logs = [np.log(each[row, head, blocks]) for each in (exact, rounded)]
        most = float(np.abs(logs[0] - logs[1]).max())
        gone, come = (
            np.setdiff1d(a[row, head], b[row, head])
            for a, b in ((by_exact, by_rounded), (by_rounded, by_exact))
        )
        assert all(logs[0][a] - logs[0][b] <= 2 * most for a in gone for b in come)
        chosen, swapped, moved = chosen + budget.topk, swapped + len(gone), max(moved, most)
    return Swaps(chosen, swapped, moved)


@pytest.mark.parametrize("dot", HERE)
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_rounding_swaps_few_blocks_and_only_those_that_tie_within_it(dot: str, kind: str):
    found = swaps(dot, FAMILIES[0], kind)
    print(dot, kind, found)
    assert found.moved < 0.1
    assert found.swapped <= found.chosen * 0.05
