"""Scheme w4a: its error, its use of the whole range, and what its minimum is for. Kernels that read
it are checked with all others', in the tests over SCHEMES.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from op_cases import compiled, cpu_kernel, nmse
from test_ops_linear_int8 import HERE, linear_int8
from test_ops_linear_swiglu import fused

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.linear_swiglu import linear_swiglu_int8_definition
from minicpm_mlc.ops.quantize_rows import numbers_of, quantized_shape, words_of
from minicpm_mlc.ops.swiglu import Swiglu

W4A, W4 = SCHEMES["w4a"], SCHEMES["w4"]
F16_TINY = 2.0**-24  # smallest step of f16
WEIGHTS = hnp.arrays(np.float32, (3, 64), elements=st.floats(-1000, 1000, width=32))


def error(name: str, weights: np.ndarray) -> float:
    scheme = SCHEMES[name]
    return nmse(scheme.dequantize(scheme.quantize(weights)), weights)


@given(WEIGHTS)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_error_is_at_most_half_a_step_where_not_clipped(weights):
    parts = W4A.quantize(weights)
    values, scale, minimum = parts["weight"], parts["scale"], parts["minimum"]
    assert values.dtype == np.uint8 and values.max() <= 15
    assert scale.dtype == minimum.dtype == np.float16
    step, start = (np.repeat(np.abs(part.astype(np.float64)), 32, 1) for part in (scale, minimum))
    found = np.abs(W4A.dequantize(parts).astype(np.float64) - weights)
    rounding = start * 2**-11 + 16 * F16_TINY
    inside = (values > 0) & (values < 15)
    assert (found <= step * np.where(inside, 0.5001, 1.5) + rounding).all()


@pytest.mark.parametrize("layout", ["f32", "int8"])
def test_stored_bytes_come_back(layout):
    scheme = W4A.beside(layout)
    parts = scheme.quantize(np.random.default_rng(0).standard_normal((37, 96), np.float32))
    packed = scheme.pack(parts)
    sizes = {tensor.name: tensor.nbytes for tensor in scheme.tensors(37, 96)}
    assert sizes == {"weight": 48 * 96 // 2, "scale": 48 * 3 * 2, "minimum": 48 * 3 * 2}
    assert {name: part.nbytes for name, part in packed.items()} == sizes
    for name, part in scheme.unpack(packed, 37).items():
        assert np.array_equal(part, parts[name]), name


def test_weights_already_on_the_grid_come_back_exactly():
    values = np.random.default_rng(1).integers(0, 16, (32, 64)).astype(np.float32)
    values[:, ::32], values[:, 1::32] = 0, 15  # each group spans the range
    weights = values * 2.0**-7 - 3
    assert np.array_equal(W4A.dequantize(W4A.quantize(weights.astype(np.float32))), weights)


def test_it_is_nearer_than_w4_above_all_away_from_zero():
    normal = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    assert error("w4a", normal) < 0.83 * error("w4", normal)
    assert error("w4a", normal + 3) < 0.2 * error("w4", normal + 3)


def test_weights_too_large_are_refused_by_tensor_name():
    weights = np.full((2, 32), 1e5, np.float32)
    with pytest.raises(CheckpointError, match=r"tensor head holds .* too large for scheme w4a"):
        W4A.quantize(weights, "head")


@pytest.mark.parametrize("dot", HERE)
def test_gate_and_up_meet_it_in_one_kernel(dot):
    call, arrays, weights, scheme, factor = fused(96, 1088, "w4a", dot)
    product = compiled(linear_int8(192, 1088, scheme, dot))
    activate = compiled(cpu_kernel(Swiglu(96)))
    for m in (1, 3, 4, 15):
        x = np.random.default_rng(m).standard_normal((m, 1088), dtype=np.float32)
        words, out = words_of(x, factor), np.empty(quantized_shape(m, 96), np.int32)
        gate_up, exact = np.empty((m, 192), np.float32), np.empty((m, 96), np.float32)
        product(words, *arrays, gate_up)
        activate(gate_up, exact)
        call(words, *arrays, out)
        assert np.array_equal(out, words_of(exact, factor)), m
        assert nmse(numbers_of(out), linear_swiglu_int8_definition(x, weights)) < 1e-5, m
