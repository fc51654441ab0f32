"""One request, from its prompt's token ids to tokens and text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress

import numpy as np

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream
from minicpm_mlc.runtime_py.chat.think_budget import CLOSING, ThinkBudget
from minicpm_mlc.runtime_py.request import Request, Stats
from minicpm_mlc.runtime_py.sampler import Sampler
from minicpm_mlc.runtime_py.speculative.policy import Policy
from minicpm_mlc.runtime_py.speculative.steps import Drafter, Steps
from minicpm_mlc.runtime_py.turns import Turn


class Generation:
    """Answers one request on one cached sequence, once: by `pieces` of text, by `tokens`, or step
    by step while `running`.

    `stats` are its figures, updated while it runs; `block_reads` int64 [blocks] counts, over its
    decode steps, how often each block of the sequence was chosen by its score.
    """

    def __init__(
        self,
        request: Request,
        model: CachedModel,
        drafters: Mapping[str, Drafter],
        policy: Policy,
        turn: Callable[[Generation], AbstractContextManager[Turn]],
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        prefill_chunk: int,
    ) -> None:
        """`turn` lets it run: it may compute on `model` while it is inside. `prefill_chunk`: prompt
        tokens that are computed at once.
        """
        context = model.sequence.context
        self.request = request
        self.stats = Stats(prompt_tokens=len(request.token_ids), context=context)
        self.block_reads = np.zeros(-(-context // model.sequence.pool.page_size), np.int64)
        self.steps = Steps(
            model,
            drafters,
            policy,
            request.speculation,
            request.max_tokens,
            self.stats.speculation,
            self.block_reads,
        )
        self._model = model
        self._take_turn = turn
        self._turn: Turn | None = None  # while it runs
        self._sampler = Sampler(request.sampling, vocab_size, request.token_ids)
        self._eos_token_ids = eos_token_ids
        self._prefill_chunk = prefill_chunk
        self._forced: deque[int] = deque()  # tokens that come before what the model would say
        self.logits = np.empty(0, np.float32)  # [vocab]: what the last token was drawn from
        self.end_token: int | None = None  # the end token that was drawn

    def force(self, token_ids: Iterable[int]) -> None:
        """These tokens come next, whatever the model would say."""
        self._forced.extend(token_ids)

    def pieces(
        self,
        tokenizer: Tokenizer,
        budget: ThinkBudget | None = None,
        stops: StopStrings | AnswerStops | None = None,
    ) -> Generator[str]:
        """A piece of text for each token, often empty, up to a stop string. A spent budget closes
        the think block. `stops`: None takes the request's, anywhere in the text.
        """
        text = TextStream(tokenizer, self.request.token_ids)
        stops = stops or StopStrings(self.request.stop, tokenizer.hidden)
        if budget and budget.start():
            self._forced.extend(tokenizer.encode_middle(CLOSING))
            budget = None
        with closing(self.tokens()) as tokens:
            for token_id in tokens:
                said = text.feed(token_id)
                if budget and budget.spend(said, text.at_border):
                    self._forced.extend(tokenizer.encode_middle(CLOSING))
                    budget = None
                yield stops.feed(said + stops.mark(token_id))
                if stops.stopped:
                    break
            else:
                yield stops.feed(text.finish())
        if stops.stopped:
            self.stats.finish_reason = "stop"
        else:
            yield stops.finish()

    def tokens(self) -> Generator[int]:
        """Token ids up to an end token or a limit.

        Raises EngineError if another call took the turn since the last token.
        """
        stats = self.stats
        with self.running() as (turn, logits):
            while stats.finish_reason is None:
                self.logits = logits
                with stats.timing("decode_seconds"):
                    token_id = self._forced.popleft() if self._forced else self._draw(logits)
                if token_id in self._eos_token_ids:
                    self.end_token = token_id
                    stats.finish_reason = "stop"
                    return
                self._sampler.accept(token_id)
                if self.request.constraint:
                    self.request.constraint.accept(token_id)
                stats.generated_tokens += 1
                yield token_id
                turn.check()
                stats.finish_reason = self._limit_reached()
                if stats.finish_reason is None:
                    logits = self._decode(token_id)

    @contextmanager
    def running(self) -> Iterator[tuple[Turn, np.ndarray]]:
        """Takes the turn and computes the prompt; yields the turn and the logits float32 [vocab]
        after the prompt.

        At the end the cache holds what plain decoding would have left there.
        """
        with self._take_turn(self) as turn:
            self._turn = turn
            try:
                yield turn, self._prefill(turn)
            finally:
                # refused: the sequence belongs to another call by now, or the engine is closed
                with suppress(EngineError):
                    turn.check()
                    with self.stats.timing("decode_seconds"):
                        self.steps.close()

    def resting(self) -> AbstractContextManager[None]:
        """Whoever reads it is at something else: other calls may take the turn."""
        return self._turn.resting() if self._turn else nullcontext()

    def _prefill(self, turn: Turn) -> np.ndarray:
        """Computes what the cache lacks of the prompt, at least its last token; returns that one's
        logits, float32 [vocab].
        """
        request = self.request
        stats = self.stats
        stats.cached_tokens = self._model.sequence.reuse(request.token_ids[:-1])
        self.steps.begin()
        new = request.token_ids[stats.cached_tokens :]
        last = np.empty((0, 0))
        with stats.timing("prefill_seconds"):
            for done, logits in self._model.prefill(new, self._prefill_chunk):
                last = logits
                self.steps.prefilled()
                self._note_context()
                if request.on_prefill:
                    with turn.calling_back():
                        request.on_prefill(done, len(new))
        return last[-1]

    def _draw(self, logits: np.ndarray) -> int:
        constraint = self.request.constraint
        return self._sampler.sample(constraint.apply(logits) if constraint else logits)

    def _decode(self, token_id: int) -> np.ndarray:
        """Logits float32 [vocab] after one more token."""
        with self.stats.timing("decode_seconds"):
            logits = self.steps.next(token_id)
        self.stats.decode_steps += 1
        self._note_context()
        return logits

    def _note_context(self) -> None:
        stats = self.stats
        gears = self._model.gears
        length = stats.context_used = len(self.steps)
        stats.attention = "sparse" if gears.sparse(length) else "dense"
        stats.blocks_read, stats.blocks = gears.blocks(length)

    def _limit_reached(self) -> str | None:
        if self.stats.generated_tokens == self.request.max_tokens:
            return "length"
        return "context" if len(self.steps) == self._model.sequence.context else None
