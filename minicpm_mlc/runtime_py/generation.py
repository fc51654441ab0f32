"""One request, from its prompt's token ids to tokens, a step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.events import Scored
from minicpm_mlc.runtime_py.outputs import Row
from minicpm_mlc.runtime_py.prompt_scores import PromptScores
from minicpm_mlc.runtime_py.request import Request, Stats, Timing
from minicpm_mlc.runtime_py.sampler import Sampler
from minicpm_mlc.runtime_py.scores import score, scores
from minicpm_mlc.runtime_py.slots import Slot
from minicpm_mlc.runtime_py.speculative.steps import Steps
from minicpm_mlc.runtime_py.spent import Spent, spent_in

NO_LOGITS = np.empty(0, np.float32)
REPLAYED = 32  # tokens of an answer that are computed again at once, as a tree that is one path


class TokenReader(Protocol):
    """What becomes of the tokens: see `events.Reader`, whose events may be anything here."""

    @property
    def stop(self) -> str | None:
        """The stop string that came."""

    def forced(self) -> Sequence[int]:
        """Tokens that come next in place of drawn ones."""
        ...

    def feed(self, token: Scored) -> Iterable[object]:
        """What this token gives."""
        ...

    def finish(self) -> Iterable[object]:
        """What was held back."""
        ...


class Ids:
    """The reader of who wants nothing but the tokens' ids."""

    stop = None

    def forced(self) -> Sequence[int]:
        """None."""
        return ()

    def feed(self, token: Scored) -> Iterable[int]:
        """The id."""
        return (token.token_id,)

    def finish(self) -> Iterable[int]:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class Limits:
    """What an engine's generations have in common. `prefill_chunk`: prompt tokens that are computed
    at once; `scored`: prompts whose scores are known.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    prefill_chunk: int
    scored: PromptScores = field(default_factory=PromptScores)


class Generation:
    """Answers one request, for whoever runs it: `place` on a sequence, `prefill` until nothing is
    missing, then `draw` and append the token in turn, until `ended`; `close` in the end. A
    generation that has to wait is closed and placed again.

    `stats` are its figures, updated while it runs; `block_reads` int64 [blocks] counts, over its
    decode steps, how often each block of the sequence was chosen by its score.
    """

    def __init__(
        self, request: Request, context: int, page_size: int, limits: Limits, reader: TokenReader
    ) -> None:
        """`context`: the most tokens of the sequence that it will have."""
        self.request = request
        self.stats = Stats(prompt_tokens=len(request.token_ids), context=context)
        self.block_reads = np.zeros(-(-context // page_size), np.int64)
        self.prompt_scores: list[Scored] = []
        self.end_token: Scored | None = None  # the one that was drawn
        self.reader = reader
        self.limits = limits
        self._sampler = Sampler(request.sampling, limits.vocab_size, request.token_ids)
        self._forced = deque(reader.forced())  # tokens that come in place of drawn ones
        self._said: list[int] = []  # the last of them is not in the cache yet
        self._logits: Row = NO_LOGITS  # [vocab] after the text, until the next token is accepted
        self._cached = 0  # tokens that were there when it was placed
        self._calls: Spent | None = None  # of the library that it is placed on
        self.steps: Steps
        self.model: CachedModel

    def __len__(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.request.token_ids) + len(self._said)

    @property
    def fresh(self) -> bool:
        """Whether no token was drawn yet."""
        return not self._said

    @property
    def ended(self) -> bool:
        """Whether no more tokens come."""
        return self.stats.finish_reason is not None

    @property
    def reusable(self) -> list[int]:
        """The tokens that a cache may have of its text: what comes after the last of them is yet to
        be computed.
        """
        prompt = self.request.token_ids
        if self.request.echo and self.fresh:
            # the logits that say the score of the first unknown token are wanted
            return prompt[: max(0, len(self._known_scores()) - 1)]
        return [*prompt, *self._said[:-1]] if self._said else prompt[:-1]

    def place(self, slot: Slot) -> None:
        """Runs on this slot from now on, whose sequence is a beginning of `reusable`."""
        request = self.request
        self.model = slot.model
        left = request.max_tokens and request.max_tokens - len(self._said)
        self.steps = Steps(
            slot.model,
            slot.drafters,
            slot.policy,
            request.speculation,
            left,
            self.stats.speculation,
            self.block_reads,
        )
        self._calls = spent_in(slot.model.cache.library)
        self._cached = len(slot.model)
        if self.fresh:
            self.stats.cached_tokens = self._cached
            if request.echo:
                known = self._known_scores()[: self._cached + 1]
                self.prompt_scores = known or [Scored(request.token_ids[0])]
        self.steps.begin()

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens of the prompt that are computed, of those that were to be."""
        return len(self.model) - self._cached, len(self.request.token_ids) - self._cached

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be drawn or appended."""
        return len(self) - (not self.fresh) - len(self.model)

    def prefill(self, most: int) -> None:
        """Computes some of the missing tokens: of the prompt a chunk of at most `most`."""
        done = len(self.model)
        prompt = self.request.token_ids
        with self.stats.timing("prefill_seconds"):
            if done < len(prompt):
                self._read(prompt[done : done + min(most, self.limits.prefill_chunk)])
                self.steps.prefilled()
            else:
                self._replay(self._said[done - len(prompt) : -1][: min(most, REPLAYED)])
        self._note_context()

    def draw(self) -> list[object]:
        """Draws the next token, and says what the reader made of it."""
        stats = self.stats
        if self.request.max_tokens == 0:
            return self._finish("length")
        with stats.timing("decode_seconds"):
            token_id = self._forced.popleft() if self._forced else self._sampled()
        token = self._scored(token_id)
        if token_id in self.limits.eos_token_ids:
            self.end_token = token
            return self._finish("stop")
        self._accept(token_id)
        told = list(self.reader.feed(token))
        self._forced.extend(self.reader.forced())
        limit = "stop" if self.reader.stop is not None else self._limit_reached()
        return told + self._finish(limit) if limit else told

    def follow(self) -> bool:
        """Whether a verified tree has the logits after the token drawn last."""
        with self._decoding():
            logits = self.steps.followed(self._said[-1])
        return logits is not None and self._appended(logits)

    def decode(self) -> None:
        """Appends the token drawn last, by a plain step or a tree to follow."""
        with self._decoding():
            logits = self.steps.next(self._said[-1])
        self._appended(logits)

    @property
    def pending(self) -> int:
        """The token drawn last, which is to be appended to `model`."""
        return self._said[-1]

    @property
    def sparse(self) -> bool:
        """Whether that token is decoded sparsely."""
        return self.model.gears.sparse(len(self.model) + 1)

    def decoded(self, logits: Row, seconds: float, spent: Spent) -> None:
        """The token drawn last was appended together with others', which took so long, and `spent`
        of that in the library; logits float32 [vocab].
        """
        self.steps.appended()
        self.stats.decode_seconds += seconds
        self.stats.spent.add(spent)
        self._appended(logits)

    def close(self) -> None:
        """The cache then holds what plain decoding would have left there."""
        with self._decoding():
            self.steps.close()

    def start(self, slot: Slot) -> Row:
        """Places it and computes all of the prompt; returns the logits float32 [vocab] after it."""
        slot.model.reuse(self.reusable)
        self.place(slot)
        while self.missing:
            self.prefill(self.limits.prefill_chunk)
        return self._logits

    def _decoding(self) -> Timing:
        return self.stats.timing("decode_seconds", self._calls)

    def _read(self, part: list[int]) -> None:
        request = self.request
        length = len(request.token_ids)
        sparse = self.model.gears.sparse(length)
        first = len(self.model)
        rows = self.model.prefill_chunk(part, sparse, all_rows=request.echo)
        self.stats.computed_tokens += len(part)
        self._logits = rows[-1]
        if request.echo and self.fresh:
            after = request.token_ids[first + 1 : first + 1 + len(part)]
            self.prompt_scores += scores(rows[: len(after)], after, request.logprobs or 0)
            if not self.missing:
                self.limits.scored.add(request.token_ids, request.logprobs or 0, self.prompt_scores)

    def _known_scores(self) -> list[Scored]:
        """Of the first tokens of the prompt; of those before a rest all."""
        known = self.limits.scored.find(self.request.token_ids, self.request.logprobs or 0)
        return max(known, self.prompt_scores, key=len)

    def _replay(self, part: list[int]) -> None:
        """Tokens that were decoded before: a path's nodes are computed as decode steps are."""
        self.model.verify(part, range(-1, len(part) - 1))
        self.model.commit(range(len(part)))
        self.steps.cached()

    def _sampled(self) -> int:
        constraint, logits = self.request.constraint, self._logits
        if self.request.logprobs is not None:
            logits = np.asarray(logits)  # all are read in any case
        return self._sampler.sample(constraint.apply(np.asarray(logits)) if constraint else logits)

    def _accept(self, token_id: int) -> None:
        self._logits = NO_LOGITS  # where they lie, the next step's may
        self._sampler.accept(token_id)
        if self.request.constraint:
            self.request.constraint.accept(token_id)
        self._said.append(token_id)
        self.stats.generated_tokens += 1

    def _scored(self, token_id: int) -> Scored:
        top = self.request.logprobs
        return Scored(token_id) if top is None else score(np.asarray(self._logits), token_id, top)

    def _appended(self, logits: Row) -> bool:
        self._logits = logits
        self.stats.decode_steps += 1
        self._note_context()
        return True

    def _finish(self, reason: str) -> list[object]:
        told = list(self.reader.finish())
        self.stats.finish_reason = reason if self.reader.stop is None else "stop"
        return told

    def _note_context(self) -> None:
        stats = self.stats
        gears = self.model.gears
        length = stats.context_used = len(self.steps)
        stats.attention = "sparse" if gears.sparse(length) else "dense"
        stats.blocks_read, stats.blocks = gears.blocks(length)

    def _limit_reached(self) -> str | None:
        if self.stats.generated_tokens == self.request.max_tokens:
            return "length"
        return "context" if len(self.steps) == self.model.sequence.context else None
