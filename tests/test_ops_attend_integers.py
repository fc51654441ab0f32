"""Attention over an int8 cache by integer dot products, with every one that this processor has."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel, nmse
from tree_cases import make_tree

from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, attend_definition
from minicpm_mlc.ops.attend_blocks import AttendBlocks, attend_blocks_definition
from minicpm_mlc.ops.attend_tree import AttendTree, attend_tree_definition
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import INT8, WORDS, KVFormat
from minicpm_mlc.targets.cpu import INT8_DOTS, CpuTarget
from minicpm_mlc.targets.lowering import cpu_pipeline

FEATURES = CpuTarget.of("native").features
HERE = [dot for dot in INT8_DOTS if dot in FEATURES]
needs_dot = pytest.mark.skipif(not HERE, reason="this processor has no int8 dot products")
HEADS = [(16, 2, 64), (32, 2, 128), (6, 2, 96), (2, 2, 64)]  # groups of 8, 16, 3 and 1
EXACTLY = 1e-6  # NMSE; a weight half between two integers may go either way
ROUNDED = 2e-3  # of what rounding queries and weights may cost
TABLE = np.array([[3, 1, 0, 2]], np.int32)
TOKENS = 200


def format_of(dot: str) -> KVFormat:
    return CpuTraits(4, dot).laid_out(INT8)


@cache
def kernel(operator: type, heads: tuple[int, int, int], dot: str, *more: Any):
    return compiled(cpu_kernel(operator(*heads, format_of(dot), *more), int8_dot=dot))


@cache
def pools(dot: str, heads: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """TOKENS random tokens in the pages of TABLE; behind them what no test may see."""
    kv, (_, kv_heads, head_dim) = format_of(dot), heads
    k_pages, v_pages = kv.empty(4, kv_heads, head_dim)
    for pool in (k_pages, v_pages):
        pool[...] = 77
    k_pages[:, :, head_dim:] = np.tile(np.float32(np.nan).reshape(1).view(np.int8), 16)
    rng = np.random.default_rng(0)
    for slot in range(TOKENS):
        k, v = rng.standard_normal((2, kv_heads, head_dim), np.float32)
        kv.write(k_pages, v_pages, TABLE[0, slot // 64], slot % 64, k, v)
    return k_pages, v_pages


def queries(n: int, heads: tuple[int, int, int]) -> np.ndarray:
    return 2 * np.random.default_rng(n).standard_normal((n, *heads[::2]), np.float32)


def attended(call: Any, q: np.ndarray, *arguments: np.ndarray) -> np.ndarray:
    out = np.full((len(q), q[0].size), np.nan, np.float32)
    call(q, *arguments, out)
    return out


@needs_dot
@pytest.mark.parametrize(
    "dot, heads",
    [
        *((dot, HEADS[0]) for dot in HERE),
        *((dot, heads) for dot in HERE[-1:] for heads in HEADS[1:]),
    ],
)
def test_rows_of_a_chunk_and_of_a_batch_equal_the_definition(dot: str, heads: tuple):
    kv, stored = format_of(dot), pools(dot, heads)
    for n in (1, 12):
        q, slots = queries(n, heads), np.arange(TOKENS - n, TOKENS, dtype=np.int32)
        read = kv.read(*stored)
        rounded = attend_definition(q, *read, TABLE, slots, kv)
        exact = attend_definition(q, *read, TABLE, slots)
        tables = np.tile(TABLE, (n, 1))
        for operator, table in ((AttendPrefill, TABLE), (AttendDecode, tables)):
            out = attended(kernel(operator, heads, dot), q, *stored, table, slots)
            assert nmse(out, rounded) < EXACTLY
            assert nmse(out, exact) < ROUNDED


@needs_dot
@pytest.mark.parametrize("dot", HERE)
def test_selected_blocks_and_trees_equal_the_definition(dot: str):
    heads = HEADS[0]
    kv, stored, read = format_of(dot), pools(dot, heads), format_of(dot).read(*pools(dot, heads))
    q, slots = queries(10, heads), np.arange(TOKENS - 10, TOKENS, dtype=np.int32)
    selected = np.tile(np.array([0, 2, 3, -1], np.int32), (10, heads[1], 1))
    places = np.tile(TABLE, (10, 1)), slots, selected
    out = attended(kernel(AttendBlocks, heads, dot, 4, True), q, *stored, *places)
    assert nmse(out, attend_blocks_definition(q, *read, *places, kv=kv)) < EXACTLY
    tree = make_tree(TOKENS - 20, 20, 0)
    places = TABLE, np.array([tree.base], np.int32), tree.ancestors
    out = attended(kernel(AttendTree, heads, dot), queries(20, heads), *stored, *places)
    expected = attend_tree_definition(queries(20, heads), *read, *places, kv=kv)
    assert nmse(out, expected) < EXACTLY


@needs_dot
@pytest.mark.parametrize("dot", HERE)
def test_a_row_is_the_same_alone_in_a_batch_and_in_a_tree_bit_for_bit(dot: str):
    heads = HEADS[0]
    kv, stored, decode = format_of(dot), pools(dot, heads), kernel(AttendDecode, heads, dot)
    q, slots = queries(6, heads), np.array([0, 63, 64, 100, 150, 199], np.int32)
    batch = attended(decode, q, *stored, np.tile(TABLE, (6, 1)), slots)
    for row in range(6):
        one = slice(row, row + 1)
        assert np.array_equal(attended(decode, q[one], *stored, TABLE, slots[one])[0], batch[row])
    tree = make_tree(TOKENS - 20, 20, 0, deep=True)
    base = np.array([tree.base], np.int32)
    out = attended(
        kernel(AttendTree, heads, dot), queries(20, heads), *stored, TABLE, base, tree.ancestors
    )
    for node, path in enumerate(tree.paths):
        moved = stored[0].copy(), stored[1].copy()
        for to, at in enumerate(path):
            places = [(TABLE[0, s // 64], s % 64) for s in (tree.base + to, tree.base + at)]
            kv.move(*moved, *places)
        slot = np.array([tree.base + len(path) - 1], np.int32)
        alone = attended(decode, queries(20, heads)[node : node + 1], *moved, TABLE, slot)
        assert np.array_equal(out[node], alone[0]), node


@needs_dot
@pytest.mark.parametrize("dot", HERE)
@pytest.mark.parametrize("size", [0.0, 1e-35, 100.0, 1e15])
def test_queries_of_any_size_give_finite_numbers(dot: str, size: float):
    heads, kv = HEADS[0], format_of(dot)
    stored, slots = pools(dot, heads), np.array([TOKENS - 1], np.int32)
    q = np.float32(size) * queries(1, heads)
    out = attended(kernel(AttendDecode, heads, dot), q, *stored, TABLE, slots)
    assert np.isfinite(out).all()
    if size <= 100:
        expected = attend_definition(q, *kv.read(*stored), TABLE, slots, kv)
        assert nmse(out, expected) < 1e-6


def test_only_the_layout_differs_from_int8():
    plain, words = (kv.empty(2, 3, 64) for kv in (INT8, WORDS["int8 words 127"]))
    for kv, stored in ((INT8, plain), (WORDS["int8 words 127"], words)):
        rng = np.random.default_rng(0)
        for slot in (0, 1, 5, 62):
            kv.write(*stored, 1, slot, *rng.standard_normal((2, 3, 64), np.float32))
        kv.move(*stored, (0, 3), (1, 62))
    for a, b in zip(INT8.read(*plain), WORDS["int8 words 127"].read(*words), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(words[0][1, 0, :, 20:24].ravel()[:4], plain[0][1, 0, :4, 5])
    assert np.array_equal(words[1][1, 0, 4, 1::4], plain[1][1, 0, 5, :16])


def test_no_product_of_two_pairs_overflows_sixteen_bits():
    assert (
        2 * 255 * DOTS["avx2"].query_levels < 1 << 15 <= 2 * 255 * (DOTS["avx2"].query_levels + 1)
    )
    assert 2 * 127 * 127 < 1 << 15


@pytest.mark.parametrize(
    "dot, platform, cpu, instruction",
    [
        ("avx512vnni", "x86_64", "znver4", "vpdpbusd"),
        ("avxvnni", "x86_64", "alderlake", "vpdpbusd"),
        ("avx2", "x86_64", "znver3", "vpmaddubsw"),
        ("dotprod", "aarch64", "cortex-a76", "sdot"),
        ("i8mm", "aarch64", "neoverse-n2", "smmla"),
    ],
)
def test_every_level_multiplies_integers(dot: str, platform: str, cpu: str, instruction: str):
    target = CpuTarget.of(cpu, platform)
    assert target.int8_dot == dot
    assert target.traits.exact().laid_out(INT8) is INT8
    kernel: Any = build(AttendDecode(4, 2, 64, target.traits.laid_out(INT8)), target.traits)
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target.tvm_target(), tir_pipeline=cpu_pipeline())
    assert instruction in built.mod.inspect_source("asm")
