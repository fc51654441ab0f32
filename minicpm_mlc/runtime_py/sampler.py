"""From logits to the next token, in the order of transformers and vLLM:

1. repetition penalty: the logit of each token of prompt and answer, above 0 divided by it, below 0
   multiplied; then, per token of the answer, minus presence penalty, minus frequency penalty times
   its count.
2. temperature 0: the token with the largest logit, the lowest id among equals. Else every logit is
   divided by it.
3. top-k: the k largest, of equals the lower ids. Shares are those of the tokens that are left,
   summing to 1.
4. top-p: from the likeliest down, ties by id, a token stays if those before it sum to less than
   top-p.
5. min-p: a token stays if its share is min-p times the largest share or more.
6. A draw by the shares of what is left.

tests/sampling_definition.py is this, written out. The likeliest token always stays. Numbers of any
size have this meaning: what leaves the range of float64 stays at its end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.device_rows import DeviceRow
from minicpm_mlc.runtime_py.few_candidates import LEAST_TEMPERATURE, cut_tail
from minicpm_mlc.runtime_py.outputs import Row

_LARGEST = float(np.finfo(np.float64).max)
_TINY = float(np.finfo(np.float32).tiny)
_FEW = 2048  # tokens: selecting this many and sorting them costs less than sorting more
_WHOLE = 16  # tokens that are drawn from all logits once a device's few were not enough


class Sampler:
    """Draws the tokens of one answer: holds its random numbers and the tokens seen so far."""

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt_ids: Iterable[int] = ()
    ) -> None:
        self.params = params
        self._greedy = params.temperature == 0 and not params.penalises
        cuts = params.top_k or params.top_p < 1 or params.min_p
        self._cuts = bool(cuts) and not params.penalises and params.temperature > LEAST_TEMPERATURE
        self._whole = 0  # tokens to come for which a device's few aren't asked for
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._all = _all_ids(vocab_size)
        size = vocab_size if params.penalises else 0  # thousands of requests may wait
        self._counts = np.zeros(size, np.int32)  # in the answer
        self._seen = np.zeros(size, bool)  # in the prompt or the answer
        if size:
            self._seen[np.fromiter(prompt_ids, np.int64)] = True

    def accept(self, token_id: int) -> None:
        """Counts a token of the answer for the penalties to come."""
        if self.params.penalises:
            self._counts[token_id] += 1
            self._seen[token_id] = True

    def sample(self, logits: Row) -> int:
        """The next token id, drawn from logits float32 [vocab]; it counts for the penalties once
        accepted.
        """
        if self._greedy:
            return likeliest(logits)
        found = self._from_few(logits) if isinstance(logits, DeviceRow) and self._cuts else None
        ids, probs = found or self.probabilities(np.asarray(logits))
        return int(ids[0]) if len(ids) == 1 else int(ids[self._draw(probs)])

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be drawn, int64 [n], and their probabilities, float64 [n], summing to
        1.

        Sorted from the likeliest down (ties: lower id first) where top-p or min-p cuts, else by id.
        Greedy is the one token with the largest logit after the penalties, the lowest id among
        equals.
        """
        best = likeliest(logits)
        with np.errstate(over="ignore"):  # a tiny temperature or penalty
            scores = self._penalised(logits)
            if self.params.temperature == 0:
                return np.array([best if scores is logits else scores.argmax()]), np.ones(1)
            return self._choices(self._all, scores)

    def _from_few(self, logits: DeviceRow) -> tuple[np.ndarray, np.ndarray] | None:
        """The same from the largest logits alone; None where they don't tell, and for a while after
        that.
        """
        likeliest(logits)
        self._whole -= 1
        few = logits.few(self.params.temperature) if self._whole < 0 else None
        if few is None:
            return None
        if 0 < self.params.top_k <= len(few.ids):
            order = np.argsort(few.ids)
            return self._choices(few.ids[order].astype(np.int64), few.values[order])
        weights = _weights(few.values, self.params.temperature)
        found = None if self.params.top_k else cut_tail(few, weights, *self._tail)
        if found is None:
            self._whole = _WHOLE
        return found

    @property
    def _tail(self) -> tuple[float, float]:
        return self.params.top_p, self.params.min_p

    def _choices(self, ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if 0 < self.params.top_k < len(ids):
            places = _top_k(scores, self.params.top_k)
            ids, scores = ids[places], scores[places]
        if self.params.top_p == 1 and self.params.min_p == 0:
            weights = _weights(scores, self.params.temperature)
            return ids, weights / weights.sum()
        return _cut_tail(ids, scores, self.params)

    def _draw(self, probs: np.ndarray) -> int:
        edges = np.cumsum(probs)
        return int(np.searchsorted(edges[:-1], self._random.random() * edges[-1], side="right"))

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        if not self.params.penalises:
            return logits
        scores = logits.astype(np.float64)
        ids = np.flatnonzero(self._seen)
        seen = scores[ids]
        counts = self._counts[ids]
        penalty = self.params.repetition_penalty
        seen = np.where(seen < 0, seen * penalty, np.minimum(seen / penalty, _LARGEST))
        scores[ids] = (
            seen
            - self.params.presence_penalty * (counts > 0)
            - self.params.frequency_penalty * counts
        )
        return scores


def likeliest(logits: Row) -> int:
    """The token with the largest logit, the lowest id among equals. Raises SamplingError where that
    is no finite number.
    """
    best = logits.argmax()  # the first NaN, if there is one
    if not math.isfinite(logits[best]):
        raise SamplingError(
            "the largest logit is not a finite number; "
            "the weights are damaged: compile the checkpoint again"
        )
    return int(best)


@functools.cache
def _all_ids(vocab_size: int) -> np.ndarray:
    """Shared by the samplers of all requests that wait."""
    ids = np.arange(vocab_size)
    ids.flags.writeable = False
    return ids


def _weights(
    scores: np.ndarray, temperature: float, kind: type[np.floating] = np.float64
) -> np.ndarray:
    """exp((scores - the largest) / temperature), as floats of this kind where it holds the
    temperature.
    """
    kind = kind if temperature >= _TINY else np.float64
    # In place: fresh memory for each step would cost more than the arithmetic.
    weights = np.subtract(scores, scores.max(), dtype=np.result_type(scores, kind))
    weights = weights.astype(kind, copy=False)
    weights /= kind(temperature)
    return np.exp(weights, out=weights)


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids, ascending, of exactly the k largest scores; of equal scores the lower ids."""
    threshold = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _cut_tail(
    ids: np.ndarray, scores: np.ndarray, params: SamplingParams
) -> tuple[np.ndarray, np.ndarray]:
    """Top-p keeps a token if those before it sum to less than top_p; min-p, if it has min_p times
    the largest.

    The sums run over the whole distribution, yet few tokens are sorted: those under (1 - top_p) / n
    together weigh less than 1 - top_p, so all of them lie behind the cut (halved here to be safe
    from rounding). The whole distribution is float32, which only its sum and that first choice
    depend on; the chosen are float64.
    """
    top_p = params.top_p
    rough = _weights(scores, params.temperature, np.float32)
    total = float(rough.sum())
    least = max(0.5 * (1 - top_p) / len(rough) * total, 0.999 * params.min_p)
    likely = np.flatnonzero(rough >= np.float32(least if least > _TINY else 0))
    ids = ids[likely]
    weights = _weights(scores[likely], params.temperature)
    if params.min_p:
        ids = ids[weights >= params.min_p]
        weights = weights[weights >= params.min_p]
    probs = weights / total
    if len(probs) > _FEW:
        head = probs > np.partition(probs, -_FEW)[-_FEW]
        if probs[head].sum() > top_p + 1e-6:  # the cut lies among these few
            ids = ids[head]
            probs = probs[head]
    order = np.argsort(-probs, kind="stable")
    ids = ids[order]
    probs = probs[order]
    kept = np.cumsum(probs) - probs < top_p if top_p < 1 else slice(None)
    return ids[kept], probs[kept] / probs[kept].sum()
