"""The likeliest tokens of each row of logits and their log-probabilities: all that drafting needs
of a head's output.

The k largest columns lie in the k blocks of columns with the largest maxima. One pass takes every
block's maximum, one the sum of exponentials; then the best block gives up its best column and is
searched for its next one, k times.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log, log2

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.cpu.vector import LANES
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T
from minicpm_mlc.ops.top_k import TopK

BLOCK = 64  # columns
LOG_TERMS = (1.0, 1 / 3, 1 / 5, 1 / 7, 1 / 9)  # of atanh(s) / s, in s**2


def top_k(
    operator: TopK, _: CpuTraits, dims: Dims, logits: Buffer, ids: Buffer, values: Buffer
) -> None:
    """A row a task."""

    def row(r: Expr) -> None:
        LogitsRow(logits, r, operator.vocab).write(ids, values, operator.k)

    vector.spread(dims.n, row, serial_below=3)


@dataclass(frozen=True)
class LogitsRow:
    """One row of logits [n, padded], of which `vocab` columns count."""

    logits: Buffer
    row: Expr
    vocab: int

    @property
    def blocks(self) -> int:
        return -(-self.vocab // BLOCK)

    def write(self, ids: Buffer, values: Buffer, k: int) -> None:
        """The k best, the best first."""
        shape = (-(-self.blocks // LANES) * LANES,)
        best, taken = T.alloc_buffer(shape, "float32"), T.alloc_buffer(shape, "int32")
        with T.serial(shape[0] // LANES) as j:
            vector.store(best, vector.splat(LOWEST), j * LANES)
            T.buffer_store(taken, T.broadcast(-1, LANES), [T.ramp(j * LANES, 1, LANES)])
        self.fill(best)
        top = vector.registers(1)
        vector.store(top, vector.splat(LOWEST), 0)
        with T.serial(shape[0] // LANES) as j:
            vector.store(top, T.max(vector.load(top, 0), vector.load(best, j * LANES)), 0)
        highest = vector.fold(T.max, T.Bind(vector.load(top, 0)))
        log_sum = T.Bind(log_from_1(self.sum_of_exponentials(highest)))
        with T.serial(k) as place:
            block = argmax(best, shape[0] // LANES)
            T.buffer_store(values, best[block] - highest - log_sum, [self.row, place])
            T.buffer_store(ids, block * BLOCK + self.take(best, taken, block), [self.row, place])

    def vectors(self, first: int, count: int) -> list[Expr]:
        """A few vectors from column `first` on, a constant; columns that don't count are LOWEST."""
        found = []
        for column in range(first, min(first + count * LANES, self.vocab), LANES):
            x = vector.load(self.logits, self.row, column)
            if column + LANES > self.vocab:
                x = T.Select(
                    T.ramp(column, 1, LANES) < T.broadcast(self.vocab, LANES),
                    x,
                    vector.splat(LOWEST),
                )
            found.append(T.Bind(x))
        return found

    def fill(self, best: Buffer) -> None:
        """The maximum of every block."""

        def maximum(vectors: list[Expr]) -> Expr:
            while len(vectors) > 1:
                vectors = [T.Bind(T.max(*vectors[:2])), *vectors[2:]]
            return vector.fold(T.max, vectors[0])

        whole = self.vocab // BLOCK
        with T.serial(whole) as block:
            starts = range(0, BLOCK, LANES)
            loaded = [
                T.Bind(vector.load(self.logits, self.row, block * BLOCK + start))
                for start in starts
            ]
            T.buffer_store(best, maximum(loaded), [block])
        if rest := self.vectors(whole * BLOCK, BLOCK // LANES):
            T.buffer_store(best, maximum(rest), [whole])

    def sum_of_exponentials(self, highest: Expr) -> Expr:
        """Of the logits less the highest: at least 1."""
        sums, chains = vector.registers(4), 4

        def add(chain: int, x: Expr) -> None:
            power = vector.exp2_below_1((x - vector.splat(highest)) * vector.splat(log2(e)))
            vector.store(sums, vector.load(sums, chain * LANES) + power, chain * LANES)

        for chain in range(chains):
            vector.store(sums, vector.splat(0.0), chain * LANES)
        width = chains * LANES
        with T.serial(self.vocab // width) as step:
            for chain in range(chains):
                add(chain, vector.load(self.logits, self.row, step * width + chain * LANES))
        for chain, x in enumerate(self.vectors(self.vocab // width * width, chains)):
            add(chain, x)
        parts = [vector.load(sums, chain * LANES) for chain in range(chains)]
        return vector.fold(lambda a, b: a + b, T.Bind(parts[0] + parts[1] + (parts[2] + parts[3])))

    def take(self, best: Buffer, taken: Buffer, block: Expr) -> Expr:
        """The first column of a block that holds its best value and was not taken; `best` becomes
        what is then left.

        Of columns with the value `best`, those up to the place in `taken` are gone.
        """
        value, gone, first = T.Bind(best[block]), T.Bind(taken[block]), T.Bind(block * BLOCK)
        found, lower = (
            T.alloc_buffer((2,), "int32"),
            T.alloc_buffer((1,), "float32"),
        )  # the column, and how many hold it
        T.buffer_store(found, 0, [0])
        T.buffer_store(found, 0, [1])
        T.buffer_store(lower, T.float32(LOWEST), [0])
        last = T.Bind(T.min(BLOCK, self.vocab - first) - 1)
        with T.serial(last + 1) as step:
            column = T.Bind(last - step)
            x = T.Bind(self.logits[self.row, first + column])
            here = T.Bind(T.And(x.equal(value), column > gone))
            T.buffer_store(found, T.Select(here, column, found[0]), [0])
            T.buffer_store(found, found[1] + T.Select(here, 1, 0), [1])
            T.buffer_store(lower, T.Select(x < value, T.max(lower[0], x), lower[0]), [0])
        again = T.Bind(found[1] > 1)
        T.buffer_store(best, T.Select(again, value, lower[0]), [block])
        T.buffer_store(taken, T.Select(again, found[0], -1), [block])
        return found[0]


def argmax(values: Buffer, vectors: int) -> Expr:
    """The first place, int32, of the largest of vectors * 16 values."""
    top, place = vector.registers(1), T.alloc_buffer((LANES,), "int32")
    lanes = T.ramp(0, 1, LANES)
    vector.store(top, vector.load(values, 0), 0)
    T.buffer_store(place, lanes, [lanes])
    with T.serial(vectors - 1) as step:
        first = T.Bind((step + 1) * LANES)
        x, old = T.Bind(vector.load(values, first)), T.Bind(vector.load(top, 0))
        T.buffer_store(place, T.Select(x > old, T.ramp(first, 1, LANES), place[lanes]), [lanes])
        vector.store(top, T.max(x, old), 0)
    best = vector.fold(T.max, T.Bind(vector.load(top, 0)))
    highest = T.broadcast(best, LANES)
    nowhere = T.broadcast(vectors * LANES, LANES)
    return vector.fold(
        T.min, T.Bind(T.Select(vector.load(top, 0).equal(highest), place[lanes], nowhere))
    )


def log_from_1(x: Expr) -> Expr:
    """Natural logarithm of a float32 scalar from 1 on, relative error <= 2e-7, without libm.

    x = 2**exponent * m with m within a factor sqrt(2) of 1, and log m = 2 atanh((m - 1) / (m + 1)).
    """
    bits = T.Bind(T.reinterpret(x, dtype="int32"))
    exponent = T.Bind(T.shift_right(bits - 0x3F3504F3, 23))  # m begins at sqrt(1/2)
    m = T.Bind(T.reinterpret(bits - T.shift_left(exponent, 23), dtype="float32"))
    s = T.Bind((m - T.float32(1)) / (m + T.float32(1)))
    square, series = T.Bind(s * s), T.float32(LOG_TERMS[-1])
    for term in reversed(LOG_TERMS[:-1]):
        series = series * square + T.float32(term)
    return T.Cast("float32", exponent) * T.float32(log(2)) + T.float32(2) * s * series
