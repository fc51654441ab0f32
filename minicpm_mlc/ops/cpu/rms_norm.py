"""RMSNorm, in float32."""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.quantize_rows import quantize_group
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8
from minicpm_mlc.ops.tir import Buffer, Expr


def rms_norm(
    operator: RmsNorm, _: CpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a task."""
    vectors = vector.vectors_in(operator.hidden, "the norm's width")

    def row(r: Expr) -> None:
        factor = _factor(x, r, operator.hidden, operator.eps)
        with T.serial(vectors) as j:
            vector.store(out, _normed(x, weight, factor, r, j * 16), r, j * 16)

    vector.spread(dims.n, row, serial_below=16)


def rms_norm_int8(
    operator: RmsNormInt8, _: CpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a task."""
    vectors = vector.vectors_in(operator.hidden, "the norm's width")

    def row(r: Expr) -> None:
        factor = _factor(x, r, operator.hidden, operator.eps)
        with T.serial(vectors * vector.LANES // GROUP) as g:
            halves = [_normed(x, weight, factor, r, g * GROUP + half) for half in (0, 16)]
            quantize_group(halves, operator.sum_factor, out, r, g)

    vector.spread(dims.n, row, serial_below=8)


def _factor(x: Buffer, r: Expr, hidden: int, eps: float) -> Expr:
    """1 / rms of row r, in all lanes."""
    total = vector.registers(1)
    vector.store(total, vector.splat(0.0), 0)
    with T.serial(hidden // vector.LANES) as j:
        value = T.Bind(vector.load(x, r, j * 16))
        vector.store(total, vector.load(total, 0) + value * value, 0)
    mean_square = vector.fold(lambda a, b: a + b, vector.load(total, 0)) / T.float32(hidden)
    return T.Bind(vector.splat(T.Bind(T.float32(1) / T.sqrt(mean_square + T.float32(eps)))))


def _normed(x: Buffer, weight: Buffer, factor: Expr, r: Expr, column: Expr) -> Expr:
    return vector.load(x, r, column) * factor * vector.load(weight, column)
