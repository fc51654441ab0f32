"""Drafts of the bundle's own EAGLE head, which goes on from the model's features."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..cached_model import CachedModel
from ..draft_model import DraftModel
from ..token_tree import MAX_NODES
from .expand import Guesses, expand
from .tree import Draft

WINDOW = 1024  # tokens that the head sees; MiniCPM4's report has it help both speed and acceptance
READ = 64  # tokens at least of a longer text that it reads at once; reading all 1024 has 2 % more accepted, on the demo

FEW = 16  # rows that take about as long as one


class EagleDrafter:
    """Keeps the features of tokens that the head has not read yet, the latest ones."""

    def __init__(self, head: DraftModel, model: CachedModel) -> None:
        self._head, self._model = head, model
        self._page = model.sequence.pool.page_size
        self._most = READ + self._page
        self._features = np.empty((0, 0), np.float32)
        self._rows = 0  # of them that are to be read
        self._end = -1  # tokens that the model had when the last features came

    def begin(self) -> None:
        """The sequence was cut to what a new prompt shares with it."""
        self._rows = 0
        self._head.truncate(len(self._model))

    def cached(self, model: CachedModel) -> None:
        features, end = model.features, len(model)
        assert features is not None
        if self._end != end - len(features):
            self._rows = 0  # tokens in between were not seen here
        self._end = end
        features = features[-self._most :]
        n, rows = len(features), self._rows
        if rows + n > len(self._features):
            rows = self._make_room(n, features.shape[1])
        self._features[rows : rows + n] = features  # a copy: the library's memory is free for the next call
        self._rows = rows + n

    def _make_room(self, n: int, width: int) -> int:
        """Moves what has to be kept beside n more rows to the front; returns how many rows that are."""
        if not self._features.size:
            self._features = np.empty((2 * self._most, width), np.float32)
        keep = min(self._rows, self._most - n)
        self._features[:keep] = self._features[self._rows - keep : self._rows]
        return keep

    def _unread(self) -> np.ndarray:
        """The features to read: all, or of many those from READ tokens back on, and what is before them in their page."""
        rows, self._rows = self._rows, 0
        most = rows if rows <= self._most else self._end - (self._end - READ) // self._page * self._page
        return self._features[rows - most : rows]

    def draft(self, history: np.ndarray, depth: int, top_k: int, floor: float) -> Draft | None:
        """EAGLE-2's tree. None where the model's features are missing, or the context has no room for the tree."""
        room = min(self._model.sequence.context - len(self._model), MAX_NODES)
        if not self._rows or self._end != len(self._model) or not room:
            return None
        root = int(history[-1])
        start, unread = time.perf_counter(), self._unread()
        proposed = self._head.extend(root, unread)
        read_seconds = time.perf_counter() - start if len(unread) > FEW else 0.0
        walk = _HeadWalk(self._head, proposed.hidden)
        after = (proposed.values, proposed.tokens)
        draft = expand(root, after, walk.step, min(depth, 1 + room // top_k), top_k, floor)
        return replace(draft, read_seconds=read_seconds)


class _HeadWalk:
    """The head's hidden states of one level, from which the next goes on."""

    def __init__(self, head: DraftModel, hidden: np.ndarray) -> None:
        self._head, self._hidden = head, hidden
        self._first = -1  # number of the level's first node; the row that `extend` gave is no node

    def step(self, token_ids: list[int], rows: list[int]) -> Guesses:
        """What comes after each token of a level, `rows` the nodes of the level before that they follow."""
        proposed = self._head.step(token_ids, self._hidden.take(rows, 0), [self._first + row for row in rows])
        self._first = 0 if self._first < 0 else self._first + len(self._hidden)
        self._hidden = proposed.hidden
        return proposed.values, proposed.tokens
