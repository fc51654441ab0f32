"""Drafts of a second, smaller model with the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BundleError
from ..cached_model import CachedModel
from .expand import Guesses, best_tokens, expand
from .tree import Draft


class ModelDrafter:
    """Runs the smaller model on the text: a chain of its likeliest tokens, or a tree."""

    def __init__(self, library: Any, model: CachedModel, chunk: int) -> None:
        self.library, self._model, self._chunk = library, model, chunk

    def begin(self) -> None:
        pass

    def cached(self, model: CachedModel) -> None:
        pass

    def draft(self, history: np.ndarray, depth: int, top_k: int, floor: float) -> Draft | None:
        """A tree of `depth` levels; a chain where `top_k` is 1. None where this model's context has no room."""
        room = self._model.sequence.context - len(history)
        if room < depth:
            return None
        tokens = history.tolist()
        self._model.sequence.reuse(tokens[:-1])
        logits = [rows for _, rows in self._model.prefill(tokens[len(self._model) :], self._chunk)][-1][-1]
        logits_after = self._chain if top_k == 1 else _TreeWalk(self._model).step

        def step(token_ids: list[int], rows: list[int]) -> Guesses:
            return best_tokens(logits_after(token_ids, rows), top_k)

        after = best_tokens(logits[None], top_k)
        return expand(tokens[-1], after, step, min(depth, 1 + room // top_k), top_k, floor)

    def _chain(self, token_ids: list[int], _: list[int]) -> np.ndarray:
        return self._model.decode(token_ids[0])[None]


class _TreeWalk:
    """A growing forest after the cached tokens, verified whole at each level and never kept."""

    def __init__(self, model: CachedModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._level = 0  # nodes of the level before

    def step(self, token_ids: list[int], rows: list[int]) -> np.ndarray:
        """Logits after each token of a level, `rows` the nodes of the level before that they follow."""
        n = len(token_ids)
        first = len(self._tokens) - self._level
        self._parents += [first + row for row in rows] if self._tokens else [-1] * n
        self._tokens += token_ids
        self._level = n
        return self._model.verify(self._tokens, self._parents)[0][-n:]


def check_same_tokenizer(bundle: Path, draft: Path) -> None:
    """Raises BundleError unless both bundles give every token the same id and text."""
    ours, theirs = (_vocabulary(path) for path in (bundle, draft))
    if ours != theirs:
        raise BundleError(
            f"{draft} can't draft for {bundle}: its tokenizer gives tokens other ids; give a bundle of the same family"
        )


def _vocabulary(bundle: Path) -> tuple[object, object]:
    try:
        tokenizer = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
        return tokenizer["model"]["vocab"], [(t["id"], t["content"]) for t in tokenizer["added_tokens"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle / 'tokenizer.json'} can't be read ({error!r}); compile the checkpoint again") from None
