"""GPU kernels of single rows, linears and RoPE on an OpenCL device, against the operators' definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu_cases import compiled, needs_opencl
from op_cases import nmse
from test_ops_linear import packed
from test_ops_rope import append_case, inv_freq
from tvm.script import tirx as T

from minicpm_mlc.compile.quantize import SCHEMES
from minicpm_mlc.errors import CompileError
from minicpm_mlc.ops.embed import embed_definition
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import kernel, store, workgroups
from minicpm_mlc.ops.gpu.linear import TILE_ROWS, linear
from minicpm_mlc.ops.gpu.rope import move_rows, rope_angles, rope_append
from minicpm_mlc.ops.gpu.rows import COLUMNS, embed, gather_rows, rms_norm, swiglu
from minicpm_mlc.ops.linear import linear_definition
from minicpm_mlc.ops.move_rows import move_rows_definition
from minicpm_mlc.ops.norm import rms_norm_definition
from minicpm_mlc.ops.rope import rope_angles_definition, rope_append_definition
from minicpm_mlc.ops.swiglu import swiglu_definition

pytestmark = needs_opencl
ROWS = [1, 2, 7, 65]


@pytest.mark.parametrize("hidden,scale", [(16, 1.0), (96, 1.0), (1536, 0.25)])
def test_rms_norm(hidden: int, scale: float):
    call = compiled(rms_norm(hidden, 1e-6, scale))
    for n in ROWS:
        rng = np.random.default_rng(n)
        x, weight = 5 * rng.standard_normal((n, hidden), np.float32), rng.standard_normal(hidden, np.float32)
        out = np.full_like(x, np.nan)
        call(x, weight, out)
        assert nmse(out, rms_norm_definition(x, weight, 1e-6, scale)) < 1e-12


@pytest.mark.parametrize("width", [16, 96, COLUMNS + 16])
def test_swiglu(width: int):
    call = compiled(swiglu(width))
    for n in ROWS:
        gate_up = 4 * np.random.default_rng(n).standard_normal((n, 2 * width), np.float32)
        gate_up[0, :2] = -200, 200
        out = np.full((n, width), np.nan, np.float32)
        call(gate_up, out)
        assert nmse(out, swiglu_definition(gate_up)) < 1e-12


def test_gather_rows():
    x = np.random.default_rng(0).standard_normal((9, 160), np.float32)
    rows = np.array([8, 0, 3, 3], np.int32)
    out = np.full((4, 160), np.nan, np.float32)
    compiled(gather_rows(160))(x, rows, out)
    np.testing.assert_array_equal(out, x[rows])


@pytest.mark.parametrize("name", SCHEMES)
def test_embed(name: str):
    stored, table, fmt = packed(name, 67, 96, seed=2)
    call = compiled(embed(67, 96, fmt, scale=12.0))
    for n in ROWS:
        ids = np.random.default_rng(n).integers(0, 67, n).astype(np.int32)
        out = np.full((n, 96), np.nan, np.float32)
        call(ids, *stored, out)
        assert nmse(out, embed_definition(ids, table, 12.0)) <= 1e-13


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("n, k", [(16, 32), (48, 96), (33, 128), (64, 1056)])
def test_linear(name: str, n: int, k: int, residual: bool):
    if residual and n % 16:
        with pytest.raises(CompileError, match="multiple of 16"):
            linear(n, k, packed(name, n, k, 0)[2], residual=True)
        return
    stored, weights, fmt = packed(name, n, k, seed=n + k)
    call = compiled(linear(n, k, fmt, residual=residual, scale=0.25))
    for m in [1, 3, 4, TILE_ROWS, 2 * TILE_ROWS + 1, 61]:
        rng = np.random.default_rng(m)
        x, added = rng.standard_normal((m, k), np.float32), rng.standard_normal((m, n), np.float32)
        out = np.full((m, -(-n // 16) * 16), np.nan, np.float32)
        call(x, *stored, *([added] if residual else []), out)
        assert nmse(out[:, :n], linear_definition(x, weights, added if residual else None, 0.25)) <= 1e-11, m
        assert not out[:, n:].any(), "padding rows are zero weights"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_rope_angles_up_to_128k(head_dim: int):
    positions = np.concatenate([np.arange(130), np.random.default_rng(0).integers(0, 131072, 200)]).astype(np.int32)
    out = np.zeros((330, head_dim), np.float32)
    compiled(rope_angles(head_dim, 1.25))(positions, inv_freq(head_dim), out)
    assert np.abs(out - rope_angles_definition(positions, inv_freq(head_dim), 1.25)).max() < 1e-6


@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", [(16, 2, 64, "float16"), (4, 4, 128, "float32"), (3, 1, 96, "float16")])
def test_rope_append(family: tuple, batched: bool):
    call = compiled(rope_append(*family, batched))
    for n, first in [(1, 0), (2, 62), (65, 3)]:
        qkv, cos_sin, slots, tables, k_pages, v_pages = append_case(family, n, first, batched)
        expected_k, expected_v = k_pages.astype(np.float64), v_pages.astype(np.float64)
        expected_q = rope_append_definition(qkv, cos_sin, slots, tables, expected_k, expected_v, family[0])
        q = np.zeros((n, family[0], family[2]), np.float32)
        call(qkv, cos_sin, slots, tables, k_pages, v_pages, q)
        assert nmse(q, expected_q) < 1e-12
        tolerance = {"rtol": 1e-6 if family[3] == "float32" else 1e-3, "atol": 1e-6}
        np.testing.assert_allclose(k_pages, expected_k, **tolerance)
        np.testing.assert_allclose(v_pages, expected_v, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_move_rows_copies_bit_for_bit(dtype: str):
    k_pages, v_pages = np.random.default_rng(0).standard_normal((2, 3, 2, 64, 64)).astype(dtype)
    table = np.array([[2, 0, 1]], np.int32)
    sources, slots = np.array([60, 62, 63, 70, 130], np.int32), np.arange(60, 65).astype(np.int32)
    expected = k_pages.copy(), v_pages.copy()
    move_rows_definition(sources, slots, table, *expected)
    compiled(move_rows(2, 64, dtype))(sources, slots, table, k_pages, v_pages)
    np.testing.assert_array_equal(k_pages, expected[0])
    np.testing.assert_array_equal(v_pages, expected[1])


def test_columns_that_do_not_fill_groups_are_refused():
    with pytest.raises(CompileError, match="multiple of 32"):
        linear(16, 40, replace(packed("f32", 16, 32, 0)[2]))


def test_every_float16_is_read_exactly_and_written_to_the_nearest():
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    one = {"halves": ("float16", 65536), "floats": ("float32", 65536), "back": ("float16", 65536)}

    def emit(_, halves, floats, back):
        with workgroups(512) as (group, thread):
            at = T.Bind(group * 128 + thread)
            T.buffer_store(floats, halves[at], [at])
            store(back, floats[at], [at])

    floats, back = np.zeros(65536, np.float32), np.zeros(65536, np.float16)
    compiled(kernel("copy", one, emit))(halves, floats, back)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    np.testing.assert_array_equal(back, halves)


def test_floats_are_rounded_to_the_nearest_float16_ties_to_even():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (halves[:-1] + halves[1:]) / 2
    floats = np.concatenate([halfway, np.nextafter(halfway, 0), -np.nextafter(halfway, np.float32(np.inf))])
    floats = np.concatenate([floats, np.float32([65519, 65520, -65536, 3e38, -np.inf, np.nan, 1e-8, -1e-30])])
    floats = np.pad(floats, (0, -len(floats) % 128))
    one = {"floats": ("float32", len(floats)), "halves": ("float16", len(floats))}

    def emit(_, floats, halves):
        with workgroups(floats.shape[0] // 128) as (group, thread):
            at = T.Bind(group * 128 + thread)
            store(halves, floats[at], [at])

    out = np.zeros(len(floats), np.float16)
    compiled(kernel("round", one, emit))(floats, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, floats.astype(np.float16))


def test_constants_keep_every_bit():
    values = [1 / 3, 2.0**-24, -126 * np.log(2), 1e-6, 1.4 / np.sqrt(32), 1e30]

    def emit(_, out):
        with workgroups(1) as (_, thread):
            with T.If(thread.equal(0)), T.Then():
                for i, value in enumerate(values):
                    T.buffer_store(out, constant(value), [i])

    out = np.zeros(len(values), np.float32)
    compiled(kernel("constants", {"out": ("float32", len(values))}, emit))(out)
    np.testing.assert_array_equal(out, np.float32(values))
