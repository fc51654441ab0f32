"""Drafts of the bundle's own EAGLE head, which goes on from the model's features."""

from __future__ import annotations

import numpy as np

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.draft_model import DraftModel
from minicpm_mlc.runtime_py.kv_cache import common_prefix
from minicpm_mlc.runtime_py.speculative.grown import draft_of
from minicpm_mlc.runtime_py.speculative.tree import Draft
from minicpm_mlc.runtime_py.token_tree import MAX_NODES

# that the head sees: MiniCPM4's report finds that a window helps both speed and acceptance
WINDOW_TOKENS = 1024
# of a longer text that the head reads at once, at least; on the demo, reading all 1024 has 2 % more
# guesses accepted
READ_TOKENS = 64


class EagleDrafter:
    """Keeps the features of the latest tokens, whether the head has read them or not.

    The head's row i pairs the features of token i with token i + 1: it stands as long as both are
    the text's.
    """

    def __init__(self, head: DraftModel, model: CachedModel) -> None:
        self._head = head
        self._model = model
        self._page = model.sequence.pool.page_size
        self._most = READ_TOKENS + self._page
        self._features = np.empty((0, 0), np.float32)
        self._rows = 0  # of them that are kept
        self._end = 0  # tokens that the model had when the last ones came
        self._read = 0  # rows that the head has
        # the text as it was followed, with the root that was drafted from last
        self._tokens: list[int] = []
        # how many of them a new call's text is known to begin with; None: no new call
        self._shared: int | None = None
        self._cached = 0  # tokens that the new call's text began with, on whichever pages

    def begin(self) -> None:
        """The sequence was cut to what a new prompt shares with it, and calls before may have
        changed it unseen.
        """
        self._shared = common_prefix(self._tokens, self._model.sequence.tokens)
        self._rows -= min(self._rows, max(0, self._end - self._shared))
        self._end = min(self._end, self._shared)
        self._cached = len(self._model)

    def cached(self, model: CachedModel) -> None:
        """Keeps the features of the tokens that were appended."""
        features = model.features
        end = len(model)
        assert features is not None
        self._follow()
        if self._end != end - len(features):
            self._rows = 0  # tokens in between were not seen here
        self._end = end
        features = features[-self._most :]
        n = len(features)
        rows = self._rows
        if rows + n > len(self._features):
            rows = self._make_room(n, features.shape[1])
        # a copy: the library's memory is free for the next call
        self._features[rows : rows + n] = features
        self._rows = rows + n

    def _follow(self) -> None:
        """Takes in what the text has become; of the head's rows those stay whose tokens are still
        there.
        """
        tokens = self._model.sequence.tokens
        if self._shared is not None:
            shared = self._shared + common_prefix(
                self._tokens[self._shared :], tokens[self._shared :]
            )
            del self._tokens[shared:]
            self._read = self._head.truncate(min(self._read, max(0, shared - 1)))
            if not self._read:
                self._read = self._head.adopt(self._cached)
            self._shared = None
        self._tokens += tokens[len(self._tokens) :]

    def _make_room(self, n: int, width: int) -> int:
        """Moves what has to be kept beside n more rows to the front; returns how many rows that
        are.
        """
        if not self._features.size:
            self._features = np.empty((2 * self._most, width), np.float32)
        keep = min(self._rows, self._most - n)
        self._features[:keep] = self._features[self._rows - keep : self._rows]
        return keep

    def _unread(self) -> np.ndarray:
        """The features to read, float32 [n, F]: all, or of many those of the last READ_TOKENS
        tokens and what is before them in their page.
        """
        lacking = self._end - self._read
        n = min(lacking, self._rows)
        if n > self._most:
            n = self._end - (self._end - READ_TOKENS) // self._page * self._page
        unread = self._features[self._rows - n : self._rows]
        if n == lacking - 1:
            # a row whose next token is another one now: better without features than a gap
            unread = np.concatenate([np.zeros_like(unread[:1]), unread])
        return unread

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None = None
    ) -> Draft | None:
        """EAGLE-2's tree. None where the model's features are missing, or the context has no room
        for the tree.
        """
        room = min(self._model.sequence.room, MAX_NODES)
        self._follow()
        if not self._rows or self._end != len(self._model) or not room:
            return None
        root = int(history[-1])
        unread = self._unread()
        levels = max(1, min(depth, 1 + room // top_k))
        tree, seconds = self._head.grow(root, unread, levels, top_k, floor)
        self._read = self._end
        self._tokens[self._end :] = [root]
        return draft_of(root, tree, floor, len(unread), seconds)
