"""The largest logits of each row, and the sum that makes shares of them.

A workgroup sorts 1024 columns and keeps the best; what all kept is sorted again, until one
workgroup holds a row's. The first ones add up exponentials too, the last one adds those sums.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.candidates import Candidates
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    reduced,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

THREADS, SORTED = 128, 1024
NONE = 0x7FFFFFFF  # the column of a place that holds none


def candidates(
    operator: Candidates,
    _: GpuTraits,
    dims: Dims,
    logits: Buffer,
    temperatures: Buffer,
    ids: Buffer,
    values: Buffer,
    sums: Buffer,
) -> None:
    """A launch for each time that what is left is divided by 1024 / k."""
    count, k, columns = operator.vocab, operator.k, None
    shares = -(-count // SORTED)
    tops, parts = (T.alloc_buffer((dims.n, shares), "float32") for _ in range(2))
    found = logits
    while True:
        groups = -(-count // SORTED)
        best, places = values, ids
        if groups > 1:
            best = T.alloc_buffer((dims.n, groups * k), "float32")
            places = T.alloc_buffer((dims.n, groups * k), "int32")
        with workgroups(dims.n * groups, THREADS) as (group, thread):
            row, share = T.Bind(group // groups), T.Bind(group % groups)
            temperature = T.Bind(temperatures[row])
            group_columns = Sorted(thread)
            group_columns.load(found, columns, row, T.Bind(share * SORTED), count)
            group_columns.sort()
            with strided(k, thread, THREADS) as i:
                T.buffer_store(best, group_columns.values[i], [row, share * k + i])
                T.buffer_store(places, group_columns.columns[i], [row, share * k + i])
            if columns is None:
                total = group_columns.sum_of_exponentials(temperature)
                with T.If(thread.equal(0)), T.Then():
                    T.buffer_store(tops, group_columns.values[0], [row, share])
                    T.buffer_store(parts, total, [row, share])
            elif groups == 1:
                total = group_columns.total(tops, parts, row, shares, temperature)
            if groups == 1:
                with T.If(thread.equal(0)), T.Then():
                    T.buffer_store(sums, total, [row])
        if groups == 1:
            return
        count, found, columns = groups * k, best, places


class Sorted:
    """SORTED values of a workgroup and their columns, in shared memory. All loops stay loops: some
    drivers take seconds over a kernel of many statements.
    """

    def __init__(self, thread: Expr) -> None:
        self.thread = thread
        self.values, self.columns = shared((SORTED,)), shared((SORTED,), "int32")
        self._partial = shared((THREADS,))

    def load(
        self, found: Buffer, columns: Buffer | None, row: Expr, first: Expr, count: int
    ) -> None:
        """Those from place `first` on of `count`; without `columns` a place is its column."""
        with strided(SORTED, self.thread, THREADS) as at:
            place = T.Bind(first + at)
            T.buffer_store(self.values, T.float32(LOWEST), [at])
            T.buffer_store(self.columns, NONE, [at])
            with T.If(place < count), T.Then():
                column = place if columns is None else columns[row, place]
                T.buffer_store(self.values, found[row, place], [at])
                T.buffer_store(self.columns, column, [at])
        barrier()

    def sort(self) -> None:
        """Largest first, of equal ones the lower column: bitonic, runs that fall and rise in turns
        are merged to runs of twice their length.
        """
        with T.serial(SORTED.bit_length() - 1) as level, T.serial(level + 1) as step:
            size = T.Bind(T.shift_left(2, level))
            stride = T.Bind(T.shift_left(1, level - step))
            with strided(SORTED // 2, self.thread, THREADS) as pair:
                self._order(pair, stride, size)
            barrier()

    def _order(self, pair: Expr, stride: Expr, size: Expr) -> None:
        """Puts two values in the order of their run of `size`."""
        below = T.Bind(T.bitwise_and(pair, stride - 1))
        low = T.Bind((pair - below) * 2 + below)
        high = T.Bind(low + stride)
        first, second = T.Bind(self.values[low]), T.Bind(self.values[high])
        left, right = T.Bind(self.columns[low]), T.Bind(self.columns[high])
        falls = T.Bind(T.bitwise_and(low, size).equal(0))
        rises_here = T.Or(second > first, T.And(second.equal(first), right < left))
        with T.If(rises_here.equal(falls)), T.Then():
            T.buffer_store(self.values, second, [low])
            T.buffer_store(self.values, first, [high])
            T.buffer_store(self.columns, right, [low])
            T.buffer_store(self.columns, left, [high])

    def sum_of_exponentials(self, temperature: Expr) -> Expr:
        """Of all that were loaded, less the largest."""
        top, total = T.Bind(self.values[0]), registers(1, value=0.0)
        with strided(SORTED, self.thread, THREADS) as i:  # a place that holds none adds 0
            accumulate(total, 0, T.exp((self.values[i] - top) / temperature))
        return self._added(total[0])

    def total(self, tops: Buffer, parts: Buffer, row: Expr, shares: int, temperature: Expr) -> Expr:
        """The sums of all shares as if each had been taken less the row's largest."""
        top, total = T.Bind(self.values[0]), registers(1, value=0.0)
        with strided(shares, self.thread, THREADS) as i:
            accumulate(total, 0, parts[row, i] * T.exp((tops[row, i] - top) / temperature))
        return self._added(total[0])

    def _added(self, value: Expr) -> Expr:
        return reduced(lambda a, b: a + b, self._partial, value, self.thread)
