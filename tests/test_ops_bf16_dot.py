"""Attention that multiplies a bfloat16 cache as it is, on processors that have the instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel, nmse
from tree_cases import make_tree

from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, attend_definition
from minicpm_mlc.ops.attend_tree import AttendTree
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.formats.bfloat16 import bfloat16_bits, bfloat16_numbers
from minicpm_mlc.ops.formats.kv import BF16, F16, KVFormat
from minicpm_mlc.targets.cpu import BF16_DOT, CpuTarget
from minicpm_mlc.targets.lowering import cpu_pipeline

NAN = 0x7FC0
HEADS = [(32, 2, 128), (16, 2, 64), (6, 2, 64)]  # groups of 16, 8 and 3
LENGTHS = [1, 2, 63, 64, 65, 333]
here = pytest.mark.skipif(
    BF16_DOT not in CpuTarget.of("native").features,
    reason="this processor has no bfloat16 products",
)


def pools_of(
    tokens: int, kv_heads: int, head_dim: int, behind: int = NAN
) -> tuple[list[np.ndarray], np.ndarray]:
    """Keys, values and page table of a sequence; `behind` are the bits of places that hold no
    token.
    """
    rng = np.random.default_rng(tokens)
    pages = -(-tokens // 64)
    keys, values = (
        bfloat16_bits(rng.standard_normal((pages, kv_heads, *shape)))
        for shape in ((head_dim, 64), (64, head_dim))
    )
    keys[-1, :, :, (tokens - 1) % 64 + 1 :] = values[-1, :, (tokens - 1) % 64 + 1 :] = behind
    table = rng.permutation(pages).astype(np.int32)
    stored = [np.empty_like(keys), np.empty_like(values)]
    stored[0][table], stored[1][table] = keys, values
    return stored, table[None]


def rounded(q: np.ndarray) -> np.ndarray:
    """Queries as the kernel multiplies them."""
    scale = np.float32(np.log2(np.e) / np.sqrt(q.shape[-1]))
    return bfloat16_numbers(bfloat16_bits(q * scale)) / scale


@here
@pytest.mark.parametrize("heads, kv_heads, head_dim", HEADS)
def test_attention_rounds_queries_and_weights_and_nothing_else(heads, kv_heads, head_dim):
    shape = heads, kv_heads, head_dim
    calls = [
        compiled(cpu_kernel(operator(*shape, BF16), 8, bf16_dot=True))
        for operator in (AttendPrefill, AttendDecode)
    ]
    for tokens in LENGTHS:
        stored, table = pools_of(tokens, kv_heads, head_dim)
        keys, values = (np.nan_to_num(pool) for pool in BF16.read(*stored))
        n = min(tokens, 20)
        q = 2 * np.random.default_rng(0).standard_normal((n, heads, head_dim), dtype=np.float32)
        slots = np.arange(tokens - n, tokens, dtype=np.int32)
        for call, tables in zip(calls, (table, np.tile(table, (n, 1))), strict=True):
            out = np.full((n, heads * head_dim), np.nan, np.float32)
            call(q, *stored, tables, slots, out)
            rounding = attend_definition(rounded(q), keys, values, tables, slots)
            assert nmse(out, rounding) <= 3e-6, tokens
            assert nmse(out, attend_definition(q, keys, values, tables, slots)) <= 1e-4, tokens


@here
def test_a_row_of_a_tree_is_the_decoded_row_of_its_path_bit_for_bit():
    heads, kv_heads, head_dim = HEADS[0]
    tree = make_tree(100, 20, 0, deep=True)
    stored, table = pools_of(192, kv_heads, head_dim)
    q = np.random.default_rng(1).standard_normal((20, heads, head_dim), dtype=np.float32)
    out, alone = (
        np.empty((20, heads * head_dim), np.float32),
        np.empty((1, heads * head_dim), np.float32),
    )
    compiled(cpu_kernel(AttendTree(heads, kv_heads, head_dim, BF16), 8, bf16_dot=True))(
        q, *stored, table, np.array([100], np.int32), tree.ancestors, out
    )
    decode = compiled(cpu_kernel(AttendDecode(heads, kv_heads, head_dim, BF16), 8, bf16_dot=True))
    for node, path in enumerate(tree.paths):
        slots = np.array([*range(100), *(100 + at for at in path)])
        keys, values = (np.full_like(pool, NAN) for pool in stored)
        for to, at in enumerate(slots):
            source = table[0, at // 64]
            keys[to // 64, :, :, to % 64] = stored[0][source, :, :, at % 64]
            values[to // 64, :, to % 64] = stored[1][source, :, at % 64]
        order = np.arange(len(keys), dtype=np.int32)[None]
        decode(
            q[node : node + 1].copy(),
            keys,
            values,
            order,
            np.array([len(slots) - 1], np.int32),
            alone,
        )
        assert np.array_equal(out[node], alone[0]), node


@pytest.mark.parametrize(
    "cpu, there",
    [("znver4", True), ("sapphirerapids", True), ("x86-64-v4", False), ("x86-64-v3", False)],
)
@pytest.mark.parametrize("kv", [BF16, F16])
def test_the_instruction_is_used_where_the_processor_and_the_cache_have_bfloat16(
    cpu: str, there: bool, kv: KVFormat
):
    target = CpuTarget.of(cpu)
    kernel: Any = build(AttendDecode(4, 2, 64, kv), target.traits).with_attr(
        "global_symbol", "main"
    )
    built = tvm.compile(
        tvm.IRModule({"main": kernel}), target.tvm_target(), tir_pipeline=cpu_pipeline()
    )
    assembly = built.mod.inspect_source("asm")
    assert ("vdpbf16ps" in assembly) == (there and kv is BF16)
    assert ("vcvtneps2bf16" in assembly) == (there and kv is BF16)
