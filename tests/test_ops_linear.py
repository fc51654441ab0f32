"""linear and embed against their definitions, over every storage format and shape family."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu.linear import CACHE_ROWS
from minicpm_mlc.ops.embed import Embed, embed_definition
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.linear import Linear, linear_definition

ROWS = [
    1,
    3,
    4,
    6,
    7,
    61,
    CACHE_ROWS + 5,
]  # both paths, full and partial register tiles, two cache blocks
SHAPES = [
    (16, 32),
    (48, 96),
    (33, 128),
    (64, 320),
]  # one block, odd tiles of columns, padded rows, several tiles


def packed(name: str, n: int, k: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, Scheme]:
    """Stored arrays, the weights they stand for, and their scheme."""
    weights = np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)
    scheme = SCHEMES[name]
    parts = scheme.quantize(weights)
    return list(scheme.pack(parts).values()), scheme.dequantize(parts), scheme


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("n, k", SHAPES)
def test_linear_equals_its_definition(name, n, k):
    stored, weights, scheme = packed(name, n, k, seed=n + k)
    call = compiled(cpu_kernel(Linear(n, k, scheme, scale=0.25)))
    for m in ROWS:
        x = np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)
        out = np.full((m, -(-n // 16) * 16), np.nan, np.float32)
        call(x, *stored, out)
        assert nmse(out[:, :n], linear_definition(x, weights, scale=0.25)) <= 1e-11, m
        assert not out[:, n:].any(), "padding rows are zero weights"


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_a_row_is_the_same_bit_for_bit_whatever_rows_are_beside_it(name):
    n, k = 48, 320
    stored, _, scheme = packed(name, n, k, seed=2)
    call = compiled(cpu_kernel(Linear(n, k, scheme, residual=True, scale=0.25)))
    rng = np.random.default_rng(0)
    x, residual = (
        rng.standard_normal((CACHE_ROWS + 5, width), dtype=np.float32) for width in (k, n)
    )
    together, alone = np.empty((len(x), n), np.float32), np.empty((1, n), np.float32)
    call(x, *stored, residual, together)
    for row in (0, 5, 6, CACHE_ROWS - 1, CACHE_ROWS + 4):
        call(x[row : row + 1].copy(), *stored, residual[row : row + 1].copy(), alone)
        assert np.array_equal(alone[0], together[row]), row


@pytest.mark.parametrize("name", ["f32", "w4"])
def test_linear_adds_the_residual(name):
    n, k = 48, 320
    stored, weights, scheme = packed(name, n, k, seed=1)
    call = compiled(cpu_kernel(Linear(n, k, scheme, residual=True, scale=0.25)))
    for m in ROWS:
        rng = np.random.default_rng(m)
        x, residual = (rng.standard_normal((m, width), dtype=np.float32) for width in (k, n))
        out = np.empty((m, n), np.float32)
        call(x, *stored, residual, out)
        assert nmse(out, linear_definition(x, weights, residual, 0.25)) <= 1e-11, m


def test_linear_reads_scales_of_128_columns():
    from dataclasses import replace

    scheme = replace(SCHEMES["w4"], group=128)
    weights = np.random.default_rng(0).standard_normal((32, 256), dtype=np.float32)
    parts = scheme.quantize(weights)
    call = compiled(cpu_kernel(Linear(32, 256, scheme)))
    for m in (1, 9):
        x = np.random.default_rng(m).standard_normal((m, 256), dtype=np.float32)
        out = np.empty((m, 32), np.float32)
        call(x, *scheme.pack(parts).values(), out)
        assert nmse(out, linear_definition(x, scheme.dequantize(parts))) <= 1e-11


@pytest.mark.parametrize("name", SCHEMES)
def test_embed_equals_its_definition(name):
    vocab, hidden = 67, 96
    stored, table, scheme = packed(name, vocab, hidden, seed=2)
    call = compiled(cpu_kernel(Embed(vocab, hidden, scheme, scale=12.0)))
    for n in (1, 2, 65):
        ids = np.random.default_rng(n).integers(0, vocab, n).astype(np.int32)
        out = np.empty((n, hidden), np.float32)
        call(ids, *stored, out)
        assert nmse(out, embed_definition(ids, table, 12.0)) <= 1e-13


def test_shapes_that_do_not_fit_the_layout_are_refused():
    with pytest.raises(CompileError, match="multiple of 32"):
        cpu_kernel(Linear(16, 40, SCHEMES["f32"]))
    with pytest.raises(CompileError, match="multiple of 16"):
        cpu_kernel(Linear(40, 64, SCHEMES["f32"], residual=True))
