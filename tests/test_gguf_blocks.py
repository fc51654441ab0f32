"""The tensor types of GGUF: blocks stand for the numbers that the gguf package reads, and carried
ones for the same weights.
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

import numpy as np
import pytest

from minicpm_mlc.compile.checkpoint.gguf.blocks import Block, Floats
from minicpm_mlc.compile.checkpoint.gguf.types import BLOCKS
from minicpm_mlc.ops.formats.weights import SCHEMES

gguf = pytest.importorskip("gguf", reason="reads the blocks: pip install gguf")

# where a type's f16 numbers are; the others begin with one
HALVES = {
    "Q4_1": [0, 2],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "TQ1_0": [52],
    "TQ2_0": [64],
}
NUMBERED = sorted((kind, block) for kind, block in BLOCKS.items() if not isinstance(block, Floats))


def blocks(block: Block, count: int = 40) -> np.ndarray:
    """Random blocks whose f16 fields are plain numbers; Q8_0 without -128."""
    rng = np.random.default_rng(block.nbytes)
    raw = rng.integers(0, 256, (count, block.nbytes)).astype(np.uint8)
    for at in HALVES.get(block.name, [0]):
        raw[:, at : at + 2] = rng.normal(0, 0.1, (count, 1)).astype("<f2").view(np.uint8)
    if block.name == "Q8_0":
        raw[:, 2:][raw[:, 2:] == 128] = 129
    return raw


@pytest.mark.parametrize(("kind", "block"), NUMBERED, ids=lambda value: getattr(value, "name", ""))
def test_blocks_stand_for_the_numbers_of_the_gguf_package(kind, block):
    raw = blocks(block)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    assert np.array_equal(block.numbers(raw), expected)


@pytest.mark.parametrize(("kind", "block"), NUMBERED, ids=lambda value: getattr(value, "name", ""))
def test_carried_blocks_are_the_same_weights(kind, block):
    raw = blocks(block)
    for name in block.carriers:
        scheme = SCHEMES[name]
        carried = block.carried(raw, name)
        parts = {key: part.reshape(len(raw), -1) for key, part in carried.items()}
        assert np.array_equal(scheme.dequantize(parts), block.numbers(raw)), name
        like = scheme.quantize(block.numbers(raw))
        assert {key: part.dtype for key, part in parts.items()} == {
            key: part.dtype for key, part in like.items()
        }


def test_the_lowest_byte_of_q8_0_is_not_carried():
    raw = blocks(BLOCKS[8])
    raw[3, 9] = 128
    assert BLOCKS[8].carried(raw, "w8") is None


@pytest.mark.parametrize(("kind", "block"), NUMBERED, ids=lambda value: getattr(value, "name", ""))
def test_blocks_of_llama_cpps_quantiser_are_the_same_numbers(kind, block):
    pytest.importorskip("llama_cpp", reason="quantises: pip install llama-cpp-python")
    numbers = np.random.default_rng(kind).normal(0, 0.1, (16, 512)).astype(np.float32)
    if block.name.startswith("TQ"):
        numbers = np.float32(0.25) * np.sign(numbers * (np.abs(numbers) > 0.05))
    raw = quantised(numbers, kind, block)
    found = block.numbers(raw)
    assert np.array_equal(found, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind)))
    error = np.square(found.reshape(numbers.shape) - numbers).mean() / np.square(numbers).mean()
    assert error < 0.1


def quantised(numbers: np.ndarray, kind: int, block: Block) -> np.ndarray:
    """float32 rows as blocks, uint8 [blocks, nbytes], by llama.cpp's own rules."""
    [library] = Path(importlib.import_module("llama_cpp").__file__).parent.rglob("libggml-base.so")
    quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk
    sizes = [ctypes.c_int64] * 3
    quantise.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *sizes, ctypes.c_void_p]
    quantise.restype = ctypes.c_size_t
    raw = np.zeros((numbers.size // block.values, block.nbytes), np.uint8)
    rows, columns = numbers.shape
    size = quantise(kind, numbers.ctypes.data, raw.ctypes.data, 0, rows, columns, None)
    assert size == raw.nbytes
    return raw
