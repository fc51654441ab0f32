"""Where the logits of each next token come from: a plain decode step, or a node of a tree that was
verified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.outputs import Row
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.policy import Policy, Round
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats
from minicpm_mlc.runtime_py.speculative.tree import Draft


class Drafter(Protocol):
    """Guesses what follows a text."""

    def begin(self) -> None:
        """A call begins; what is cached from now on is its own."""

    def cached(self, model: CachedModel) -> None:
        """Tokens were appended to the model's sequence; `model.features` are theirs."""

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None
    ) -> Draft | None:
        """A tree of at most `depth` levels after `history`, int32 [n], whose last token is the
        root.

        `read`: where the drafter has to read a text first, how many of its latest tokens at most;
            None: as it likes.
        """


@dataclass
class _Walk:
    """A verified tree, the logits float32 [nodes, vocab] after its nodes, and the path followed
    through it.
    """

    drafter: str
    draft: Draft
    logits: np.ndarray | DeviceRows
    draft_seconds: float
    verify_seconds: float
    choose_seconds: float
    path: list[int] = field(default_factory=lambda: [0])


class Steps:
    """One call's generation, token by token.

    A tree only decides whether a token's logits are there already. Tokens are drawn from the same
    logits, in the same order, with the same random numbers and penalties as without speculation, so
    that the text is the same.
    """

    def __init__(
        self,
        model: CachedModel,
        drafters: Mapping[str, Drafter],
        policy: Policy,
        options: Speculation,
        limit: int | None,
        stats: SpeculationStats,
        block_reads: np.ndarray,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`limit`: tokens that the call may give. `block_reads` int64 [blocks] counts the blocks
        that were chosen by score.
        """
        self._model = model
        self._drafters = drafters
        self._policy = policy
        self._options = options
        self._stats = stats
        self._clock = clock
        self._history = History()
        self._block_reads = block_reads
        self._drafting = bool(drafters) and options.speculate != "off"
        self._left = limit or model.sequence.context
        self._walk: _Walk | None = None
        self._joined = (
            False  # tokens came together with others': another text may have been drafted
        )
        self.on_round: Callable[[Round], None] | None = None

    def __len__(self) -> int:
        """Tokens whose keys and values are kept, those of the path being followed among them."""
        return len(self._model) + (len(self._walk.path) if self._walk else 0)

    def begin(self) -> None:
        """The prompt is about to be computed."""
        self._policy.begin()
        for drafter in self._drafters.values():
            drafter.begin()

    def cached(self) -> None:
        """Tokens were appended to the model's sequence."""
        if self._drafters:
            for name in self._policy.following(self._options):
                self._drafters[name].cached(self._model)

    def prefilled(self) -> None:
        """The prompt's next chunk was computed; who may draft in a later call sees it in any
        case.
        """
        self.cached()
        if self._drafting:
            # a long prompt is copied here, not in the first step
            self._history.up_to(self._model.sequence.tokens, 0)

    def next(self, token_id: int) -> Row:
        """Logits float32 [vocab] after one more token."""
        logits = self.followed(token_id)
        if logits is not None:
            return logits
        self._left -= 1
        return self._speculated(token_id) if self._drafting else self._decode(token_id)

    def followed(self, token_id: int) -> Row | None:
        """The logits after one more token where the tree has them; else the tree is left, and
        whoever asks appends the token: by `next`, or with other sequences' and `appended`.
        """
        walk = self._walk
        child = walk and walk.draft.tree.children.get((walk.path[-1], token_id))
        if walk is None or child is None:
            self.settle()
            return None
        self._left -= 1
        walk.path.append(child)
        return walk.logits[child]

    def appended(self) -> None:
        """A token was appended to the model's sequence together with others'."""
        self._left -= 1
        self._stats.plain_steps += 1
        self._count_reads()
        self.cached()
        self._joined = True

    def settle(self) -> None:
        """Keeps the path that was followed; nothing else of the tree survives."""
        walk = self._walk
        self._walk = None  # forgotten first, so that an interrupted commit is not made twice
        if walk is None:
            return
        start = self._clock()
        self._model.commit(walk.path)
        commit_seconds = self._clock() - start
        self._count_reads()
        self.cached()
        other = walk.choose_seconds + self._clock() - start
        round = Round(
            walk.drafter, walk.draft, walk.path, walk.draft_seconds, walk.verify_seconds, other
        )
        self._policy.finished(round)
        self._stats.add(round, commit_seconds)
        if self.on_round:
            self.on_round(round)

    def close(self) -> None:
        """The call is over: the cache holds what plain decoding would have left there."""
        self.settle()
        if self._drafting:
            self._stats.decision = self._policy.describe()

    def _decode(self, token_id: int) -> Row:
        logits = self._model.step(token_id)
        self._stats.plain_steps += 1
        self._count_reads()
        return logits

    def _count_reads(self) -> None:
        if selected := self._model.selected:
            blocks = self._model.gears.chosen_by_score(selected)
            self._block_reads += np.bincount(blocks, minlength=len(self._block_reads))

    def _speculated(self, token_id: int) -> Row:
        if self._policy.sleeps(self._options):
            logits = self._decode(token_id)
            self.cached()
            return logits
        room = min(self._left, self._model.sequence.room)
        names = self._policy.drafters(self._options) if room > 1 else []
        walk = self._propose(names, token_id) if names else None
        if walk is not None:
            return walk.logits[0]
        start = self._clock()
        logits = self._decode(token_id)
        self.cached()
        self._policy.decoded(self._clock() - start)
        return logits

    def _propose(self, names: list[str], token_id: int) -> _Walk | None:
        """Verifies the tree of the first drafter that has one worth it."""
        room = self._model.sequence.room
        deepest = min(room, self._left) - 1
        start = self._clock()
        if self._joined:
            self._joined = False
            for drafter in self._drafters.values():
                drafter.begin()
        history = self._history.up_to(self._model.sequence.tokens, token_id)
        for name in names:
            plan = self._policy.plan(name, self._options)
            drafting = self._clock()
            draft = self._drafters[name].draft(
                history, min(plan.depth, deepest), plan.top_k, plan.floor, plan.read
            )
            drafted = self._clock()
            self._stats.draft_seconds += drafted - drafting
            self._stats.host_seconds += drafting - start
            self._policy.drafted(name, draft, drafted - drafting)
            cut = draft and self._policy.cut(name, draft, self._options, room)
            if cut and not (len(names) > 1 and self._policy.prefers_another(name, cut)):
                return self._verify(name, cut, drafted - drafting, self._clock() - drafted)
            self._policy.missed(name, drafted - start - (draft.reading if draft else 0.0))
            start = drafted
        self._stats.host_seconds += self._clock() - start
        return None

    def _verify(
        self, name: str, draft: Draft, draft_seconds: float, choose_seconds: float
    ) -> _Walk:
        start = self._clock()
        logits, _ = self._model.verify(draft.tree.token_ids, draft.tree.parents)
        self._walk = _Walk(
            name, draft, logits, draft_seconds, self._clock() - start, choose_seconds
        )
        return self._walk


class History:
    """The text so far as one array, kept from step to step."""

    def __init__(self) -> None:
        self._tokens = np.empty(1024, np.int32)
        self._length = 0

    def up_to(self, cached: list[int], root: int) -> np.ndarray:
        """int32 [n + 1]: the n cached tokens, of which those seen before have not changed, and the
        root.
        """
        n = len(cached)
        if n + 1 > len(self._tokens):
            self._tokens = np.concatenate(
                [self._tokens[: self._length], np.empty(n + 1024, np.int32)]
            )
        self._tokens[self._length : n] = cached[self._length :]
        self._tokens[n] = root
        self._length = n
        return self._tokens[: n + 1]
