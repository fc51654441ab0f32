"""What a device's integer products start from: the sum of a group's activations, in the form that
the group's weights need.

`zero` is what the weights are too large by when they meet the activations.
"""

from __future__ import annotations

from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.quantize_rows import TWO_SUMS
from minicpm_mlc.ops.tir import Expr, T


def factor_of(scheme: Scheme, zero: int) -> int:
    """What quantize_rows multiplies the sum of a group's activations by, to be read where a scheme
    needs it: it starts the integer product, or meets the group's minimum.
    """
    if scheme.halves > 1:
        return TWO_SUMS
    return 1 if scheme.has_minimum else -zero


def start_of(scheme: Scheme, zero: int, word: Expr, half: int) -> Expr:
    """What the integer product starts from, given that sum's word; of a half where those have their
    own scales.
    """
    if scheme.halves > 1:
        return sums_of(word)[half] * -zero
    if not scheme.has_minimum:
        return word
    return word * -zero if zero else T.int32(0)


def sums_of(word: Expr) -> tuple[Expr, Expr]:
    """The sums of the first and of the last 16 values, from their word of TWO_SUMS; the first is
    less than half a step of the last.
    """
    bits = TWO_SUMS.bit_length() - 1
    first = T.shift_right(T.shift_left(word, 32 - bits), 32 - bits)
    return first, T.shift_right(word + TWO_SUMS // 2, bits)
