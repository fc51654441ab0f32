"""The likeliest token of each row of logits: a row's columns are spread over workgroups, whose
candidates one more workgroup compares.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import barrier, registers, shared, strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.likeliest import Likeliest
from minicpm_mlc.ops.tir import Buffer, Expr, T

THREADS = 128
SHARE = 1024  # columns of a workgroup: 8 of a thread
NONE = 0x7FFFFFFF  # the column of who saw none


def likeliest(
    operator: Likeliest, _: GpuTraits, dims: Dims, logits: Buffer, ids: Buffer, values: Buffer
) -> None:
    """Two launches."""
    vocab, shares = operator.vocab, -(-operator.vocab // SHARE)
    tops = T.alloc_buffer((dims.n, shares), "float32")
    columns = T.alloc_buffer((dims.n, shares), "int32")
    with workgroups(dims.n * shares, THREADS) as (group, thread):
        row, share = T.Bind(group // shares), T.Bind(group % shares)
        first = T.Bind(share * SHARE)
        best = Best(thread)
        with strided(T.min(vocab - first, SHARE), thread, THREADS) as i:
            best.see(logits[row, first + i], T.Bind(first + i))
        best.write(tops, columns, [row, share])
    with workgroups(dims.n, THREADS) as (row, thread):
        best = Best(thread)
        with strided(shares, thread, THREADS) as i:
            best.see(tops[row, i], columns[row, i])
        best.write(values, ids, [row])


class Best:
    """The best that the threads of a workgroup saw. Each sees its columns in ascending order."""

    def __init__(self, thread: Expr) -> None:
        self.thread = thread
        self.value, self.column = registers(1, value=0.0), registers(1, "int32", NONE)

    def see(self, value: Expr, column: Expr) -> None:
        """One more column."""
        value = T.Bind(value)
        with T.If(_before(value, column, self.value[0], self.column[0])), T.Then():
            T.buffer_store(self.value, value, [0])
            T.buffer_store(self.column, column, [0])

    def write(self, values: Buffer, columns: Buffer, at: list[Expr]) -> None:
        """The best of all threads."""
        tops, places, threads = shared((THREADS,)), shared((THREADS,), "int32"), THREADS
        T.buffer_store(tops, self.value[0], [self.thread])
        T.buffer_store(places, self.column[0], [self.thread])
        barrier()
        while threads > 1:
            threads //= 2
            with T.If(self.thread < threads), T.Then():
                other, right = T.Bind(tops[self.thread + threads]), places[self.thread + threads]
                right = T.Bind(right)
                with (
                    T.If(_before(other, right, tops[self.thread], places[self.thread])),
                    T.Then(),
                ):
                    T.buffer_store(tops, other, [self.thread])
                    T.buffer_store(places, right, [self.thread])
            barrier()
        with T.If(self.thread.equal(0)), T.Then():
            T.buffer_store(values, tops[0], at)
            T.buffer_store(columns, places[0], at)


def _before(value: Expr, column: Expr, other: Expr, place: Expr) -> Expr:
    """Whether a value is likelier than another one: larger, or as large and in a lower column. NaN,
    which no comparison holds for, is the largest.
    """
    larger = T.Or(value > other, T.And(value.equal(other), column < place))
    first_missing = T.And(T.Not(_is_number(value)), T.Or(_is_number(other), column < place))
    likelier = T.Or(larger, first_missing)
    return T.And(column != NONE, T.Or(place.equal(NONE), likelier))


def _is_number(value: Expr) -> Expr:
    """By the bits: a compiler may take x == x for true."""
    bits = T.bitwise_and(T.reinterpret(value, dtype="uint32"), T.uint32(0x7FFFFFFF))
    return bits <= T.uint32(0x7F800000)
