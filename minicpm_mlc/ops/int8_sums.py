"""What a device's integer products start from: the sum of a group's activations, in the form that
the group's weights need.

`zero` is what the weights are too large by when they meet the activations.
"""

from __future__ import annotations

from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.quantize_rows import TWO_SUMS
from minicpm_mlc.ops.tir import Expr, T, splat


def factor_of(scheme: Scheme, zero: int) -> int:
    """What quantize_rows multiplies the sum of a group's activations by, to be read where a scheme
    needs it: it starts the integer product, or meets the group's minimum.
    """
    if scheme.halves > 1:
        return TWO_SUMS
    return 1 if scheme.has_minimum else -zero


def start_of(scheme: Scheme, zero: int, word: Expr, half: int, lanes: int = 1) -> Expr:
    """What the integer product starts from, given that sum's word, or a vector of it; of a half
    where those have their own scales.
    """
    if scheme.halves > 1:
        return sums_of(word, lanes)[half] * splat(T.int32(-zero), lanes)
    if not scheme.has_minimum:
        return word
    return word * splat(T.int32(-zero), lanes) if zero else splat(T.int32(0), lanes)


def sums_of(word: Expr, lanes: int = 1) -> tuple[Expr, Expr]:
    """The sums of the first and of the last 16 values, from their word of TWO_SUMS."""
    bits = TWO_SUMS.bit_length() - 1
    above, width, half = (splat(T.int32(n), lanes) for n in (32 - bits, bits, TWO_SUMS // 2))
    first = T.Bind(T.shift_right(T.shift_left(word, above), above))
    return first, T.shift_right(word + half, width)  # the first sum is less than half a step
