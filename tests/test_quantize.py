"""Schemes: error bounds, the use of the whole range, and the refusal of weights that can't be
held.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme

W4, W8 = SCHEMES["w4"], SCHEMES["w8"]
F16_TINY = 2.0**-24  # smallest step of f16: scales below half of it are zero
WEIGHTS = hnp.arrays(np.float32, (3, 64), elements=st.floats(-1000, 1000, width=32))


def normal(rows: int = 64, columns: int = 256) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def restored(weights: np.ndarray, scheme: Scheme) -> np.ndarray:
    return scheme.dequantize(scheme.quantize(weights))


def per_weight(scale: np.ndarray, scheme: Scheme) -> np.ndarray:
    return np.repeat(np.abs(scale.astype(np.float64)), scheme.group, axis=1)


@given(WEIGHTS)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_w8_error_is_at_most_half_a_step(weights):
    parts = W8.quantize(weights)
    values, scale = parts["weight"], parts["scale"]
    assert scale.dtype == np.float16 and values.dtype == np.int8 and values.min() >= -127
    error = np.abs(W8.dequantize(parts).astype(np.float64) - weights)
    rounded_scale = 127 * (
        per_weight(scale, W8) * 2**-11 + F16_TINY / 2
    )  # the largest weight, when the scale was rounded down
    assert (error <= np.maximum(per_weight(scale, W8) * 0.5001, rounded_scale)).all()


@given(WEIGHTS)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_w4_error_is_at_most_half_a_step_where_not_clipped(weights):
    parts = W4.quantize(weights)
    values, scale = parts["weight"], parts["scale"]
    assert scale.dtype == np.float16 and values.dtype == np.uint8 and values.max() <= 15
    step = per_weight(scale, W4)
    error = np.abs(W4.dequantize(parts).astype(np.float64) - weights)
    inside = (values > 0) & (values < 15)
    assert (error[inside] <= step[inside] * 0.5001 + 8 * F16_TINY).all()
    assert (
        error <= step * 3 + 8 * F16_TINY
    ).all()  # the far end may be clipped from about +9.5 to +7


@given(WEIGHTS)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_w4_is_never_worse_than_putting_the_extreme_on_minus_eight(weights):
    groups = weights.reshape(3, 2, 32)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    scale = (extreme / -8).astype(np.float16).astype(np.float32)
    steps = np.clip(
        np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)), -8, 7
    )
    plain = ((steps * scale - groups).astype(np.float64) ** 2).sum(-1)
    error = restored(weights, W4).reshape(groups.shape) - groups
    found = (error.astype(np.float64) ** 2).sum(-1)
    rounding = 1e-6 * (groups.astype(np.float64) ** 2).sum(-1)  # errors are compared in float32
    assert (found <= plain + rounding + 1e-9).all()


@pytest.mark.parametrize("scheme", [W4, W8], ids=lambda scheme: scheme.name)
def test_weights_already_on_the_grid_come_back_exactly(scheme):
    low, high = (-8, 8) if scheme is W4 else (-127, 128)
    weights = np.random.default_rng(1).integers(low, high, (32, 64)).astype(np.float32)
    weights[:, ::32] = low  # each group spans the range
    weights *= 2.0**-7
    assert np.array_equal(restored(weights, scheme), weights)


@pytest.mark.parametrize(
    ("name", "most"), [("f16", 1e-7), ("bf16", 6e-6), ("w8", 5e-5), ("w4", 6.7e-3)]
)
def test_normalised_error_on_normal_weights(name, most):
    weights = normal()
    error = restored(weights, SCHEMES[name]) - weights
    assert (error**2).sum() / (weights**2).sum() < most


def test_f32_is_kept_as_it_is():
    parts = SCHEMES["f32"].quantize(normal())
    assert list(parts) == ["weight"] and np.array_equal(parts["weight"], normal())


def test_bf16_rounds_to_nearest_and_ties_to_even():
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000]], np.uint32)
    values = SCHEMES["bf16"].quantize(bits.view(np.float32))["weight"]
    assert values.tolist() == [[0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82]]


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_zeros_and_tiny_weights_stay_finite(name):
    weights = np.zeros((2, 64), np.float32)
    weights[1] = 1e-9
    found = restored(weights, SCHEMES[name])
    assert (found[0] == 0).all()
    assert (np.abs(found[1]) <= 1e-8).all()


def test_a_wider_group_is_the_same_machinery():
    scheme = replace(W4, group=128)
    parts = scheme.quantize(normal())
    assert parts["scale"].shape == (64, 2)
    error = scheme.dequantize(parts) - normal()
    assert 7.1e-3 < (error**2).mean() < 2e-2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_weights_that_are_not_finite_are_refused_by_tensor_name(name, bad):
    weights = normal()
    weights[3, 5] = bad
    with pytest.raises(CheckpointError, match=r"tensor layers\.3\.up holds NaN or infinite"):
        SCHEMES[name].quantize(weights, "layers.3.up")


@pytest.mark.parametrize(
    ("name", "large"), [("f16", 7e4), ("bf16", 3.4e38), ("w8", 1e7), ("w4", 1e6)]
)
def test_weights_too_large_for_the_scheme_are_refused_by_tensor_name(name, large):
    weights = normal()
    weights[0, 0] = large
    with pytest.raises(
        CheckpointError, match=rf"tensor head holds a weight of .* too large for scheme {name}"
    ):
        SCHEMES[name].quantize(weights, "head")


def test_columns_that_do_not_split_into_groups_are_refused():
    with pytest.raises(
        CompileError, match="tensor head has 40 columns, not a multiple of scheme w4's group of 32"
    ):
        W4.quantize(normal(columns=40), "head")
