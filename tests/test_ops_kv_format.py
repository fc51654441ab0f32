"""Keys and values in every storage format: written, attended to, averaged and moved as the
definition reads them.
"""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse
from tree_cases import make_tree

from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, attend_definition
from minicpm_mlc.ops.attend_blocks import AttendBlocks, attend_blocks_definition
from minicpm_mlc.ops.attend_tree import AttendTree, attend_tree_definition
from minicpm_mlc.ops.formats.kv import BF16, F16, F32, INT8, KV_FORMATS, KVFormat
from minicpm_mlc.ops.move_rows import MoveRows
from minicpm_mlc.ops.path_means import PathMeans, path_means_definition
from minicpm_mlc.ops.rope_append import RopeAppend, rope_append_definition
from minicpm_mlc.ops.segment_means import SegmentMeans, segment_means_definition

HEADS = (8, 2, 64)
TOKENS, PAGES = 200, 4
ALLOWED = {
    F32: 1e-11,
    F16: 1e-6,
    BF16: 1e-4,
    INT8: 5e-4,
}  # NMSE of attention over exact keys
FORMATS = list(KV_FORMATS.values())


def empty_pools(kv: KVFormat) -> tuple[np.ndarray, np.ndarray]:
    """Pools whose slots hold what no test may see."""
    _, kv_heads, head_dim = HEADS
    k_pages, v_pages = kv.empty(PAGES, kv_heads, head_dim)
    for pool in (k_pages, v_pages):
        pool[...] = {BF16: 0x7FFF, INT8: 77}.get(kv, np.nan)
    k_pages[:, :, head_dim:] = np.float32(np.nan).tobytes()[3]
    return k_pages, v_pages


def filled_pools(kv: KVFormat, size: float = 1.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pools of 200 random tokens in pages 3, 1, 0, 2, and the same tokens in float32."""
    rng = np.random.default_rng(0)
    stored, exact = empty_pools(kv), empty_pools(F32)
    for slot in range(TOKENS):
        k, v = size * rng.standard_normal((2, HEADS[1], HEADS[2])).astype(np.float32)
        for fmt, pools in ((kv, stored), (F32, exact)):
            fmt.write(*pools, [3, 1, 0, 2][slot // 64], slot % 64, k, v)
    return list(stored), list(exact)


TABLE = np.array([[3, 1, 0, 2]], np.int32)


@pytest.mark.parametrize("kind", ["zero", "tiny", "ordinary", "huge"])
@pytest.mark.parametrize("kv", FORMATS)
def test_a_written_token_reads_as_the_definition_says(kv: KVFormat, kind: str):
    heads, kv_heads, head_dim = HEADS
    size = {
        "zero": 0.0,
        "tiny": 1e-35,
        "ordinary": 1.0,
        "huge": 6e4 if kv is F16 else 1e38,
    }[kind]
    rng = np.random.default_rng(1)
    qkv = (size * rng.uniform(-1, 1, (3, (heads + 2 * kv_heads) * head_dim))).astype(np.float32)
    cos_sin = np.tile(
        np.repeat([1.0, 0.0], head_dim // 2).astype(np.float32), (3, 1)
    )  # no rotation
    slots = np.array([63, 64, 130], np.int32)
    got, expected = empty_pools(kv), empty_pools(kv)
    q = np.zeros((3, heads, head_dim), np.float32)
    compiled(cpu_kernel(RopeAppend(*HEADS, kv, batched=False)))(qkv, cos_sin, slots, TABLE, *got, q)
    rope_append_definition(qkv, cos_sin, slots, TABLE, *expected, heads, kv)
    pages, places = TABLE[0, slots // 64], slots % 64
    for ours, theirs, axis in zip(kv.read(*got), kv.read(*expected), (3, 2), strict=True):
        written = (
            np.moveaxis(ours, axis, 1)[pages, places],
            np.moveaxis(theirs, axis, 1)[pages, places],
        )
        np.testing.assert_allclose(
            *written, rtol=1e-6, atol=size * (1 / 127 if kv is INT8 else 1e-7)
        )
        ours_left, theirs_left = (np.moveaxis(x, axis, 1).copy() for x in (ours, theirs))
        ours_left[pages, places] = theirs_left[pages, places] = 0
        np.testing.assert_array_equal(ours_left, theirs_left)


@pytest.mark.parametrize("kv", FORMATS)
def test_rows_of_int8_round_to_the_nearest_of_their_largest(kv: KVFormat):
    stored, exact = filled_pools(kv)
    for got, expected in zip(kv.read(*stored), exact, strict=True):
        seen = np.isfinite(expected)
        error = np.abs(got[seen] - expected[seen]).max() / np.abs(expected[seen]).max()
        assert error <= {F32: 0, F16: 2**-11, BF16: 2**-8, INT8: 0.5 / 127}[kv]


@pytest.mark.parametrize("kv", FORMATS)
def test_attention_reads_every_format(kv: KVFormat):
    stored, exact = filled_pools(kv)
    (keys, values), read = exact, kv.read(*stored)
    rng = np.random.default_rng(2)
    q = rng.standard_normal((10, *HEADS[::2])).astype(np.float32)
    slots = np.arange(TOKENS - 10, TOKENS, dtype=np.int32)
    out = np.full((10, HEADS[0] * HEADS[2]), np.nan, np.float32)
    for operator, tables in ((AttendPrefill, TABLE), (AttendDecode, np.tile(TABLE, (10, 1)))):
        compiled(cpu_kernel(operator(*HEADS, kv), 8))(q, *stored, tables, slots, out)
        assert nmse(out, attend_definition(q, *read, tables, slots)) < 1e-11
        assert nmse(out, attend_definition(q, keys, values, tables, slots)) < ALLOWED[kv]
    selected = np.tile(np.array([0, 2, 3, -1], np.int32), (10, HEADS[1], 1))
    compiled(cpu_kernel(AttendBlocks(*HEADS, kv, 4, True), 8))(
        q, *stored, tables, slots, selected, out
    )
    assert nmse(out, attend_blocks_definition(q, *read, tables, slots, selected)) < 1e-11


@pytest.mark.parametrize("kv", FORMATS)
def test_trees_read_every_format(kv: KVFormat):
    stored, _ = filled_pools(kv)
    tree = make_tree(TOKENS - 20, 20, 0)
    base, ancestors = np.array([tree.base], np.int32), tree.ancestors
    q = np.random.default_rng(3).standard_normal((20, *HEADS[::2])).astype(np.float32)
    out = np.full((20, HEADS[0] * HEADS[2]), np.nan, np.float32)
    compiled(cpu_kernel(AttendTree(*HEADS, kv), 8))(q, *stored, TABLE, base, ancestors, out)
    assert nmse(out, attend_tree_definition(q, *kv.read(*stored), TABLE, base, ancestors)) < 1e-11


@pytest.mark.parametrize("kv", FORMATS)
def test_means_are_of_the_keys_as_they_are_read(kv: KVFormat):
    stored, _ = filled_pools(kv)
    keys, _ = kv.read(*stored)
    slots = np.arange(TOKENS - 5, dtype=np.int32)
    means, expected = np.zeros((2, PAGES, HEADS[1], 4, HEADS[2]), np.float32)
    compiled(cpu_kernel(SegmentMeans(*HEADS[1:], kv, batched=False)))(
        slots, TABLE, stored[0], means
    )
    segment_means_definition(slots, TABLE, keys, expected)
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    tree = make_tree(TOKENS - 20, 20, 0, deep=True)
    got = np.full((20, 2, HEADS[1], 4, HEADS[2]), np.nan, np.float32)
    arguments = TABLE, np.array([tree.base], np.int32), tree.ancestors
    compiled(cpu_kernel(PathMeans(*HEADS[1:], kv)))(stored[0], means, *arguments, got)
    np.testing.assert_allclose(
        got, path_means_definition(keys, means, *arguments), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kv", FORMATS)
def test_moved_rows_keep_their_scales(kv: KVFormat):
    stored, _ = filled_pools(kv)
    before = kv.read(*(pool.copy() for pool in stored))
    compiled(cpu_kernel(MoveRows(*HEADS[1:], kv)))(
        np.array([70, 150], np.int32), np.array([20, 21], np.int32), TABLE, *stored
    )
    keys, values = kv.read(*stored)
    np.testing.assert_array_equal(
        keys[3, :, :, 20:22], np.stack([before[0][1, :, :, 6], before[0][0, :, :, 22]], -1)
    )
    np.testing.assert_array_equal(
        values[3, :, 20:22], np.stack([before[1][1, :, 6], before[1][0, :, 22]], 1)
    )
