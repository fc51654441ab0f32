"""The likeliest tokens of each row of logits and their log-probabilities.

A workgroup takes a row. Every thread knows the best column of its own share; the best of all is
written, and only its thread looks for its next one.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.float16_bits import constant
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
from minicpm_mlc.ops.top_k import TopK

THREADS = 128


def top_k(
    operator: TopK, _: GpuTraits, dims: Dims, logits: Buffer, ids: Buffer, values: Buffer
) -> None:
    """A row a workgroup."""
    vocab = operator.vocab
    with workgroups(dims.n, THREADS) as (row, thread):
        best, column = registers(1), registers(1, "int32")
        tops, columns = shared((THREADS,)), shared((THREADS,), "int32")

        def search(below: Expr, after: Expr) -> None:
            """The best of this thread's columns behind column `after`, whose value is `below`."""
            T.buffer_store(best, constant(LOWEST), [0])
            T.buffer_store(column, vocab, [0])
            with strided(vocab, thread, THREADS) as i:
                x = T.Bind(logits[row, i])
                left = T.Or(x < below, T.And(x.equal(below), i > after))
                with T.If(T.And(left, x > best[0])), T.Then():
                    T.buffer_store(best, x, [0])
                    T.buffer_store(column, i, [0])

        search(constant(-LOWEST), -1)
        highest = reduced(T.max, tops, best[0], thread)
        total = registers(1, value=0.0)
        with strided(vocab, thread, THREADS) as i:
            accumulate(total, 0, T.exp(logits[row, i] - highest))
        log_sum = T.Bind(T.log(reduced(lambda a, b: a + b, tops, total[0], thread)))
        with T.serial(operator.k) as place:
            T.buffer_store(tops, best[0], [thread])
            T.buffer_store(columns, column[0], [thread])
            barrier()
            _best_first(tops, columns, thread)
            value, winner = T.Bind(tops[0]), T.Bind(columns[0])
            with T.If(thread.equal(0)), T.Then():
                T.buffer_store(values, value - highest - log_sum, [row, place])
                T.buffer_store(ids, winner, [row, place])
            with T.If(column[0].equal(winner)), T.Then():
                search(value, winner)
            barrier()  # before the next places are written


def _best_first(tops: Buffer, columns: Buffer, thread: Expr) -> None:
    """Brings the largest value, of equal ones that with the lowest column, to place 0."""
    threads = THREADS
    while threads > 1:
        threads //= 2
        with T.If(thread < threads), T.Then():
            mine, other = T.Bind(tops[thread]), T.Bind(tops[thread + threads])
            left, right = T.Bind(columns[thread]), T.Bind(columns[thread + threads])
            with T.If(T.Or(other > mine, T.And(other.equal(mine), right < left))), T.Then():
                T.buffer_store(tops, other, [thread])
                T.buffer_store(columns, right, [thread])
        barrier()
