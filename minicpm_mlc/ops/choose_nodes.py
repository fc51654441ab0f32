"""From one level of a draft tree to the next: which guesses of a draft head are worth going on
from, and what the head reads there. With it a tree grows where the head runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.draft_tree import NODE, PARTS, REACH, TOKEN
from minicpm_mlc.ops.formats.tree import MASK_WORDS, MAX_NODES, ancestor_masks
from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes, updates
from minicpm_mlc.ops.samples import Draw, Sample, sample

PERIOD = 61  # tokens that differ


def ordered(values: np.ndarray) -> np.ndarray:
    """int32 that order as float32 values do, a NaN beyond all numbers of its sign."""
    bits = values.view(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def reach_before(tree: np.ndarray, row: int) -> np.float32:
    """Log-probability of the path to the node of a row; the root's is 0."""
    guess = int(tree[row, NODE, 0]) - 1
    n = tree.shape[2]
    return np.float32(0) if guess < 0 else tree[guess // n, REACH, guess % n].view(np.float32)


@dataclass(frozen=True)
class ChooseNodes(Operator):
    """Writes the n likeliest guesses after each of the r nodes of a level into the tree
    (formats/draft_tree.py), and chooses the n nodes with the likeliest paths, ties to the lower
    number: the next level.

    `guesses`: how many the head gives for a row, at least n. Its ids name the base's tokens in
    `vocabulary`. Of the chosen nodes come out their tokens, the hidden states float32 that proposed
    them, positions, slots and ancestors, and their nodes into the tree where it has rows for them.
    """

    limit: ClassVar[float] = EXACT
    grid_limit: ClassVar[float] = EXACT
    vocab: int
    hidden: int
    guesses: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "ids": takes("int32", "r", self.guesses),
            "values": takes("float32", "r", self.guesses),
            "hidden": takes("float32", "r", self.hidden),
            "positions": takes("int32", "r"),
            "slots": takes("int32", "r"),
            "base": takes("int32", 1),
            "ancestors": takes("int32", "r", MASK_WORDS),
            "vocabulary": takes("int32", self.vocab),
            "tree": updates("int32", "s", len(PARTS), "n"),
            "token_ids": gives("int32", "n"),
            "next_hidden": gives("float32", "n", self.hidden),
            "next_positions": gives("int32", "n"),
            "next_slots": gives("int32", "n"),
            "next_ancestors": gives("int32", "n", MASK_WORDS),
        }

    def define(
        self,
        ids: np.ndarray,
        values: np.ndarray,
        hidden: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        base: np.ndarray,
        ancestors: np.ndarray,
        vocabulary: np.ndarray,
        tree: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        n, rows = tree.shape[2], slots - base[0] + 1
        before = np.array([reach_before(tree, row) for row in rows], np.float32)
        reach = before[:, None] + values[:, :n]
        tree[rows, TOKEN] = vocabulary[ids[:, :n].clip(0, self.vocab - 1)]
        tree[rows, REACH] = reach.view(np.int32)
        best = np.argsort(-ordered(reach).astype(np.int64), axis=None, kind="stable")[:n]
        origin, guess = best // n, best % n
        numbers = rows[-1] + np.arange(n)
        there = numbers + 1 < len(tree)
        tree[numbers[there] + 1, NODE, 0] = (rows[origin] * n + guess + 1)[there]
        own = np.where(numbers < MAX_NODES, np.uint64(1) << (numbers % MAX_NODES).astype("u8"), 0)
        paths = ancestors[origin].view("<u8")[:, 0] | own.astype("u8")
        tokens, masks = tree[rows[origin], TOKEN, guess], paths.view("<i4").reshape(-1, MASK_WORDS)
        return tokens, hidden[origin], positions[origin] + 1, base + numbers, masks

    def samples(self, draw: Draw) -> Iterator[Sample]:
        most = min(self.guesses, MAX_NODES // 4)
        shapes = [(n, level) for n in (1, 4, most) for level in (0, 1, 3)]
        for n, level in shapes if draw.whole else [(min(4, most), 0), (min(4, most), 2)]:
            yield self._level(draw, n, level)

    def _level(self, draw: Draw, n: int, level: int) -> Sample:
        """The nodes of a level, 0 the root's, of a tree that has room for three."""
        rows, base, size = n if level else 1, 100, 1 + 3 * n
        random = draw.generator((n, level))
        tree = np.zeros((size, len(PARTS), n), np.int32)
        tree[:, REACH] = (-random.random((size, n), np.float32)).view(np.int32)
        parents = [-1] * (level * n)  # of the nodes that were run
        for node in range(level * n):
            above = random.integers(n) + (node // n - 1) * n + 1 if node >= n else 0
            tree[node + 1, NODE, 0] = above * n + random.integers(n) + 1
            parents[node] = int(above) - 1
        masks = ancestor_masks(parents)[-n:] if level else np.zeros((1, MASK_WORDS), np.int32)
        values = -random.integers(0, 9, (rows, self.guesses)).astype(np.float32)  # some are equal
        ids = random.integers(0, self.vocab, (rows, self.guesses)).astype(np.int32)
        slots = np.arange(base + level * n - rows, base + level * n, dtype=np.int32)
        positions = np.full(rows, 300 + level, np.int32)
        vocabulary = Tiled(np.arange(min(PERIOD, self.vocab), dtype=np.int32), (self.vocab,))
        few = map(Tiled.whole, (positions, slots, np.array([base], np.int32), masks))
        head = Tiled.whole(ids), Tiled.whole(values), draw.normal(rows, self.hidden)
        return sample(*head, *few, vocabulary, Tiled.whole(tree))

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([each.ravel().astype(np.float64) for each in arguments[-6:]])

    @classmethod
    def variants(cls) -> Iterator[ChooseNodes]:
        yield from (cls(100, 64, 16), cls(1091, 96, 7))
