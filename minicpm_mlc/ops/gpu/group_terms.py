"""Scales and minimums of four neighbouring rows, in one load each where they are float16."""

from __future__ import annotations

from collections.abc import Mapping

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer
from minicpm_mlc.ops.gpu.intrinsics import half_bits_to_float
from minicpm_mlc.ops.gpu.kernel import registers
from minicpm_mlc.ops.tir import Buffer, Expr, T

ROWS = 4  # of a block, that are read at once
ACROSS = LANES // ROWS


class GroupTerms:
    """Those of one weight matrix; made outside of workgroups."""

    def __init__(self, scheme: Scheme, stored: Stored, blocks: int, k: int) -> None:
        self.scheme, self.stored = scheme, stored
        self.words = {
            t.name: as_words(stored[t.name], (blocks, t.width(k) * LANES // 2))
            for t in (() if scheme.leveled else scheme.group_tensors)
        }

    @property
    def whole_words(self) -> bool:
        """Whether each tensor has one float16 for a row's group of 32 columns."""
        return bool(self.words) and self.scheme.group == GROUP

    def four_from(self, words: Mapping[str, Buffer], start: Expr) -> list[Terms]:
        """Of four neighbouring rows, whose float16 lie in other words by name, from `start` on."""
        four = {name: _halves_at(words[name], (), start) for name in self.words}
        return [Terms(*(four[name][r] for name in four)) for r in range(ROWS)]

    def four(self, block: Expr, g: Expr, q: Expr) -> list[list[Terms]]:
        """Of rows 4 q .. 4 q + 3 of a block: each one's of 32 columns, or of both their halves."""
        halves = range(self.scheme.halves)
        if self.scheme.leveled:
            return [
                [
                    self.scheme.terms(self.stored, block, g, q * ROWS + r, half=half).bound()
                    for half in halves
                ]
                for r in range(ROWS)
            ]
        found = [self._half(block, self._group(g, half), q) for half in halves]
        return [[half[r] for half in found] for r in range(ROWS)]

    def _group(self, g: Expr, half: int) -> Expr:
        """The number of the group tensors' group."""
        halves, size = self.scheme.halves, self.scheme.group
        return g * halves + half if halves > 1 or not size else g * GROUP // size

    def _half(self, block: Expr, group: Expr, q: Expr) -> list[Terms]:
        at = T.Bind((group * ACROSS + q) * 2)
        four = {name: _halves_at(words, (block,), at) for name, words in self.words.items()}
        return [Terms(*(four[name][r] for name in four)) for r in range(ROWS)]


def as_words(buffer: Buffer, shape: tuple[int, int]) -> Buffer:
    """A buffer's memory as uint32; made outside of workgroups."""
    data = buffer.bits.data if isinstance(buffer, HalfBuffer) else buffer.data
    pointer = T.Bind(T.reinterpret(data, dtype=T.handle("uint32").ty))
    return T.decl_buffer(shape, "uint32", data=pointer)


def _halves_at(words: Buffer, index: tuple[Expr, ...], start: Expr) -> list[Expr]:
    """float32 of four neighbouring rows' float16, in two words from words[index, start] on."""
    pair = registers(2, "uint32")
    T.buffer_store(pair, words[(*index, T.ramp(start, 1, 2))], [T.ramp(0, 1, 2)])
    return [
        half_bits_to_float(T.shift_right(pair[r // 2], T.uint32(16 * (r % 2)))) for r in range(ROWS)
    ]
