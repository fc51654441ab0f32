"""The distribution of sampled tokens with speculation is the exact one: chi-square over 1e5 draws of a tiny model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm_mlc.runtime_py.sampler import Sampler, SamplingParams
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.policy import Plan, Round
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats
from minicpm_mlc.runtime_py.speculative.steps import Steps
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

VOCAB = 6
DRAWS = 100_000
LENGTH = 3  # tokens of one answer
# A model whose logits depend on the last token; row VOCAB is the prompt's.
LOGITS = np.random.default_rng(3).standard_normal((VOCAB + 1, VOCAB)).astype(np.float32)
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature, top-k": {"temperature": 1.2, "top_k": 4, "top_p": 1.0},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.5, "top_p": 1.0, "min_p": 0.2},
    "penalties, top-p": {
        "temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.4,
    },
}


@dataclass
class MarkovModel:
    """What Steps needs of a CachedModel."""

    sequence: Any
    selected: tuple = ()

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def decode(self, token_id: int) -> np.ndarray:
        self.sequence.tokens.append(token_id)
        return LOGITS[token_id]

    def verify(self, token_ids: list[int], parents: list[int]) -> tuple[np.ndarray, None]:
        self.tree = token_ids
        return LOGITS[token_ids], None

    def commit(self, nodes: list[int]) -> None:
        self.sequence.tokens.extend(self.tree[node] for node in nodes)


def guesses(root: int) -> Draft:
    """The likeliest token and an unlikely one at each of two levels."""
    order = np.argsort(-LOGITS, axis=1)
    likely, unlikely = int(order[root, 0]), int(order[root, 4])
    tokens = [root, likely, unlikely, *order[likely, :2].tolist(), *order[unlikely, :2].tolist()]
    return Draft(Tree(tokens, [-1, 0, 0, 1, 1, 2, 2]), np.array([1, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1]))


DRAFTS = [guesses(token) for token in range(VOCAB)]


class Guesser:
    """A drafter, and a policy that always uses it."""

    def begin(self) -> None: ...

    def cached(self, model: Any) -> None: ...

    def draft(self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None) -> Draft:
        return DRAFTS[history[-1]]

    def following(self, options: Speculation) -> list[str]:
        return ["ngram"]

    drafters = following

    def sleeps(self, options: Speculation) -> bool:
        return False

    def plan(self, name: str, options: Speculation) -> Plan:
        return Plan(2, 2)

    def cut(self, name: str, draft: Draft, options: Speculation, room: int) -> Draft:
        return draft

    def drafted(self, name: str, draft: Draft, seconds: float) -> None: ...

    def finished(self, round: Round) -> None: ...


def answer(sampler: Sampler, stats: SpeculationStats) -> tuple[int, ...]:
    model, guesser = MarkovModel(SimpleNamespace(tokens=[], context=100)), Guesser()
    steps = Steps(model, {"ngram": guesser}, guesser, Speculation(), 99, stats, NO_BLOCKS)  # type: ignore[arg-type]
    logits, tokens = LOGITS[VOCAB], []
    for _ in range(LENGTH):
        tokens.append(sampler.sample(logits))
        sampler.accept(tokens[-1])
        logits = steps.next(tokens[-1])
    return tuple(tokens)


NO_BLOCKS = np.zeros(1, np.int64)


def exact(params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of every answer, from the sampler's own distribution along each path."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for path, chance in chances.items():
            sampler = Sampler(params, VOCAB)
            for token in path:
                sampler.accept(token)
            ids, probs = sampler.probabilities(LOGITS[path[-1] if path else VOCAB])
            longer |= {(*path, int(token)): chance * p for token, p in zip(ids, probs, strict=True)}
        chances = longer
    return chances


def chi_square_limit(degrees: int) -> float:
    """Exceeded with probability 0.01 (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 2.326 * (2 / (9 * degrees)) ** 0.5) ** 3


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_exact_distribution(name: str) -> None:
    params = SamplingParams(seed=11, **SETTINGS[name])
    chances, counts = exact(params), Counter()
    stats, sampler, answers = SpeculationStats(), Sampler(params, VOCAB), DRAWS // LENGTH
    for _ in range(answers):
        sampler._counts[:], sampler._seen[:] = 0, False
        counts[answer(sampler, stats)] += 1
    assert stats.accepted > answers / 10 and set(counts) <= set(chances)
    common = {path for path, chance in chances.items() if chance * answers >= 5}
    rare = 1 - sum(chances[path] for path in common)
    cells = [(counts[path], chances[path] * answers) for path in common]
    if rare * answers >= 5:
        cells.append((answers - sum(count for count, _ in cells), rare * answers))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    assert statistic < chi_square_limit(len(cells) - 1)
