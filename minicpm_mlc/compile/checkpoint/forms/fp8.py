"""8-bit floats (E4M3) with a scale for a tensor, a row or a block of rows and columns. No scheme
stores them, so they are read as numbers.

    P.weight           F8_E4M3 [N, K]
    P.weight_scale_inv [N / 128, K / 128], or P.weight_scale [], [1] or [N, 1]
    w = weight * scale: the name means the inverse of the quantising factor
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.packed import FLOATS, Linear, LinearTensor, Numbers
from minicpm_mlc.compile.checkpoint.tensor import Tensor

METHODS = ("fp8",)
SCALES = ("weight_scale_inv", "weight_scale")
BESIDE = (".input_scale", ".k_scale", ".v_scale")  # of activations, and of keys and values
BLOCK = 128  # rows, and columns, where the settings say nothing else


def reader(stated: Stated, found: Found) -> Reader:
    """The reader of a checkpoint with these settings."""
    stated.require("fmt", "e4m3")
    block = stated.values.get("weight_block_size") or [BLOCK, BLOCK]
    if not isinstance(block, list) or len(block) != 2 or not all(_is_size(size) for size in block):
        raise stated.refuse("weight_block_size", "two whole numbers")
    return Reader(partial(fp8_tensor, found, (block[0], block[1])), beside=BESIDE)


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def fp8_tensor(found: Found, block: tuple[int, int], name: str, shapes: Shapes) -> Tensor | None:
    """A module's weight, where it is stored in 8 bits."""
    linear = Linear(name.removesuffix(".weight"), found)
    if not linear.has("weight") or found[name].entries[name].dtype != "F8_E4M3":
        return None
    return Fp8Tensor(linear, shapes[name], block)


class Fp8Tensor(LinearTensor):
    """The weight of a module."""

    def __init__(self, linear: Linear, shape: tuple[int, ...], block: tuple[int, int]) -> None:
        n, k = shape
        self._weight = linear.array("weight", ("F8_E4M3",), shape)
        end = next((end for end in SCALES if linear.has(end)), SCALES[0])
        blocks = (-(-n // block[0]), -(-k // block[1]))
        scale = linear.array(end, FLOATS, blocks, (n, 1), (1,), ())
        self._block = block if scale.shape == blocks else (1 if scale.shape == (n, 1) else n, k)
        self._scale = Numbers(scale.reshape(-(-n // self._block[0]), -1))
        super().__init__(linear, shape, "FP8")

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        down, across = self._block
        first = start // down
        scale = self._scale[first : -(-stop // down)]
        rows = scale[np.arange(start, max(start, stop)) // down - first]
        return values_e4m3()[self._weight[start:stop]] * rows.repeat(across, 1)[:, : self.shape[1]]


def values_e4m3() -> np.ndarray:
    """float32 [256]: sign, 4 bits of exponent with bias 7, 3 of fraction; no infinities, and NaN
    where all but the sign are ones.
    """
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, fraction / 512, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    size[(code & 127) == 127] = np.nan
    return np.where(code > 127, -size, size).astype(np.float32)
