"""compressed-tensors, as llm-compressor writes for vLLM: signed integers along the inputs.

Of a linear P with K inputs, N outputs, b bits and G groups:

    P.weight_packed     int32 [N, K * b / 32]   a row is a stream of its values + 2^(b-1)
    P.weight            int8  [N, K]            the values; 8-bit floats are read by fp8.py
    P.weight_scale      [N, G], [N, 1] or [1]
    P.weight_zero_point int32 [N * b / 32, G]   packed down the rows; absent: 0
    P.weight_g_idx      int32 [K]               the group of each input; absent: neighbours
    w[n, k] = scale[n, g] * (value - zero_point[n, g])
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.forms.fp8 import BESIDE, BLOCK, fp8_tensor
from minicpm_mlc.compile.checkpoint.packed import (
    FLOATS,
    Linear,
    Numbers,
    QuantisedLinear,
    column_groups,
    unpack,
    unpack_columns,
)
from minicpm_mlc.compile.checkpoint.tensor import Integers, Tensor, contiguous_groups

METHODS = ("compressed-tensors",)
FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "dense")
BITS = (2, 4, 8)
CACHE = "the checkpoint's quantised key/value cache is not taken over: --kv chooses how it is kept"


def reader(stated: Stated, found: Found) -> Reader:
    """The reader of a checkpoint with these settings."""
    stated.require("format", *FORMATS)
    stated.require("transform_config", {})
    sparsity = stated.values.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise stated.refuse("sparsity_config", "none, or one of format dense")
    remarks = [CACHE] if stated.values.get("kv_cache_scheme") else []
    return Reader(partial(_tensor, found), remarks, BESIDE)


def _tensor(found: Found, name: str, shapes: Shapes) -> Tensor | None:
    linear = Linear(name.removesuffix(".weight"), found)
    if linear.has("weight_packed"):
        return PackedTensor(linear, shapes[name])
    if linear.has("weight") and found[name].entries[name].dtype == "I8":
        return Int8Tensor(linear, shapes[name])
    return fp8_tensor(found, (BLOCK, BLOCK), name, shapes)


class PackedTensor(QuantisedLinear):
    """A weight of packed integers."""

    def __init__(self, linear: Linear, shape: tuple[int, ...]) -> None:
        n, k = shape
        packed = [(n, k * bits // 32) for bits in BITS if k * bits % 32 == 0]
        self._weight = linear.array("weight_packed", ("I32",), *packed)
        self._bits = 32 * self._weight.shape[1] // k
        said = linear.array("weight_shape", ("I64", "I32"), (2,)).tolist()
        if said != [n, k]:
            raise linear.error("weight_shape", f"is {said}, expected {[n, k]} from config.json")
        count = linear.columns_of("weight_scale")
        self._scale = linear.numbers("weight_scale", (n, max(1, min(count, k))))
        self._groups = column_groups(linear, "weight_g_idx", k, count)
        self._zero = None
        if linear.has("weight_zero_point"):
            words = (-(-n * self._bits // 32), count)
            self._zero = linear.array("weight_zero_point", ("I32",), words)
        super().__init__(linear, shape, f"compressed-tensors ({self._bits} bits)")

    def integers(self, start: int, stop: int) -> Integers:
        values = unpack(self._weight[start:stop], self._bits, self.shape[1])
        zero = 1 << (self._bits - 1)
        if self._zero is not None:
            down = unpack_columns(self._zero.T, self._bits, start, stop)
            zero = down.T.astype(np.int16)
        return Integers(values, self._scale[start:stop], self._groups, zero)


class Int8Tensor(QuantisedLinear):
    """A weight of bytes."""

    def __init__(self, linear: Linear, shape: tuple[int, ...]) -> None:
        n, k = shape
        self._weight = linear.array("weight", ("I8",), shape)
        count = linear.columns_of("weight_scale") or 1
        stored = linear.array("weight_scale", FLOATS, (n, min(count, k)), (1,), ())
        self._scale = Numbers(np.broadcast_to(stored.reshape(-1, count), (n, count)))
        self._groups = contiguous_groups(k, count)
        if linear.has("weight_zero_point"):
            zeros = linear.array("weight_zero_point", ("I8",), (n, count), (1,), ())
            if zeros.any():
                raise linear.error("weight_zero_point", "is not 0, which is not read")
        super().__init__(linear, shape, "compressed-tensors (int8)")

    def integers(self, start: int, stop: int) -> Integers:
        values = np.bitwise_xor(self._weight[start:stop].view(np.uint8), 128)
        return Integers(values, self._scale[start:stop], self._groups, 128)
