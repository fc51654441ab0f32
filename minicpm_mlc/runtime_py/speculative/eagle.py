"""Drafts of the bundle's own EAGLE head, which goes on from the model's features."""

from __future__ import annotations

import numpy as np

from ..cached_model import CachedModel
from ..draft_model import DraftModel
from ..token_tree import MAX_NODES
from .expand import expand
from .tree import Draft

WINDOW = 1024  # tokens that the head sees; MiniCPM4's report has it help both speed and acceptance


class EagleDrafter:
    """Keeps the features of tokens that the head has not read yet, the latest WINDOW of them."""

    def __init__(self, head: DraftModel, model: CachedModel) -> None:
        self._head, self._model = head, model
        self._features: list[np.ndarray] = []
        self._end = -1  # tokens that the model had when the last features came

    def begin(self) -> None:
        """The sequence was cut to what a new prompt shares with it."""
        self._features.clear()
        self._head.truncate(len(self._model))

    def cached(self, model: CachedModel) -> None:
        assert model.features is not None
        if self._end != len(model) - len(model.features):
            self._features.clear()  # tokens in between were not seen here
        self._features.append(model.features[-WINDOW:])
        self._end = len(model)
        while sum(map(len, self._features[1:])) >= WINDOW:
            del self._features[0]

    def draft(self, history: np.ndarray, depth: int, top_k: int, floor: float) -> Draft | None:
        """EAGLE-2's tree. None where the model's features are missing, or the context has no room for the tree."""
        room = min(self._model.sequence.context - len(self._model), MAX_NODES)
        if not self._features or self._end != len(self._model) or not room:
            return None
        root = int(history[-1])
        logits, hidden = self._head.extend(root, np.concatenate(self._features))
        self._features.clear()
        walk = _HeadWalk(self._head, hidden[None])
        return expand(root, logits, walk.step, min(depth, 1 + room // top_k), top_k, floor, self._head.token_ids)


class _HeadWalk:
    """The head's hidden states of one level, from which the next goes on."""

    def __init__(self, head: DraftModel, hidden: np.ndarray) -> None:
        self._head, self._hidden = head, hidden
        self._first = -1  # number of the level's first node; the row that `extend` gave is no node

    def step(self, token_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits after each token of a level, `rows` the nodes of the level before that they follow."""
        parents = self._first + rows
        logits, hidden = self._head.step(token_ids.tolist(), self._hidden[rows], parents.tolist())
        self._first = 0 if self._first < 0 else self._first + len(self._hidden)
        self._hidden = hidden
        return logits
