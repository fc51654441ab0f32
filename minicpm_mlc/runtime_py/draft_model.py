"""An EAGLE head over one cached sequence: the base's features go in, the likeliest next tokens
come out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Ids
from typing import NamedTuple

import numpy as np

from minicpm_mlc.runtime_py.draft_loop import new_tree
from minicpm_mlc.runtime_py.kv_cache import Sequence
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.speculative.tree import FREE_ROWS
from minicpm_mlc.runtime_py.token_tree import mask_words, tree_shape


class Proposed(NamedTuple):
    """What a head proposes after n rows, the likeliest first, and the hidden states float32 [n, H]
    that say so.
    """

    tokens: np.ndarray  # int32 [n, k], of the base's vocabulary
    values: np.ndarray  # float32 [n, k], their log-probabilities
    hidden: np.ndarray


class Grown(NamedTuple):
    """A draft tree in the making int32 [s, 3, n] (draft_loop.py), its tokens of the base's
    vocabulary, and the seconds that reading many rows took before it grew.
    """

    tree: np.ndarray
    read_seconds: float = 0.0


class DraftModel:
    """The draft head of a bundle, with a cache of its own that shares the base's page table.

    Its row i pairs the base's features of token i with token i + 1, so that `extend` proposes what
    follows the root, the token sampled last. `step` goes on from its own hidden states, a tree's
    depth at a time.
    """

    def __init__(self, cache: PagedCache, sequence: Sequence, window: int | None = None) -> None:
        """`sequence`: the base's, on pages of `cache`. `window`: how many tokens before the tree
        the head sees, at least; None: all.
        """
        self.window = window
        self._library = cache.library
        self._sequence = sequence
        self._pools = cache.draft_pools
        self._chunk = cache.library.manifest.prefill_chunk
        draft = cache.library.manifest.draft
        assert draft
        self._guesses: int = draft["top_k"]
        self._begin = 0  # the first cached row; it begins a page
        self._rows = 0  # the row after the last cached one
        self._first = 0  # the first row that is seen
        self._masks: list[int] = []  # of the draft tree's nodes

    def truncate(self, length: int) -> int:
        """Forgets the rows from `length` on, and those from the first page on that was exchanged;
        to be called when the sequence was cut back. Returns the row after the last one.
        """
        size = self._sequence.pool.page_size
        table = self._sequence.page_table
        self._rows = min(self._rows, length)
        for i in range(self._begin // size, -(-self._rows // size)):
            held = i * size + int(self._sequence.pool.drafted[table[i]])
            if held < min(self._rows, (i + 1) * size):
                self._rows = held
                break
        return self._rows

    def adopt(self, length: int) -> int:
        """Takes over the rows that the pages of the first `length` tokens hold, from whichever
        sequence; returns the row after the last one, 0 if there are none.
        """
        size = self._sequence.pool.page_size
        held = self._sequence.pool.drafted[self._sequence.page_table[: -(-length // size)]]
        full = length // size
        first = full
        while first and held[first - 1] == size:
            first -= 1
        rest = min(int(held[full]), length % size - 1) if length % size else 0
        if first == full and rest <= 0:
            return 0
        self._begin = first * size
        self._rows = full * size + max(rest, 0)
        return self._rows

    def extend(self, root: int, features: np.ndarray) -> Proposed:
        """Appends the rows of the sequence's last n tokens, whose features float32 [n, F] the base
        has given.

        `root` is the token that follows the sequence. Rows that were cached for these tokens are
        replaced. Where rows before them are missing, because their features were never given, the
        head sees nothing before the gap.

        Returns what comes after the root, one row, and the hidden state to step from.
        """
        return self._read(*self._placed(root, features))

    def grow(self, root: int, features: np.ndarray, levels: int, width: int, floor: float) -> Grown:
        """`extend`, and from there on the `width` likeliest nodes of each level, as far as the head
        has guesses, for so many levels, or until none reaches the probability `floor` where that
        can be seen. Raises ContextError where the context ends.
        """
        tokens, features, start = self._placed(root, features)
        tree = new_tree(levels, min(width, self._guesses))
        self._sequence.reserve(len(tree) - 1)
        many, seconds = 0, 0.0
        if len(tokens) >= FREE_ROWS:  # they are timed apart from the tree
            many, began = len(tokens) - 1, time.perf_counter()
            self._read(tokens[:many], features[:many], start)
            seconds = time.perf_counter() - began
        rows = self._rows_of(tokens[many:], features[many:], start + many)
        base = np.array([len(self._sequence) - self._first], np.int32)
        return Grown(self._library.draft_tree(*rows, base, tree, floor, self._pools), seconds)

    def _placed(self, root: int, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The rows to append: the tokens after them, their features, and the first one's place."""
        end = len(self._sequence)
        page = self._sequence.pool.page_size
        start = end - len(features)
        if not 0 <= start < end:
            raise ValueError(f"features of {len(features)} tokens for a sequence of {end}")
        seen = max(0, end - self.window) // page * page if self.window else 0
        if start < seen:
            features = features[seen - start :]
            start = self._begin = seen
        elif not self._begin <= start <= self._rows:
            # a gap: rows of no features fill up its last page
            self._begin = start // page * page
            missing = np.zeros((start - self._begin, features.shape[1]), np.float32)
            features = np.concatenate([missing, features])
            start = self._begin
        self._first = max(self._begin, seen)
        self._rows = end
        self._masks = []
        tokens = np.array([*self._sequence.tokens[start + 1 :], root], np.int32)
        self._note(start, end)
        return tokens, features, start

    def _read(self, tokens: np.ndarray, features: np.ndarray, start: int) -> Proposed:
        """Appends rows; what comes after the last of them."""
        parts = [slice(at, at + self._chunk) for at in range(0, len(tokens), self._chunk)]
        return [self._extend(tokens[p], features[p], start + p.start) for p in parts][-1]

    def _extend(self, tokens: np.ndarray, features: np.ndarray, start: int) -> Proposed:
        """One chunk of them."""
        last = np.array([len(tokens) - 1], np.int32)
        rows = self._rows_of(tokens, features, start)
        return self._proposed(*self._library.draft_extend(*rows, last, self._pools))

    def _rows_of(
        self, tokens: np.ndarray, features: np.ndarray, start: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows from `start` on as the head's functions take them."""
        positions = np.arange(start, start + len(tokens), dtype=np.int32)
        return tokens, features, positions, positions - self._first, self._table

    def _note(self, start: int, end: int) -> None:
        """The pages will hold the rows from one to another."""
        size = self._sequence.pool.page_size
        for i in range(start // size, -(-end // size)):
            page = self._sequence.page_table[i]
            self._sequence.pool.drafted[page] = min(size, end - i * size)

    def step(self, token_ids: Ids[int], hidden: np.ndarray, parents: Ids[int]) -> Proposed:
        """Runs n more nodes of a draft tree.

        `token_ids` are the nodes' tokens, `hidden` float32 [n, H] the states that proposed them.
        Nodes are numbered in the order of all steps since `extend`; a parent is such a number, or
        -1 where `extend` proposed the node.

        Returns what comes after each of them. Raises ContextError where the context ends,
        ValueError for more than 64 nodes in all.
        """
        depths, masks = tree_shape(parents, self._masks)
        base = len(self._sequence)
        old = len(self._masks)
        slots = self._sequence.reserve(old + len(masks))[old:] - self._first
        tree = np.array([base - self._first], np.int32), self._table, mask_words(masks)
        rows = np.array(token_ids, np.int32), np.asarray(hidden, np.float32), base + depths, slots
        out = self._library.draft_step(*rows, *tree, self._pools)
        self._masks = [*self._masks, *masks]
        return self._proposed(*out)

    def _proposed(self, ids: np.ndarray, values: np.ndarray, hidden: np.ndarray) -> Proposed:
        return Proposed(self._library.draft_ids.take(ids), values, hidden)

    @property
    def _table(self) -> np.ndarray:
        """The pages of the slots that the head sees; slots are counted from the first of them."""
        return self._sequence.page_table[self._first // self._sequence.pool.page_size :]
