"""Each operator of sparse attention alone: means, scores, selection."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import cpu_kernel, nmse
from sparse_cases import (
    FAMILIES,
    Family,
    kernel,
    make_queries,
    make_sequence,
    score,
    select,
    tables,
)

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.attend_blocks import attend_blocks_definition
from minicpm_mlc.ops.score_blocks import ScoreBlocks, score_blocks_definition
from minicpm_mlc.ops.segment_means import segment_means_definition
from minicpm_mlc.ops.select_blocks import SelectBlocks, select_blocks_definition


@pytest.mark.parametrize("chunk", [1, 7, 64, 200])
@pytest.mark.parametrize("family", FAMILIES[:2], ids=str)
def test_means_written_chunk_by_chunk_are_those_of_the_whole(family: Family, chunk: int):
    sequence = make_sequence("random", family, 200)
    means = np.full_like(sequence.k_means, np.nan)
    for start in range(0, 200, chunk):
        slots = np.arange(start, min(start + chunk, 200)).astype(np.int32)
        kernel("means", family)(slots, tables(sequence, 1, False), sequence.k_pages, means)
    np.testing.assert_allclose(means, sequence.k_means, rtol=1e-5, atol=1e-6)
    assert np.isnan(means).any() and np.isfinite(means[sequence.page_table[:3]]).all()


def test_decode_means_follow_each_rows_own_page_table():
    family = FAMILIES[0]
    sequence = make_sequence("random", family, 256)
    page_tables = sequence.page_table.reshape(2, 2)
    means, expected = np.zeros_like(sequence.k_means), np.zeros_like(sequence.k_means)
    slots = np.array([79, 31], np.int32)
    kernel("means", family, True)(slots, page_tables, sequence.k_pages, means)
    segment_means_definition(slots, page_tables, sequence.k_pages, expected)
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_scores_match_the_definition_at_every_edge_of_a_window(family: Family, batched: bool):
    sequence = make_sequence("random", family, 6500)  # 102 pages: decode cuts them into three
    edges = np.array([0, 15, 31, 63, 79, 126, 127, 142, 191, 1023, 2190, 4222, 4366, 6399, 6498])
    positions = np.concatenate([edges, edges + 1]).astype(np.int32)
    q = make_queries("random", family, len(positions))
    expected = score_blocks_definition(q, sequence.k_means, tables(sequence, 1, False), positions)
    got = score(family, sequence, q, positions, batched)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (got[positions < 127] == 0).all() and (got[positions >= 127, :, 0] > 0).all()


def test_decode_rows_of_different_sequences_do_not_mix():
    family = FAMILIES[0]
    sequence = make_sequence("random", family, 1024)
    page_tables = sequence.page_table.reshape(2, 8)
    positions = np.array([500, 140], np.int32)
    q = make_queries("random", family, 2)
    pooled, out = np.full((2, 2, 8), np.nan, np.float32), np.full((2, 32 * 128), np.nan, np.float32)
    kernel("score", family, True)(q, sequence.k_means, page_tables, positions, pooled)
    np.testing.assert_allclose(
        pooled, score_blocks_definition(q, sequence.k_means, page_tables, positions), rtol=1e-5
    )
    arguments = [
        q,
        sequence.k_pages,
        sequence.v_pages,
        page_tables,
        positions,
        select(family, pooled, positions),
    ]
    kernel("attend", family, True)(*arguments, out)
    assert nmse(out, attend_blocks_definition(*arguments)) < 1e-11


SCORES = st.sampled_from([0.0, 1e-45, 1e-38, 0.25, 0.25000003, 1.0, 1e30, np.inf])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data(), family=st.sampled_from(FAMILIES), pages=st.integers(1, 70))
def test_selection_is_exact_with_ties_to_the_lower_block(
    data: st.DataObject, family: Family, pages: int
):
    position = data.draw(st.integers(0, 64 * pages - 1))
    row = data.draw(st.lists(SCORES, min_size=pages, max_size=pages))
    pooled = np.tile(np.array(row, np.float32), (1, family.num_kv_heads, 1))
    positions, budget = np.array([position], np.int32), family.budget
    expected = select_blocks_definition(
        pooled, positions, budget.topk, budget.window_blocks, budget.init_blocks
    )
    np.testing.assert_array_equal(select(family, pooled, positions), expected)


def test_selection_of_nan_scores_stays_inside_the_sequence():
    pooled = np.full((1, 2, 40), -np.nan, np.float32)
    selected = select(FAMILIES[0], pooled, np.array([40 * 64 - 1], np.int32))
    assert (selected >= -9).all() and (selected < 40).all() and (selected[..., 0] == 0).all()


def test_a_budget_without_room_for_the_own_block_is_refused():
    with pytest.raises(CompileError, match="topk 1 must exceed init_blocks 1"):
        cpu_kernel(SelectBlocks(2, 1, 4, 1))


def test_more_heads_than_lanes_are_refused():
    with pytest.raises(CompileError, match="at most 16"):
        cpu_kernel(ScoreBlocks(64, 2, 128, batched=True))


WINDOW_COUNTS = [  # tokens, windows of 32, windows of 128: spec table T4
    (31, 0, 0),
    (32, 1, 0),
    (47, 1, 0),
    (48, 2, 0),
    (127, 6, 0),
    (128, 7, 1),
    (191, 10, 1),
    (192, 11, 2),
    (8191, 510, 126),
    (8192, 511, 127),
    (131071, 8190, 2046),
    (131072, 8191, 2047),
]


@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
def test_windows_are_counted_as_published(batched: bool):
    """Equal logits give each window group / coarse windows; a raised last segment lifts the last
    window alone.
    """
    family, group = FAMILIES[1], 8
    pages = -(-131072 // 64)
    table = np.arange(pages, dtype=np.int32)[None]
    q = np.ones((1, *family.heads[::2]), np.float32)
    for tokens, windows, coarse in WINDOW_COUNTS:
        means = np.zeros((pages, 1, 4, family.head_dim), np.float32)
        flat = means.reshape(-1, family.head_dim)
        flat[windows + 1 :] = np.nan  # not finished
        pooled = np.full((1, 1, pages), np.nan, np.float32)
        position = np.array([tokens - 1], np.int32)
        kernel("score", family, batched)(q, means, table, position, pooled)
        assert np.isfinite(pooled).all()
        if not coarse:
            assert (pooled == 0).all()
            continue
        np.testing.assert_allclose(pooled[0, 0, : windows // 4 + 1], group / coarse, rtol=1e-5)
        assert (pooled[0, 0, windows // 4 + 1 :] == 0).all()
        flat[windows] = 0.01
        lifted = np.full_like(pooled, np.nan)
        kernel("score", family, batched)(q, means, table, position, lifted)
        last = (windows - 1) // 4
        assert lifted[0, 0, last] > 1.01 * pooled[0, 0, last]
        assert (lifted[0, 0, : max(last - 1, 0)] <= 1.01 * pooled[0, 0, : max(last - 1, 0)]).all()


def test_scores_of_a_prefill_chunk_take_less_than_64_mib():
    """2048 rows at 128K tokens, the 8B models' heads: the scores of all blocks, and 16 threads'
    logits of windows.
    """
    rows, pages, threads = 2048, 131072 // 64, 16
    pooled = 4 * rows * 2 * pages
    script = cpu_kernel(ScoreBlocks(32, 2, 128, batched=False), 8).script()
    extents = re.findall(r"alloc_buffer\((\(.*?\))(?:, \"\w+\")?\)$", script, re.MULTILINE)
    names = {"p": pages, "T": SimpleNamespace(int64=int)}
    per_task = sum(4 * int(np.prod(eval(extent, names))) for extent in extents)
    assert per_task > 4 * pages * 4, "the logits of a task's windows are among them"
    assert pooled + threads * per_task < 64 << 20
