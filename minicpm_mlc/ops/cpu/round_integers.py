"""Rows of float32 as integers, counted in fractions of their largest number: what a query, or a
segment's mean, is multiplied as (ops/formats/kv/int8_words.py is the definition).
"""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv.int8 import SMALLEST
from minicpm_mlc.ops.tir import Expr, T

ADDED = 128  # to an integer that an instruction takes unsigned


def round_row(
    vectors: int, levels: int, read: Callable[[Expr], Expr], write: Callable[[Expr, Expr], None]
) -> tuple[Expr, Expr]:
    """write(x, at) the row that read(at) gives 16 numbers of, whole numbers of at most `levels`
    now, still float32 -> (its largest number, float32[16] that add up to the whole numbers).
    """
    found = vector.registers(2)  # the largest components, and sums of the integers
    for at in (0, vector.LANES):
        vector.store(found, vector.splat(0.0), at)
    with T.serial(vectors) as j:
        x = T.Bind(read(j * vector.LANES))
        size = T.max(x, vector.splat(0.0) - x)
        vector.store(found, T.max(vector.load(found, 0), size), 0)
    largest = T.max(vector.fold(T.max, T.Bind(vector.load(found, 0))), T.float32(SMALLEST))
    largest = T.Bind(largest)
    inverse = T.Bind(vector.splat(T.float32(levels) / largest))
    with T.serial(vectors) as j:
        x = T.Bind(T.nearbyint(read(j * vector.LANES) * inverse))
        vector.store(found, vector.load(found, vector.LANES) + x, vector.LANES)
        write(x, j * vector.LANES)
    return largest, T.Bind(vector.load(found, vector.LANES))


def words_of(x: Expr) -> Expr:
    """float32[16], truncated to int8, as four words: int32[4]."""
    integers = T.Cast("int8x16", T.Cast("int32x16", x))
    return T.reinterpret(integers, dtype="int32x4")


def start_of(total: Expr) -> Expr:
    """What a sum of products starts from whose one factor has ADDED in it, given the sums of the
    other's integers.
    """
    return T.Cast("int32", vector.fold(lambda a, b: a + b, total)) * -ADDED
