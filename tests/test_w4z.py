"""Scheme w4z: its zero points, exactly, and its error. Kernels that read it are checked with all
others', in the tests over SCHEMES.
"""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import nmse

from minicpm_mlc.compile.checkpoint.tensor import Integers, contiguous_groups
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.lines import LineLoss
from minicpm_mlc.ops.formats.weights.schemes.w4z import SCHEME

ROWS, COLUMNS, GROUPS = 37, 128, 4
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((64, 256), np.float32)


def stored(zero: np.ndarray | int) -> Integers:
    values = RNG.integers(0, 16, (ROWS, COLUMNS)).astype(np.uint8)
    scale = RNG.uniform(0.001, 0.02, (ROWS, GROUPS)).astype(np.float16).astype(np.float32)
    return Integers(values, scale, contiguous_groups(COLUMNS, GROUPS), zero)


def error(name: str, weights: np.ndarray) -> float:
    scheme = SCHEMES[name]
    return nmse(scheme.dequantize(scheme.quantize(weights)), weights)


@pytest.mark.parametrize("zero", [8, RNG.integers(0, 16, (ROWS, GROUPS)).astype(np.int16)])
def test_zero_points_are_held_exactly_at_fewer_bits_than_minimums(zero: np.ndarray | int) -> None:
    integers = stored(zero)
    parts = integers.carried(SCHEME)
    assert parts is not None
    assert np.array_equal(SCHEME.dequantize(parts), integers.weights())
    assert np.array_equal(parts["zero"], np.broadcast_to(zero, (ROWS, GROUPS)))
    rounded = integers.carried(SCHEMES["w4a"])
    assert rounded is not None
    exact = np.array_equal(SCHEMES["w4a"].dequantize(rounded), integers.weights())
    assert exact == isinstance(zero, int)  # 8 is a power of two
    sizes = {n: sum(t.nbytes for t in SCHEMES[n].tensors(32, 512)) for n in ("w4", "w4z", "w4a")}
    assert {n: 8 * size / (32 * 512) for n, size in sizes.items()} == {
        "w4": 4.5,
        "w4z": 4.75,
        "w4a": 5,
    }


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_stored_bytes_come_back(activations: str) -> None:
    scheme = SCHEME.beside(activations)
    parts = scheme.quantize(NORMAL[:37, :96])
    assert all(
        np.array_equal(part, scheme.unpack(scheme.pack(parts), 37)[name])
        for name, part in parts.items()
    )


def test_what_it_does_not_hold_is_not_carried() -> None:
    minimums = Integers(**{**vars(stored(0)), "minimum": np.ones((ROWS, GROUPS), np.float32)})
    assert minimums.carried(SCHEME) is None
    assert stored(np.full((ROWS, GROUPS), -3)).carried(SCHEME) is None
    assert stored(300).carried(SCHEME) is None


def test_weights_on_the_grid_come_back_exactly() -> None:
    values = RNG.integers(0, 16, (32, 64))
    values[:, ::32], values[:, 1::32] = 0, 15  # each group spans the range
    weights = ((values - RNG.integers(0, 16, (32, 1))) * 2.0**-7).astype(np.float32)
    assert np.array_equal(SCHEME.dequantize(SCHEME.quantize(weights)), weights)


def test_its_error_lies_between_those_of_w4_and_w4a() -> None:
    assert error("w4a", NORMAL) < error("w4z", NORMAL) < 0.95 * error("w4", NORMAL)
    assert error("w4z", np.abs(NORMAL)) < 0.5 * error("w4", np.abs(NORMAL))


@pytest.mark.parametrize("value", [2.5, -2.5])
def test_weights_that_are_all_one_stay_so(value: float) -> None:
    assert error("w4z", np.full((2, 64), value, np.float32)) < 1e-6


def test_what_is_kept_of_the_best_lines_is_as_good_as_any_zero_point() -> None:
    assert isinstance(SCHEME, GroupScheme)
    groups = np.ascontiguousarray(NORMAL.reshape(-1, 32).T)
    fitted = SCHEME.fit(groups)
    numbers = SCHEME.nearest(groups, fitted)
    loss = LineLoss.of(groups, numbers)
    kept = SCHEME.kept(loss, fitted)
    assert (loss.value(*SCHEME.lines(kept)) <= loss.value(*SCHEME.lines(fitted)) + 1e-2).all()
