"""Drafts of a second, smaller model with the same tokenizer."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import Bundle
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.bundle.tokenizer_file import TokenizerFile
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.kv_cache import common_prefix
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.protocols import Library, Machine
from minicpm_mlc.runtime_py.speculative.expand import Guesses, best_tokens, expand
from minicpm_mlc.runtime_py.speculative.tree import Draft

RECURRENT = (
    "{bundle} keeps state per sequence, which can't take back a wrong guess; leave speculation off"
)


class ModelDrafter:
    """Runs the smaller model on the text or on its end: a chain of its likeliest tokens, or a tree.

    Its cache may begin anywhere in the text and counts positions from there, as attention depends
    on distances alone.
    """

    def __init__(self, model: CachedModel, chunk: int) -> None:
        """`chunk`: tokens of the text that are read at once."""
        self._model = model
        self._chunk = chunk
        self._first = 0  # the token of the text that the cache begins with
        self._known = 0  # cached tokens that are known to be the text's

    @property
    def library(self) -> Library:
        """The smaller bundle's compiled functions."""
        return self._model.cache.library

    def begin(self) -> None:
        """The text may be another one now."""
        self._known = 0

    def cached(self, model: CachedModel) -> None:
        """Reads the text only when it drafts."""

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None = None
    ) -> Draft | None:
        """A tree of `depth` levels; a chain where `top_k` is 1. None where this model's context has
        no room, or the text has a token that this model's vocabulary lacks.

        Where more than `read` tokens are missing, only the latest `read` are read, and nothing
        before them is seen.
        """
        if depth >= self._model.sequence.context:
            return None
        start = time.perf_counter()
        unread = self._unread(history, depth, read)
        if max(unread) >= self.library.vocab_size:
            return None
        logits = [rows for _, rows in self._model.prefill(unread, self._chunk)][-1][-1]
        self._known += len(unread)
        seconds = time.perf_counter() - start
        logits_after = self._chain if top_k == 1 else _TreeWalk(self._model).step

        def step(token_ids: list[int], rows: list[int]) -> Guesses:
            after = logits_after(token_ids, rows)[:, : self.library.vocab_size]  # a GPU's are all
            return best_tokens(after, top_k)

        room = self._model.sequence.context - len(self._model)
        draft = expand(
            unread[-1],
            best_tokens(logits[None], top_k),
            step,
            min(depth, 1 + room // top_k),
            top_k,
            floor,
        )
        return replace(draft, read_tokens=len(unread), read_seconds=seconds)

    def _unread(self, history: np.ndarray, depth: int, read: int | None) -> list[int]:
        """What is to be appended to the cache, at least the last token; the rest of it is the
        text's from then on.
        """
        sequence = self._model.sequence
        n = len(history)
        read = n if read is None else min(read, n)
        if read + depth > sequence.context:
            read = sequence.context // 2  # so that there is room to follow the text
        rest = history[self._first + self._known : -1].tolist()
        self._known += common_prefix(sequence.tokens[self._known :], rest)
        seen = n - self._first  # with the unread ones
        sees_more = self._first and read >= min(n, 2 * seen)
        if (
            not self._known
            or seen - self._known > read
            or seen + depth > sequence.context
            or sees_more
        ):
            self._first = n - read
            self._known = 0
        self._known = sequence.truncate(self._known)
        return history[self._first + self._known :].tolist()

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
        """Logits after each token of a level, `rows` the nodes of the level before that they
        follow.
        """
        n = len(token_ids)
        first = len(self._tokens) - self._level
        self._parents += [first + row for row in rows] if self._tokens else [-1] * n
        self._tokens += token_ids
        self._level = n
        return self._model.verify(self._tokens, self._parents)[0][-n:]


def open_draft_bundle(
    machine: Machine, path: Path, ours: Bundle, context: int, threads: int
) -> ModelDrafter:
    """The bundle at `path` on this machine, to draft for another one, which is open with this
    context. Raises BundleError where it can't.
    """
    bundle = machine.read_bundle(path)
    if ours.manifest.recurrent or bundle.manifest.recurrent:
        kept = ours.path if ours.manifest.recurrent else path
        raise BundleError(f"--draft-model {path}: {RECURRENT.format(bundle=kept)}")
    check_same_tokenizer(ours.path, bundle.path)
    context = min(context, bundle.manifest.max_context)
    library = machine.open_library(bundle, threads)
    # it proposes our ids alone
    library.vocab_size = min(library.vocab_size, ours.manifest.model["vocab_size"])
    cache = PagedCache(library, context)
    model = CachedModel(cache, context, Gears.of(bundle.manifest, "auto"))
    return ModelDrafter(model, bundle.manifest.prefill_chunk)


def check_same_tokenizer(bundle: Path, draft: Path) -> None:
    """Raises BundleError unless both bundles give every token the same id and text."""
    ours, theirs = (_vocabulary(path) for path in (bundle, draft))
    if ours != theirs:
        raise BundleError(
            f"{draft} can't draft for {bundle}: its tokenizer gives tokens other ids; give a "
            "bundle of the same family"
        )


def _vocabulary(bundle: Path) -> TokenizerFile:
    """What a bundle's tokenizer.json says of its tokens. Raises BundleError."""
    tokenizer = SmallFiles(bundle).tokenizer
    if tokenizer is None:
        raise BundleError(f"{bundle} has no tokenizer.json, so drafts can't be compared by token")
    return tokenizer
