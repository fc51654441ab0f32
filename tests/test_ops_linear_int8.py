"""quantize_rows and linear_int8 against their definitions, with every dot product that this
processor has.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel, nmse

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.cpu.linear_int8 import CACHE_ROWS
from minicpm_mlc.ops.embed import Embed, embed_definition
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.linear import linear_definition
from minicpm_mlc.ops.linear_int8 import LinearInt8, linear_int8_definition
from minicpm_mlc.ops.quantize_rows import (
    QuantizeRows,
    quantized_shape,
    rounded_rows_definition,
    words_of,
)
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8
from minicpm_mlc.targets.cpu import INT8_DOTS, CpuTarget
from minicpm_mlc.targets.lowering import cpu_pipeline

FEATURES = CpuTarget.of("native").features
HERE = [dot for dot in INT8_DOTS if dot in FEATURES]
if "avx512vnni" in FEATURES and "avx512vl" in FEATURES and "avxvnni" not in HERE:
    HERE.append("avxvnni")  # the same instruction under its older encoding
pytestmark = pytest.mark.skipif(not HERE, reason="this processor has no int8 dot products")
INT8 = [name for name, scheme in SCHEMES.items() if scheme.takes_int8]
ROWS = [
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    61,
    CACHE_ROWS + 5,
    300,
]  # every tile size alone and together, several parts
# one block, padded rows, groups over two runs, four whole streams, six blocks: two tasks of four
# and two blocks
SHAPES = [(16, 32), (33, 160), (48, 1088), (64, 96), (96, 320)]


def stored(name: str, n: int, k: int) -> tuple[list[np.ndarray], np.ndarray, Scheme]:
    """Stored arrays, the weights they stand for, and their scheme."""
    scheme = SCHEMES[name].beside("int8")
    parts = scheme.quantize(np.random.default_rng(n + k).standard_normal((n, k), dtype=np.float32))
    return list(scheme.pack(parts).values()), scheme.dequantize(parts), scheme


def linear_int8(n: int, k: int, scheme: Scheme, dot: str, **options: Any) -> tvm.tirx.PrimFunc:
    """The kernel that multiplies by one of the processor's dot products."""
    operator = LinearInt8(n, k, scheme, sum_factor=DOTS[dot].factor(scheme), **options)
    return cpu_kernel(operator, int8_dot=dot)


def quantize_rows(columns: int, factor: int) -> tvm.tirx.PrimFunc:
    return cpu_kernel(QuantizeRows(columns, factor))


@pytest.mark.parametrize("factor", [0, -8, -128, 1])
def test_quantize_rows_equals_its_definition_bit_by_bit(factor):
    call = compiled(quantize_rows(96, factor))
    for m in (1, 9):
        x = np.random.default_rng(m).standard_normal((m, 96), dtype=np.float32)
        x[0, :32] = 0
        x[0, 32:64] *= np.float32(1e37)
        x[0, 64:] *= np.float32(1e-38)
        words = np.empty(quantized_shape(m, 96), np.int32)
        call(x, words)
        assert np.array_equal(words, words_of(x, factor))


@pytest.mark.parametrize("factor", [0, -8])
def test_a_norm_that_quantises_equals_the_two_steps(factor):
    two, one = (
        compiled(cpu_kernel(RmsNorm(96, 1e-6))),
        compiled(cpu_kernel(RmsNormInt8(96, 1e-6, factor))),
    )
    weight = np.random.default_rng(1).standard_normal(96, dtype=np.float32)
    for m in (1, 9, 40):
        x = 5 * np.random.default_rng(m).standard_normal((m, 96), dtype=np.float32)
        exact, words = np.empty_like(x), np.empty(quantized_shape(m, 96), np.int32)
        two(x, weight, exact)
        one(x, weight, words)
        assert np.array_equal(words, words_of(exact, factor)), m


def test_rounding_error_is_at_most_half_a_step():
    x = np.random.default_rng(0).standard_normal((5, 320), dtype=np.float32)
    largest = np.abs(x.reshape(5, -1, 32)).max(-1).repeat(32, axis=1)
    assert (np.abs(rounded_rows_definition(x) - x) <= largest / 127 * 0.5001).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_stays_visible(bad):
    arrays, _, scheme = stored("w4", 64, 96)
    words, out = np.empty(quantized_shape(1, 96), np.int32), np.empty((1, 64), np.float32)
    x = np.ones((1, 96), np.float32)
    x[0, 40] = bad
    compiled(quantize_rows(96, DOTS[HERE[0]].factor(scheme)))(x, words)
    compiled(linear_int8(64, 96, scheme, HERE[0]))(words, *arrays, out)
    assert not np.isfinite(out).any()


def products() -> list[Any]:
    """Every dot product with every scheme and shape. Each two of these meet in every run, all three
    in a campaign: each is a kernel of its own.
    """
    drawn = product(*map(enumerate, (HERE, INT8, SHAPES)))
    return [
        pytest.param(dot, name, *shape, marks=[pytest.mark.campaign] * ((s + i) % len(HERE) != d))
        for (d, dot), (s, name), (i, shape) in drawn
    ]


@pytest.mark.parametrize("dot, name, n, k", products())
def test_linear_int8_equals_its_definition(dot, name, n, k):
    arrays, weights, scheme = stored(name, n, k)
    call = compiled(linear_int8(n, k, scheme, dot, scale=0.25))
    for m in ROWS:
        x = np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)
        x[-1, :32] = 0
        out = np.full((m, -(-n // 16) * 16), np.nan, np.float32)
        call(words_of(x, DOTS[dot].factor(scheme)), *arrays, out)
        assert nmse(out[:, :n], linear_int8_definition(x, weights, scale=0.25)) <= 1e-11, m
        assert nmse(out[:, :n], linear_definition(x, weights, scale=0.25)) <= 5e-4, m
        assert not out[:, n:].any(), "padding rows are zero weights"


@pytest.mark.parametrize("dot", HERE)
def test_the_largest_products_do_not_saturate(dot):
    """Every weight and activation at its extreme, where 16-bit sums of pairs come closest to their
    limit.
    """
    for scheme in (SCHEMES[name].beside("int8") for name in INT8):
        largest = scheme.values.largest
        call = compiled(linear_int8(64, 64, scheme, dot))
        for value in (0 if scheme.values.unsigned else -largest, largest):
            parts = {"weight": np.full((64, 64), value, scheme.values.dtype)}
            parts |= {t.name: np.ones((64, t.width(64)), t.dtype) for t in scheme.group_tensors}
            x = np.where(np.arange(64) < 32, 127, -127).astype(np.float32)[None] * np.array(
                [[1], [-1]], np.float32
            )
            x[:, 40] *= -1
            out = np.empty((2, 64), np.float32)
            words = words_of(x, DOTS[dot].factor(scheme))
            call(words, *scheme.pack(parts).values(), out)
            assert np.array_equal(out, linear_definition(x, scheme.dequantize(parts)))


@pytest.mark.parametrize("name", INT8)
def test_linear_int8_adds_the_residual(name):
    n, k = 96, 320
    arrays, weights, scheme = stored(name, n, k)
    call = compiled(linear_int8(n, k, scheme, HERE[0], residual=True, scale=0.25))
    for m in ROWS:
        rng = np.random.default_rng(m)
        x, residual = (rng.standard_normal((m, width), dtype=np.float32) for width in (k, n))
        out = np.empty((m, n), np.float32)
        call(words_of(x, DOTS[HERE[0]].factor(scheme)), *arrays, residual, out)
        assert nmse(out, linear_int8_definition(x, weights, residual, 0.25)) <= 1e-11, m


def test_a_row_is_the_same_whatever_rows_are_beside_it():
    arrays, _, scheme = stored("w4", 96, 1088)
    call = compiled(linear_int8(96, 1088, scheme, HERE[0]))
    words = words_of(
        np.random.default_rng(0).standard_normal((15, 1088), dtype=np.float32),
        DOTS[HERE[0]].factor(scheme),
    )
    together = np.empty((15, 96), np.float32)
    call(words, *arrays, together)
    for row in range(15):
        alone = np.empty((1, 96), np.float32)
        call(words[row : row + 1], *arrays, alone)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("name", INT8)
def test_embed_reads_the_layout_of_int8_activations(name):
    arrays, table, scheme = stored(name, 67, 96)
    call = compiled(cpu_kernel(Embed(67, 96, scheme, scale=12.0)))
    ids = np.arange(67, dtype=np.int32)[::-1].copy()
    out = np.empty((67, 96), np.float32)
    call(ids, *arrays, out)
    assert nmse(out, embed_definition(ids, table, 12.0)) <= 1e-13


@pytest.mark.parametrize(
    "dot, triple, cpu, instruction",
    [
        ("avx512vnni", "x86_64-unknown-linux-gnu", "cascadelake", "vpdpbusd"),
        ("avxvnni", "x86_64-unknown-linux-gnu", "alderlake", "vpdpbusd"),
        ("avx2", "x86_64-unknown-linux-gnu", "x86-64-v3", "vpmaddubsw"),
        ("dotprod", "aarch64-unknown-linux-gnu", "cortex-a76", "sdot"),
        ("i8mm", "aarch64-unknown-linux-gnu", "neoverse-n2", "smmla"),
    ],
)
@pytest.mark.parametrize("name", INT8)
def test_every_processor_family_gets_its_instruction(dot, triple, cpu, instruction, name):
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    scheme = SCHEMES[name].beside("int8")
    functions = {
        "linear": linear_int8(64, 64, scheme, dot),
        "quantize": quantize_rows(64, DOTS[dot].factor(scheme)),
    }
    module = tvm.IRModule(
        {key: function.with_attr("global_symbol", key) for key, function in functions.items()}
    )
    built = tvm.compile(module, target, tir_pipeline=cpu_pipeline())
    assert instruction in built.mod.inspect_source("asm")


def test_shapes_that_do_not_fit_the_layout_are_refused():
    scheme = SCHEMES["w4"].beside("int8")
    with pytest.raises(CompileError, match="multiple of 32"):
        quantize_rows(40, -8)
    with pytest.raises(CompileError, match="multiple of 16"):
        linear_int8(40, 64, scheme, "avx2", residual=True)


def test_words_for_other_products_are_refused():
    scheme = SCHEMES["w4"].beside("int8")
    with pytest.raises(CompileError, match="need another factor of sums than 1"):
        cpu_kernel(LinearInt8(48, 64, scheme, sum_factor=1), int8_dot="avx2")
    with pytest.raises(CompileError, match="products of None"):
        cpu_kernel(LinearInt8(48, 64, scheme, sum_factor=-8))
