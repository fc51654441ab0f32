"""RMSNorm, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.quantize_rows import quantize_group, quantized_shape
from minicpm_mlc.ops.formats.weights import GROUP


def rms_norm_definition(
    x: np.ndarray, weight: np.ndarray, eps: float, scale: float = 1.0
) -> np.ndarray:
    """x [n, h], weight [h] -> x / sqrt(mean(x^2) + eps) * weight * scale, float64 [n, h]."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight.astype(np.float64) * scale


def rms_norm(hidden: int, eps: float, scale: float = 1.0) -> Any:
    """PrimFunc (x f32[n, hidden], weight f32[hidden]) -> f32[n, hidden].

    `scale` is a constant factor on the output: muP's logit scale on the last norm.
    """
    vectors = vector.vectors_in(hidden, "the norm's width")

    def normalise(n: Any, x: Any, weight: Any, out: Any) -> None:
        def row(r: Any) -> None:
            factor = _factor(x, r, hidden, eps, scale)
            with T.serial(vectors) as j:
                vector.store(out, _normed(x, weight, factor, r, j * 16), r, j * 16)

        vector.spread(n, row, serial_below=16)

    @T.prim_func(private=True)
    def rms_norm(x_handle: T.handle, weight_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        x = T.match_buffer(x_handle, (n, hidden), "float32")
        weight = T.match_buffer(weight_handle, (hidden,), "float32")
        out = T.match_buffer(out_handle, (n, hidden), "float32")
        normalise(n, x, weight, out)

    return rms_norm


def rms_norm_int8(hidden: int, eps: float, sum_factor: int) -> Any:
    """rms_norm followed by quantize_rows(hidden, sum_factor): PrimFunc (x f32[n, hidden], weight
    f32[hidden]) -> its int32 words.
    """
    groups = vector.vectors_in(hidden, "the norm's width") * vector.LANES // GROUP

    def normalise(n: Any, x: Any, weight: Any, out: Any) -> None:
        def row(r: Any) -> None:
            factor = _factor(x, r, hidden, eps, 1.0)
            with T.serial(groups) as g:
                quantize_group(
                    [_normed(x, weight, factor, r, g * GROUP + half) for half in (0, 16)],
                    sum_factor,
                    out,
                    r,
                    g,
                )

        vector.spread(n, row, serial_below=8)

    @T.prim_func(private=True)
    def rms_norm_int8(x_handle: T.handle, weight_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        x = T.match_buffer(x_handle, (n, hidden), "float32")
        weight = T.match_buffer(weight_handle, (hidden,), "float32")
        out = T.match_buffer(out_handle, quantized_shape(n, hidden), "int32")
        normalise(n, x, weight, out)

    return rms_norm_int8


def _factor(x: Any, r: Any, hidden: int, eps: float, scale: float) -> Any:
    """scale / rms of row r, in all lanes."""
    total = vector.registers(1)
    vector.store(total, vector.splat(0.0), 0)
    with T.serial(hidden // vector.LANES) as j:
        value = T.Bind(vector.load(x, r, j * 16))
        vector.store(total, vector.load(total, 0) + value * value, 0)
    mean_square = vector.fold(lambda a, b: a + b, vector.load(total, 0)) / T.float32(hidden)
    return T.Bind(vector.splat(T.Bind(T.float32(scale) / T.sqrt(mean_square + T.float32(eps)))))


def _normed(x: Any, weight: Any, factor: Any, r: Any, column: Any) -> Any:
    return vector.load(x, r, column) * factor * vector.load(weight, column)
