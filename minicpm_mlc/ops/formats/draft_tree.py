"""A draft tree in the making, int32 [s, 3, n], and one of its levels in a kernel, on any kind of
device.

Row 0 is the root's, row j + 1 that of the j-th node that the head has run. [row, 0] are the n
likeliest tokens after it, [row, 1] the bits of the float32 log-probabilities of the paths to them,
and [row, 2, 0] is the row's own node. Nodes are numbered by the guesses, row by row, from 1 on; the
root is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from minicpm_mlc.ops.formats.tree import MASK_WORDS
from minicpm_mlc.ops.tir import Buffer, Dims, Expr, T

TOKEN, REACH, NODE = PARTS = (0, 1, 2)  # of a row


class Level:
    """The r nodes of a level, a row of each of these buffers. Their n guesses each, `count` in all,
    are numbered row by row from 0 on.
    """

    def __init__(
        self, dims: Dims, vocab: int, buffers: Sequence[Buffer], outputs: Sequence[Buffer]
    ) -> None:
        """`buffers`: the operator's arguments but the hidden states, `outputs` likewise."""
        self.ids, self.values, self.positions, self.slots, base, *rest = buffers
        self.ancestors, self.vocabulary, self.tree = rest
        self.outputs, self.vocab = outputs, vocab
        self.n, self.rows, self.room = (
            T.Bind(T.Cast("int32", size)) for size in (dims.n, dims.r, dims.s)
        )
        self.count = T.Bind(self.rows * self.n)
        self.base = T.Bind(base[0])

    def reach(self, guess: Expr) -> Expr:
        """float32 log-probability of the path to a guess."""
        row = T.Bind(guess // self.n)
        above = T.Bind(self.tree[self._row(row), NODE, 0] - 1)
        place = T.Bind(T.max(above, 0))  # the root has no guess above it, and reach 0
        bits = T.Bind(self.tree[place // self.n, REACH, place % self.n])
        before = T.reinterpret(T.Select(above < 0, 0, bits), dtype="float32")
        return T.Bind(before + self.values[row, guess % self.n])

    def note(self, guess: Expr, reach: Expr) -> None:
        """Writes a guess into the tree."""
        row, column = T.Bind(guess // self.n), T.Bind(guess % self.n)
        place = T.Bind(self._row(row))
        T.buffer_store(self.tree, self._token(row, column), [place, TOKEN, column])
        T.buffer_store(self.tree, T.reinterpret(reach, dtype="int32"), [place, REACH, column])

    def choose(self, place: Expr, guess: Expr) -> None:
        """Makes a guess the next level's node at a place."""
        tokens, positions, slots, ancestors = self.outputs
        row = T.Bind(guess // self.n)
        number = T.Bind(self._row(self.rows - 1) + place)  # of the nodes that were run
        T.buffer_store(tokens, self._token(row, T.Bind(guess % self.n)), [place])
        T.buffer_store(positions, self.positions[row] + 1, [place])
        T.buffer_store(slots, self.base + number, [place])
        for word in range(MASK_WORDS):
            own = T.Select((number // 32).equal(word), T.shift_left(1, number % 32), 0)
            paths = T.bitwise_or(self.ancestors[row, word], own)
            T.buffer_store(ancestors, paths, [place, word])
        with T.If(number + 1 < self.room), T.Then():
            node = self._row(row) * self.n + guess % self.n + 1
            T.buffer_store(self.tree, node, [number + 1, NODE, 0])

    def _row(self, row: Expr) -> Expr:
        """The tree's row of a node of this level."""
        return self.slots[row] - self.base + 1

    def _token(self, row: Expr, column: Expr) -> Expr:
        # a head whose numbers are NaN may name any id
        own = T.max(T.min(self.ids[row, column], self.vocab - 1), 0)
        return self.vocabulary[own]


def ordered(value: Expr) -> Expr:
    """int32 that order as float32 values do, a NaN beyond all numbers of its sign."""
    bits = T.Bind(T.reinterpret(value, dtype="int32"))
    return T.Bind(T.Select(bits < 0, T.bitwise_xor(bits, 0x7FFFFFFF), bits))
