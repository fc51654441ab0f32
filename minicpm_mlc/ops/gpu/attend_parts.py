"""What the splits of attention's rows found, and the launch that merges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    reduced,
    registers,
    shared,
    store_run,
    workgroups,
)
from minicpm_mlc.ops.gpu.quantize_rows import quantiser, read_quad
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

THREADS = 256  # and the most splits
AHEAD = 4  # outputs that a thread asks for before it uses the first


@dataclass(frozen=True)
class Parts:
    """What the splits of all rows found: outputs [splits, n, heads, d], maxima and sums [splits, n,
    heads]. `weigh`: what an output counts whose maximum lies so far above the highest (never more
    than 0).
    """

    outputs: Buffer
    maxima: Buffer
    sums: Buffer
    weigh: Callable[[Expr], Expr]

    @staticmethod
    def of(splits: Expr, n: Expr, heads: int, d: int, weigh: Callable[[Expr], Expr]) -> Parts:
        """Memory for them, made outside of workgroups."""
        shape = splits, n, heads
        outputs = T.alloc_buffer((*shape, d), "float32")
        maxima, sums = (T.alloc_buffer(shape, "float32") for _ in range(2))
        return Parts(outputs, maxima, sums, weigh)

    def put(self, at: list[Expr], component: Expr, values: Buffer, best: Expr, total: Expr) -> None:
        """Components of the output of a split, row and head from `component` on, and its maximum
        and sum.
        """
        store_run(self.outputs, values, at, component)
        with T.If(component.equal(0)), T.Then():
            T.buffer_store(self.maxima, best, at)
            T.buffer_store(self.sums, total, at)

    def merge(
        self, splits: Expr, n: Expr, out: Buffer, factor: int | None, traits: GpuTraits
    ) -> None:
        """To out[row, head * d + i], or to words of quantize_rows with this sum_factor: a launch, a
        row's head and up to 32 of its components by a workgroup.
        """
        heads, d = int(self.outputs.shape[2]), int(self.outputs.shape[3])
        width = gcd(d, GROUP)
        across = d // width
        with workgroups(n * (heads * across), THREADS) as (group, thread):
            row, task = T.Bind(group // (heads * across)), T.Bind(group % (heads * across))
            head, first = T.Bind(task // across), T.Bind(task % across * width)
            numbers, weights = shared((THREADS,)), shared((THREADS,))
            count = T.Bind(T.Cast("int32", splits))
            total = self._weights(weights, numbers, count, row, head, thread)
            value, abreast = registers(1, value=0.0), THREADS // width
            loaded, part = registers(AHEAD), T.Bind(thread // width)
            with T.serial((count + AHEAD * abreast - 1) // (AHEAD * abreast)) as turn:
                splits_of = [T.Bind((turn * AHEAD + i) * abreast + part) for i in range(AHEAD)]
                for i, split in enumerate(splits_of):
                    at = [T.Bind(T.min(split, count - 1)), row, head, first + thread % width]
                    T.buffer_store(loaded, self.outputs[tuple(at)], [i])
                for i, split in enumerate(splits_of):  # one behind the last weighs nothing
                    accumulate(value, 0, weights[split] * loaded[i])
            T.buffer_store(numbers, value[0], [thread])
            barrier()
            with T.If(thread < width), T.Then():
                for other in range(1, THREADS // width):
                    accumulate(value, 0, numbers[other * width + thread])
            column = T.Bind(head * d + first)
            if factor is None:
                with T.If(thread < width), T.Then():
                    T.buffer_store(out, value[0] / total, [row, column + thread])
            else:
                T.buffer_store(weights, value[0] / total, [thread])  # their readers are through
                barrier()
                words = quantiser(traits)(column + width, factor, thread, THREADS)
                words.write(
                    out,
                    row,
                    T.Bind(column // QUAD),
                    lambda to, at, i: read_quad(to, at, weights, [], T.Bind(i - column)),
                )

    def _weights(
        self, weights: Buffer, numbers: Buffer, count: Expr, row: Expr, head: Expr, thread: Expr
    ) -> Expr:
        """Every split's weight to shared memory -> the sum of all."""
        state, there = registers(2, value=0.0), T.Bind(thread < count)  # maximum, sum
        T.buffer_store(state, T.float32(LOWEST), [0])
        with T.If(there), T.Then():
            T.buffer_store(state, self.maxima[thread, row, head], [0])
            T.buffer_store(state, self.sums[thread, row, head], [1])
        best = reduced(T.max, numbers, state[0], thread)
        T.buffer_store(state, T.Select(there, self.weigh(state[0] - best), T.float32(0)), [0])
        T.buffer_store(weights, state[0], [thread])
        return reduced(lambda a, b: a + b, numbers, state[0] * state[1], thread)
