"""The interleaved layout: exact round trips, and every element where the operators look for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.packing import deinterleave, interleave
from minicpm_mlc.ops.formats.weights.values import Values

DTYPES = {32: np.float32, 16: np.uint16, 8: np.int8, 4: np.uint8}
STORED: dict[int, Values] = {
    bits: SCHEMES[name].values for bits, name in {32: "f32", 16: "bf16", 8: "w8", 4: "w4"}.items()
}


def pack(original: np.ndarray, bits: int, layout: str = "rows16") -> np.ndarray:
    return STORED[bits].pack(original, layout)


def unpack(packed: np.ndarray, rows: int, bits: int, layout: str = "rows16") -> np.ndarray:
    return STORED[bits].unpack(packed, rows, layout)


def values(rows: int, columns: int, bits: int, seed: int = 0) -> np.ndarray:
    low, high = (0, 16) if bits == 4 else (-128, 128) if bits == 8 else (0, 60000)
    return np.random.default_rng(seed).integers(low, high, (rows, columns)).astype(DTYPES[bits])


@given(st.integers(1, 50), st.integers(1, 5), st.sampled_from(sorted(DTYPES)), st.integers(0, 9))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_unpack_inverts_pack(rows, groups, bits, seed):
    original = values(rows, 32 * groups, bits, seed)
    packed = pack(original, bits)
    assert packed.shape == STORED[bits].shape(rows, 32 * groups, "rows16")
    assert packed.dtype == original.dtype
    assert np.array_equal(unpack(packed, rows, bits), original)


@given(st.integers(1, 50), st.integers(1, 5), st.sampled_from([4, 8]), st.integers(0, 9))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_unpack_inverts_pack_of_quads(rows, groups, bits, seed):
    original = values(rows, 32 * groups, bits, seed)
    packed = pack(original, bits, "rows16x4")
    assert packed.shape == STORED[bits].shape(rows, 32 * groups, "rows16x4")
    assert packed.dtype == original.dtype
    assert packed.flags.c_contiguous
    assert np.array_equal(unpack(packed, rows, bits, "rows16x4"), original)


@given(st.integers(1, 50), st.integers(1, 9))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_unpack_scales_inverts_pack_scales(rows, groups):
    scale = np.random.default_rng(rows).standard_normal((rows, groups)).astype(np.float16)
    packed = interleave(scale)
    assert packed.shape == SCHEMES["w4"].tensors(rows, 32 * groups)[1].shape
    assert np.array_equal(deinterleave(packed, rows), scale)


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_element_is_at_block_column_lane(bits):
    original = values(40, 64, bits)
    packed = pack(original, bits)
    assert all(packed[r // 16, c, r % 16] == original[r, c] for r in range(40) for c in range(64))


def test_nibbles_pair_column_j_with_column_16_plus_j_of_their_group():
    original = values(32, 96, 4)
    packed = pack(original, 4)
    for row in range(32):
        for group in range(3):
            for j in range(16):
                low, high = original[row, 32 * group + j], original[row, 32 * group + 16 + j]
                assert packed[row // 16, 16 * group + j, row % 16] == low | high << 4


def test_quads_hold_four_columns_of_each_row_and_their_nibbles_four_more():
    eight, four = values(40, 64, 8), values(40, 64, 4)
    packed8, packed4 = pack(eight, 8, "rows16x4"), pack(four, 4, "rows16x4")
    for row in range(40):
        for c in range(64):
            lane = 4 * (row % 16) + c % 4
            assert packed8[row // 16, c // 4, lane] == eight[row, c]
            assert packed4[row // 16, c // 8, lane] >> (c // 4 % 2 * 4) & 15 == four[row, c]


@pytest.mark.parametrize(("bits", "zero"), [(8, 0), (4, 0x88)])
def test_padding_rows_of_quads_are_zero_weights(bits, zero):
    packed = pack(values(17, 32, bits), bits, "rows16x4").reshape(2, -1, 16, 4)
    assert (packed[1, :, 1:] == zero).all()


@pytest.mark.parametrize(("bits", "zero"), [(32, 0), (16, 0), (8, 0), (4, 0x88)])
def test_padding_rows_are_zero_weights(bits, zero):
    packed = pack(values(17, 32, bits), bits)
    assert packed.shape[0] == 2
    assert (packed[1, :, 1:] == zero).all()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_a_scheme_stores_what_it_says_and_reads_it_back(name, activations):
    scheme = SCHEMES[name].beside(activations)
    parts = scheme.quantize(np.random.default_rng(0).standard_normal((50, 96), np.float32))
    stored, tensors = scheme.pack(parts), scheme.tensors(50, 96)
    assert [(t.name, t.shape, t.dtype, t.nbytes) for t in tensors] == [
        (key, array.shape, array.dtype.name, array.nbytes) for key, array in stored.items()
    ]
    back = scheme.unpack(stored, 50)
    assert list(back) == list(parts)
    assert all(np.array_equal(back[key], parts[key]) for key in parts)
    for tensor in tensors:
        numbers = scheme.random(tensor.name, tensor.shape)
        assert (numbers.shape, numbers.dtype) == (tensor.shape, tensor.dtype)
