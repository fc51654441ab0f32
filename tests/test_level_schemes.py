"""Schemes with scales in two levels: what their levels and units stand for, blocks that end early,
their error beside one-level schemes'. Kernels that read them are checked with all others', in the
tests over SCHEMES.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from op_cases import nmse

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.high_bits import HighBits
from minicpm_mlc.ops.formats.weights.level_pairs import level_bytes
from minicpm_mlc.ops.formats.weights.levels import LevelScheme

LEVELED = ["w4k", "w5k", "w6"]
BITS = {"w4k": 4.5, "w5k": 5.5, "w6": 6.5625}
WEIGHTS = hnp.arrays(np.float32, (3, 320), elements=st.floats(-1000, 1000, width=32))


def leveled(name: str) -> LevelScheme:
    scheme = SCHEMES[name]
    assert isinstance(scheme, LevelScheme)
    return scheme


def normal(rows: int = 64, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def error(name: str, weights: np.ndarray) -> float:
    scheme = SCHEMES[name]
    return nmse(scheme.dequantize(scheme.quantize(weights)), weights)


def drawn(name: str, rows: int, columns: int) -> Parts:
    """Parts of any integers that the scheme can store."""
    rng, scheme = np.random.default_rng(1), leveled(name)
    groups = (rows, columns // scheme.group)
    lowest, highest = (-128, 128) if name == "w6" else (0, 64)
    scale, minimum = (
        rng.integers(lowest, highest, groups).astype(scheme.level_type) for _ in range(2)
    )
    values = rng.integers(0, scheme.values.largest + 1, (rows, columns)).astype(np.uint8)
    units = {t: rng.standard_normal((rows, -(-columns // 256))) for t in scheme.terms_fitted}
    levels = scheme.levels_stored(scale, minimum)
    halves = {term: unit.astype(np.float16) for term, unit in units.items()}
    return {"weight": values, **halves, "levels": levels}


@pytest.mark.parametrize("name", LEVELED)
def test_bits_of_a_weight_whatever_the_layout(name):
    for activations in ("f32", "int8"):
        tensors = SCHEMES[name].beside(activations).tensors(32, 512)
        assert sum(tensor.nbytes for tensor in tensors) * 8 == 32 * 512 * BITS[name]


def test_a_pair_scheme_is_units_times_levels():
    parts = drawn("w4k", 5, 576)  # its last block has 64 columns
    scale, minimum = leveled("w4k").levels_of(parts)
    assert minimum is not None
    assert np.array_equal(level_bytes(scale, minimum), parts["levels"])
    weights = SCHEMES["w4k"].dequantize(parts, np.float64)
    for row, column in [(0, 0), (1, 255), (2, 256), (3, 511), (4, 575)]:
        block, group = column // 256, column // 32
        line_scale = float(parts["scale"][row, block]) * scale[row, group]
        line_minimum = float(parts["minimum"][row, block]) * minimum[row, group]
        assert weights[row, column] == line_scale * parts["weight"][row, column] + line_minimum


def test_w6_is_a_unit_times_a_level_for_each_16_columns():
    parts = drawn("w6", 3, 288)
    weights = SCHEMES["w6"].dequantize(parts, np.float64)
    for row, column in [(0, 0), (1, 255), (2, 256), (2, 287)]:
        unit, level = parts["scale"][row, column // 256], parts["levels"][row, column // 16]
        number = int(parts["weight"][row, column]) - 32
        assert weights[row, column] == float(unit) * int(level) * number


@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("name", LEVELED)
@pytest.mark.parametrize("columns", [32, 96, 576])
def test_everything_that_can_be_stored_comes_back(name, columns, activations):
    scheme, parts = SCHEMES[name].beside(activations), drawn(name, 37, columns)
    stored = scheme.pack(parts)
    assert [array.shape for array in stored.values()] == [
        tensor.shape for tensor in scheme.tensors(37, columns)
    ]
    back = scheme.unpack(stored, 37)
    assert all(np.array_equal(back[key], parts[key]) for key in parts)


@pytest.mark.parametrize("bits", [5, 6])
def test_high_bits_lie_where_kernels_look(bits):
    values = HighBits(bits=bits, zero=0)
    high, original = bits - 4, np.arange(32 * 64, dtype=np.uint8).reshape(32, 64) % (1 << bits)
    rows16, quads = (values.pack(original, layout) for layout in ("rows16", "rows16x4"))
    for row in range(32):
        for column in range(64):
            group, c, value = column // 32, column % 32, original[row, column]
            block, lane = row // 16, row % 16
            stored = rows16[block].reshape(2, -1, 16)[group, :, lane]
            assert stored[c % 16] >> c // 16 * 4 & 15 == value & 15
            places = 4 * high
            assert stored[16 + c % places] >> c // places * high & (1 << high) - 1 == value >> 4
            stored = quads[block].reshape(2, -1, 64)[group, :, 4 * lane + c % 4]
            quad = c // 4
            assert stored[quad // 2] >> quad % 2 * 4 & 15 == value & 15
            assert stored[4 + quad % high] >> quad // high * high & (1 << high) - 1 == value >> 4


@given(WEIGHTS)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_a_pair_scheme_is_off_by_half_a_step_at_most_where_not_clipped(weights):
    scheme = leveled("w4k")
    parts = scheme.quantize(weights)
    scale, _ = scheme.lines(parts)
    off = np.abs(scheme.dequantize(parts, np.float64) - weights)
    inside = (parts["weight"] > 0) & (parts["weight"] < 15)
    assert (off <= 0.5001 * np.repeat(scale, 32, 1) + 1e-3)[inside].all()


@pytest.mark.parametrize("name", ["w4k", "w5k"])
def test_weights_already_on_the_grid_come_back_exactly(name):
    """Of eight groups of steps that levels can say, each spans the values' range."""
    largest, rng = leveled(name).values.largest, np.random.default_rng(2)
    values = rng.integers(0, largest + 1, (16, 8, 32)).astype(np.float32)
    values[:, :, 0], values[:, :, 1] = 0, largest
    levels = np.array([63, 40, 21, 50, 33, 63, 47, 58], np.float32)[:, None]
    minimums = np.array([30, 63, 12, 45, 0, 21, 63, 50], np.float32)[:, None]
    weights = (2.0**-10 * levels * values - 2.0**-7 * minimums).reshape(16, 256)
    scheme = SCHEMES[name]
    assert np.array_equal(scheme.dequantize(scheme.quantize(weights)), weights)


def test_at_equal_bits_w4k_is_a_quarter_nearer_than_w4():
    assert error("w4k", normal()) < 0.77 * error("w4", normal())
    assert error("w4k", normal()) < 1.03 * error("w4a", normal())
    assert error("w4k", normal() + 3) < 0.4 * error("w4", normal() + 3)
    assert error("w5k", normal()) < 0.27 * error("w4k", normal())
    assert error("w6", normal()) < 0.25 * error("w5k", normal())


@pytest.mark.parametrize("name", LEVELED)
@pytest.mark.parametrize("value", [2.5, -2.5])
def test_weights_that_are_all_one_stay_so(name, value):
    assert error(name, np.full((2, 256), value, np.float32)) < 1e-6


@pytest.mark.parametrize("name", LEVELED)
def test_importance_moves_the_error_to_where_it_counts_less(name):
    scheme, importance = leveled(name), np.ones(512, np.float32)
    importance[::4] = 100
    plain, weighted = (
        (scheme.dequantize(scheme.quantize(normal(), "w", chosen)) - normal()) ** 2
        for chosen in (None, importance)
    )
    assert (weighted * importance).sum() < 0.9 * (plain * importance).sum()


def test_columns_that_are_no_whole_group_are_refused():
    with pytest.raises(CompileError, match="48 columns, not a multiple of scheme w6's group of 32"):
        SCHEMES["w6"].quantize(normal(2, 48))
