"""RMSNorm, in float32."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    barrier,
    reduced,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.quantize_rows import quantiser
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8
from minicpm_mlc.ops.tir import Buffer, Expr, T

WIDE = 256  # threads where a row is one workgroup's: the most that every GPU takes


def rms_norm(
    operator: RmsNorm, _: GpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a workgroup."""
    with workgroups(dims.n) as (row, thread):
        factor = _factor(operator, x, row, thread, THREADS)
        with strided(operator.hidden, thread) as i:
            T.buffer_store(out, x[row, i] * factor * weight[i], [row, i])


def rms_norm_int8(
    operator: RmsNormInt8, traits: GpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a workgroup."""
    with workgroups(dims.n, WIDE) as (row, thread):
        norm = Normalised(operator.hidden, operator.eps, operator.sum_factor, traits)
        norm.write(x, row, weight, thread, out, row)


@dataclass(frozen=True)
class Normalised:
    """A row's RMSNorm, rounded by the WIDE threads of a workgroup, which keep their columns in
    registers.
    """

    hidden: int
    eps: float
    factor: int
    traits: GpuTraits

    def write(
        self, x: Buffer, row: Expr, weight: Buffer, thread: Expr, out: Buffer, to: Expr
    ) -> None:
        """Row `row` of x to row `to` of the words `out`."""
        rounds = quantiser(self.traits)
        each = rounds.each
        parts = -(-self.hidden // (WIDE * each))
        held, scales = registers(parts * each, value=0.0), registers(parts * each, value=0.0)
        square = registers(1, value=0.0)
        for at in range(0, parts * each, QUAD):
            column = T.Bind((at // each * WIDE + thread) * each + at % each)
            with T.If(column < self.hidden), T.Then():
                for to_held, source in (
                    (held, x[row, T.ramp(column, 1, QUAD)]),
                    (scales, weight[T.ramp(column, 1, QUAD)]),
                ):
                    T.buffer_store(to_held, source, [T.ramp(at, 1, QUAD)])
        for i in range(parts * each):
            accumulate(square, 0, held[i] * held[i])
        inverse = self._inverse(square[0], thread)
        words = rounds(self.hidden, self.factor, thread, WIDE)
        for part in range(parts):

            def read(values: Buffer, first: int, _: Expr, part: int = part) -> None:
                for i in range(first, first + QUAD):
                    own = part * each + i
                    T.buffer_store(values, held[own] * inverse * scales[own], [i])

            words.write(out, to, T.int32(part * WIDE * each // QUAD), read)

    def _inverse(self, own: Expr, thread: Expr) -> Expr:
        """1 / rms, of each thread's sum of squares."""
        if not self.traits.quads:
            return _inverse(self.hidden, self.eps, own, thread, WIDE)
        quads, sums = shared((WIDE // 4,)), registers(QUAD, value=0.0)
        total = T.Bind(tile("float32", "quad_sum", own))
        with T.If(T.bitwise_and(thread, 3).equal(0)), T.Then():
            T.buffer_store(quads, total, [thread // 4])
        barrier()
        part = registers(QUAD)
        for first in range(0, WIDE // 4, QUAD):
            T.buffer_store(part, quads[T.ramp(first, 1, QUAD)], [T.ramp(0, 1, QUAD)])
            for i in range(QUAD):
                accumulate(sums, i, part[i])
        return _inverse_of(self.hidden, self.eps, sums[0] + sums[1] + (sums[2] + sums[3]))


def _factor(operator: RmsNorm, x: Buffer, row: Expr, thread: Expr, threads: int) -> Expr:
    """1 / rms of a row, for every thread."""
    total = registers(1, value=0.0)
    with strided(operator.hidden, thread, threads) as i:
        value = T.Bind(x[row, i])
        accumulate(total, 0, value * value)
    return _inverse(operator.hidden, operator.eps, total[0], thread, threads)


def _inverse(hidden: int, eps: float, own: Expr, thread: Expr, threads: int) -> Expr:
    """The same, of each thread's sum of squares."""
    square = reduced(lambda a, b: a + b, shared((threads,)), own, thread)
    return _inverse_of(hidden, eps, square)


def _inverse_of(hidden: int, eps: float, square: Expr) -> Expr:
    inverse = registers(1)  # so that it isn't computed again for each number
    root = T.sqrt(square / constant(hidden) + constant(eps))
    T.buffer_store(inverse, constant(1.0) / root, [0])
    return inverse[0]
