"""What the two ways of scoring blocks share: how windows of segment means make scores."""

from __future__ import annotations

from collections.abc import Callable
from math import log

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import registers
from minicpm_mlc.ops.tir import Expr, T

THREADS = 64  # few, as each has its own sums of every head in shared memory
WINDOWS = SEGMENTS + 1  # that touch a block
SMALLEST = -126 * log(2)  # a head's score below this counts as 0

Mean = Callable[[Expr, Expr], Expr]  # (segment, component) -> f32


def score_of(exponent: Expr) -> Expr:
    """exp, or 0 where it is too small for a float32 with all its bits."""
    return T.Select(exponent < constant(SMALLEST), T.float32(0), T.exp(exponent))


def best_window(block: Expr, tokens: Expr, score: Callable[[Expr], Expr]) -> Expr:
    """The largest score(window) of the five windows that touch a block; 0 where none is finished by
    that many tokens.
    """
    windows = T.Bind(T.Select(tokens >= 2 * PAGE_SIZE, tokens // SEGMENT_SIZE - 1, 0))
    best = registers(1, value=0.0)
    with T.serial(WINDOWS) as j:
        window = T.Bind(block * SEGMENTS - 1 + j)
        with T.If(T.And(window >= 0, window < windows)), T.Then():
            T.buffer_store(best, T.max(best[0], score(window)), [0])
    return best[0]
