"""Sparse attention as a whole: the worked example, and the kernels together against the float64
definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel, nmse
from sparse_cases import (
    FAMILIES,
    GRID,
    KINDS,
    Family,
    make_queries,
    make_sequence,
    select,
    sparse_attention,
)
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op, spec

from minicpm_mlc.compile.pipeline import PASSES
from minicpm_mlc.ops.attend import AttendPrefill, attend_definition
from minicpm_mlc.ops.attend_blocks import AttendBlocks, attend_blocks_definition
from minicpm_mlc.ops.formats.kv import BF16, F16, F32
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.select_blocks import SelectBlocks, select_blocks_definition
from minicpm_mlc.ops.sparse_attention import Budget, sparse_attention_definition
from minicpm_mlc.targets.lowering import cpu_pipeline

SHORT = [1, 64, 127, 130]  # tokens
BEYOND = [
    1,
    65,
    130,
    511,
    700,
    1280,
]  # tokens more than the budget holds: the last row leaves blocks out
ALLOWED = {F32: 1e-7, F16: 1e-4, BF16: 1e-4}


@pytest.fixture(scope="module")
def worked():
    """The published example in blocks of 8: attention, selected and pooled of 64 rows that all ask
    the same.
    """
    t = np.arange(64)
    keys = np.stack([t // 8 == 3, t % 8 / 8], -1).astype(float)
    values = np.stack([t, np.ones(64)], -1).astype(float)
    k_pages = keys.reshape(8, 8, 2).swapaxes(1, 2)[:, None]
    v_pages = values.reshape(8, 8, 2)[:, None]
    q = np.tile(np.array([[2.0, 0.0], [0.0, 1.0]]), (64, 1, 1))
    return sparse_attention_definition(q, k_pages, v_pages, np.arange(8), t, Budget(3, 2, 1))


@pytest.mark.parametrize(
    "row,blocks,heads",
    [
        (15, [0, 1], (7.5, 7.960158)),
        (31, [0, 1, 2, 3], (20.75203, 15.960158)),
        (47, [0, 2, 3, 4, 5], (26.513959, 26.360158)),
        (63, [0, 3, 5, 6, 7], (33.416248, 37.560158)),
    ],
)
def test_worked_example_selects_and_attends(
    worked, row: int, blocks: list[int], heads: tuple[float, float]
):
    attended, selected, _ = worked
    assert selected[row, 0].tolist() == blocks + [-1] * (5 - len(blocks))
    np.testing.assert_allclose(attended[row], [heads[0], 1, heads[1], 1], atol=1e-6)


def test_worked_example_scores_free_blocks(worked):
    pooled = worked[2]
    np.testing.assert_allclose(pooled[47, 0, 1:3], [0.380392, 0.487422], atol=1e-6)
    np.testing.assert_allclose(
        pooled[63, 0, 1:5], [0.280902, 0.366804, 0.624671, 0.366804], atol=1e-6
    )


def cut_margin(pooled: np.ndarray, selected: np.ndarray, expected: np.ndarray) -> float:
    """How far apart, in log score, the blocks are that two selections of one row disagree on;
    float32's range only.
    """
    differ = np.setxor1d(selected, expected)
    logs = np.log(np.clip(pooled[differ[differ >= 0]], 2.0**-126, np.finfo(np.float32).max))
    return float(np.ptp(logs)) if len(logs) else 0.0


@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", GRID, ids=str)
def test_kernels_select_and_attend_as_the_definition_does(family: Family, batched: bool):
    """600 cases in all, 360 of which select; exact ties go to the lower block, and only near ties
    in float64 may be swapped.
    """
    swaps = selecting = 0
    for kind in KINDS:
        near_tie = (
            2e-3 if kind == "extreme" else 1e-5
        )  # of log scores; float32 logits of hundreds are that coarse
        for tokens in [*SHORT, *(64 * family.budget.blocks + more for more in BEYOND)]:
            sequence = make_sequence(kind, family, tokens)
            positions = np.unique(np.array([0, tokens // 2, tokens * 7 // 8, tokens - 1])).astype(
                np.int32
            )
            q = make_queries(kind, family, len(positions), seed=tokens)
            attended, selected, pooled = sparse_attention(family, sequence, q, positions, batched)
            (k, v), table = sequence.read(), sequence.page_table
            expected, expected_selected, expected_pooled = sparse_attention_definition(
                q, k, v, table, positions, family.budget
            )
            budget = family.budget
            exact = select_blocks_definition(
                pooled, positions, budget.topk, budget.window_blocks, budget.init_blocks
            )
            np.testing.assert_array_equal(selected, exact)
            for row, head in np.ndindex(selected.shape[:2]):
                margin = cut_margin(
                    expected_pooled[row, head], selected[row, head], expected_selected[row, head]
                )
                assert margin <= near_tie, (kind, tokens, row, head)
            if (selected != expected_selected).any():
                assert kind not in ("periodic", "equal"), tokens
                swaps += 1
                expected = attend_blocks_definition(q, k, v, table[None], positions, selected)
            assert nmse(attended, expected) <= ALLOWED[family.kv], (kind, tokens)
            selecting += len(table) > budget.blocks
    assert selecting == len(KINDS) * len(BEYOND) and swaps <= 1


def test_decode_equals_the_prefill_row_for_any_chunk():
    family = FAMILIES[0]
    sequence = make_sequence("clustered", family, 1000)
    positions = np.arange(1000 - 65, 1000).astype(np.int32)
    q = make_queries("clustered", family, 65)
    whole = sparse_attention(family, sequence, q, positions, batched=False)
    for chunk, batched in [(1, False), (7, False), (64, False), (5, True)]:
        starts = range(0, 65, chunk)
        parts = [
            sparse_attention(family, sequence, q[i : i + chunk], positions[i : i + chunk], batched)
            for i in starts
        ]
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), whole[1])
        np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), whole[0], atol=1e-6)


@pytest.mark.parametrize(
    "budget,batched", [(Budget(3, 2, 1), False), (Budget(64, 32, 1), True)], ids=str
)
def test_sparse_is_dense_wherever_the_budget_holds_every_block(budget: Budget, batched: bool):
    family = Family(8, 2, 64, F16, 4, budget)
    tokens = min(64 * budget.blocks, 1000)
    sequence = make_sequence("random", family, tokens)
    positions = np.arange(0, tokens, 13).astype(np.int32)
    q = make_queries("random", family, len(positions))
    sparse = sparse_attention(family, sequence, q, positions, batched)[0]
    args = (q, sequence.k_pages, sequence.v_pages, sequence.page_table[None], positions)
    dense = np.full_like(sparse, np.nan)
    compiled(cpu_kernel(AttendPrefill(*family.heads, family.kv), family.tile))(*args, dense)
    assert nmse(sparse, dense) < 1e-11
    assert nmse(sparse, attend_definition(*args)) < 1e-11


def test_one_position_past_the_budget_is_no_longer_dense():
    family = FAMILIES[0]
    tokens = 64 * family.budget.blocks + 1
    sequence = make_sequence("random", family, tokens)
    positions = np.array([tokens - 2, tokens - 1], np.int32)
    q = make_queries("random", family, 2)
    selected = select(family, np.zeros((2, 2, family.budget.blocks + 1), np.float32), positions)
    attended = sparse_attention(family, sequence, q, positions, batched=False)[0]
    dense = attend_definition(
        q, sequence.k_pages, sequence.v_pages, sequence.page_table[None], positions
    )
    assert selected[0, 0].tolist() == [0, 1, 2, 3, 4] and selected[1, 0].tolist() == [0, 1, 3, 4, 5]
    assert nmse(attended[0], dense[0]) < 1e-11 and nmse(attended[1], dense[1]) > 1e-4


@pytest.mark.parametrize("family", FAMILIES[:3], ids=str)
def test_order_of_heads_in_a_group_does_not_change_the_selection(family: Family):
    sequence = make_sequence("clustered", family, 1600)
    positions = np.array([1400, 1599], np.int32)
    q = make_queries("clustered", family, 2)
    group = family.num_heads // family.num_kv_heads
    order = np.random.default_rng(0).permutation(group)
    shuffled = q.reshape(2, -1, group, family.head_dim)[:, :, order].reshape(q.shape)
    _, selected, _ = sparse_attention(family, sequence, q, positions, batched=False)
    _, again, _ = sparse_attention(
        family, sequence, np.ascontiguousarray(shuffled), positions, batched=False
    )
    np.testing.assert_array_equal(selected, again)


class SparseLayer(nn.Module):
    """The four kernels as a model calls them in decode; the pool of means is updated in place."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def forward(
        self,
        q: nn.Tensor,
        slots: nn.Tensor,
        tables: nn.Tensor,
        k: nn.Tensor,
        v: nn.Tensor,
        means: nn.Tensor,
    ):
        family, budget, n, p = self.family, self.family.budget, q.shape[0], tables.shape[1]
        heads, kv_heads, head_dim = family.heads
        means = op.tensor_ir_inplace_op(
            cpu_kernel(SegmentMeans(kv_heads, head_dim, family.kv, batched=True)),
            "segment_means",
            [slots, tables, k, means],
            inplace_indices=[3],
            out=nn.Tensor.placeholder(means.shape, "float32"),
        )
        out = nn.Tensor.placeholder([n, kv_heads, p], "float32")
        scorer = cpu_kernel(ScoreBlocks(*family.heads, batched=True), family.tile)
        pooled = op.tensor_ir_op(scorer, "score_blocks", [q, means, tables, slots], out)
        out = nn.Tensor.placeholder([n, kv_heads, budget.blocks], "int32")
        selector = cpu_kernel(
            SelectBlocks(kv_heads, budget.topk, budget.window_blocks, budget.init_blocks)
        )
        selected = op.tensor_ir_op(selector, "select_blocks", [pooled, slots], out)
        out = nn.Tensor.placeholder([n, heads * head_dim], "float32")
        attender = cpu_kernel(
            AttendBlocks(*family.heads, family.kv, budget.blocks, batched=True), family.tile
        )
        attended = op.tensor_ir_op(
            attender, "attend_blocks", [q, k, v, tables, slots, selected], out
        )
        return attended, means


def test_relax_runs_the_four_kernels_and_updates_the_means_in_place():
    family = FAMILIES[2]
    sequence = make_sequence("clustered", family, 1024)
    before, slot = sequence.k_means.copy(), np.array([1023], np.int32)
    before[sequence.page_table[-1], :, -1] = np.nan  # the segment that this row finishes
    arrays = [
        make_queries("clustered", family, 1),
        slot,
        sequence.page_table[None],
        sequence.k_pages,
        sequence.v_pages,
    ]
    names = ["q", "slots", "tables", "k", "v", "means"]
    dims = [
        ["n", *family.heads[::2]],
        ["n"],
        ["n", "p"],
        ["pages", 2, 64, 64],
        ["pages", 2, 64, 64],
        ["pages", 2, 4, 64],
    ]
    dtypes = [str(array.dtype) for array in (*arrays, before)]
    shapes = {
        name: spec.Tensor(dim, dtype) for name, dim, dtype in zip(names, dims, dtypes, strict=True)
    }
    methods: Any = {"forward": {**shapes, "$": {"param_mode": "none", "effect_mode": "none"}}}
    module = SparseLayer(family).export_tvm(methods)[0]
    target = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    executable = tvm.compile(
        module, target, relax_pipeline=tvm.transform.Sequential(PASSES), tir_pipeline=cpu_pipeline()
    )
    tensors = [tvm.runtime.tensor(array) for array in (*arrays, before)]
    attended = relax.VirtualMachine(executable, tvm.cpu())["forward"](*tensors)[0].numpy()
    np.testing.assert_allclose(tensors[-1].numpy(), sequence.k_means, rtol=1e-5, atol=1e-6)
    q, _, tables, k, v = arrays
    expected, *_ = sparse_attention_definition(q, k, v, tables[0], slot, family.budget)
    assert nmse(attended, expected) < 1e-11
