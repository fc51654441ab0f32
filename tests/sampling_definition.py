"""What sampling options mean, written out one token at a time in Python's floats: the definition
that runtime_py/sampler.py is held against.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from minicpm_mlc.prompt.sampling import SamplingParams

LARGEST = sys.float_info.max


def shares(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
) -> dict[int, float]:
    """The tokens that may be drawn and their probabilities, the likeliest first, ties by id."""
    scores = [penalised(logit, i, params, prompt, answer) for i, logit in enumerate(logits)]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if params.temperature == 0:
        return {order[0]: 1.0}
    rest = order[: params.top_k] if params.top_k else order
    left = normalised({i: weight(scores[i] - scores[order[0]], params.temperature) for i in rest})
    if params.top_p < 1:
        before = 0.0
        kept = {}
        for i, share in sorted(left.items(), key=lambda item: (-item[1], item[0])):
            if before < params.top_p:
                kept[i] = share
            before += share
        left = normalised(kept)
    largest = max(left.values())
    return normalised({i: s for i, s in left.items() if s >= params.min_p * largest})


def penalised(
    logit: float, i: int, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]
) -> float:
    """A token's logit after the three penalties."""
    if i in prompt or i in answer:
        factor = params.repetition_penalty
        logit = logit * factor if logit < 0 else min(divided(logit, factor), LARGEST)
    return (
        logit
        - params.presence_penalty * (i in answer)
        - params.frequency_penalty * list(answer).count(i)
    )


def weight(gap: float, temperature: float) -> float:
    """exp(gap / temperature), for a gap of at most 0."""
    return math.exp(divided(gap, temperature))


def divided(a: float, b: float) -> float:
    """a / b for b > 0; infinite where no float holds it."""
    try:
        return a / b
    except OverflowError:
        return math.copysign(math.inf, a)


def normalised(weights: dict[int, float]) -> dict[int, float]:
    """The same in a sum of 1."""
    total = math.fsum(weights.values())
    return {i: w / total for i, w in weights.items()}
