"""The distribution of sampled tokens with speculation is the exact one: chi-square over 1e5 draws
of a tiny model.

What is expected comes from a definition of its own below, in the documented order of the settings.
All settings are drawn with one seed: the 144 runs of seeds 0 to 11 had p < 0.01 twice, as often as
chance does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.sampler import Sampler
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
PROMPT = [2]  # tokens that the repetition penalty knows from the start
SEED = 11
NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.7},
    "low temperature": {"temperature": 0.5},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.2},
    "repetition penalty": {"repetition_penalty": 1.6},
    "presence penalty": {"presence_penalty": 0.9},
    "frequency penalty": {"frequency_penalty": 0.7},
    "temperature, top-k, top-p": {"temperature": 1.4, "top_k": 4, "top_p": 0.85},
    "temperature, top-p, min-p": {"temperature": 1.8, "top_p": 0.9, "min_p": 0.15},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.4},
    "all": {
        "temperature": 1.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
    },
}


def expected(
    logits: np.ndarray,
    said: tuple[int, ...],
    *,
    temperature: float,
    top_p: float,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> np.ndarray:
    """Probabilities float64 [VOCAB] of the token after PROMPT and `said`: each step on the whole of
    what the last one left.
    """
    scores = logits.astype(np.float64)
    for token in {*PROMPT, *said}:
        scores[token] *= repetition_penalty if scores[token] < 0 else 1 / repetition_penalty
    for token in set(said):
        scores[token] -= presence_penalty
    for token in said:
        scores[token] -= frequency_penalty
    scores /= temperature
    if top_k:
        scores[np.argsort(-scores)[top_k:]] = -np.inf
    probs = softmax(scores)
    if top_p < 1:
        order = np.argsort(-probs)
        cut = next(i for i in range(1, VOCAB + 1) if probs[order[:i]].sum() >= top_p)
        scores[order[cut:]] = -np.inf
        probs = softmax(scores)
    probs[probs < min_p * probs.max()] = 0
    return probs / probs.sum()


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@dataclass
class MarkovModel:
    """What Steps needs of a CachedModel."""

    sequence: Any
    selected: tuple = ()

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def step(self, token_id: int) -> np.ndarray:
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

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None
    ) -> Draft:
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


class FastSampler(Sampler):
    """Computes the distribution once for each state: 1e5 draws see few of them."""

    def __init__(self, params: SamplingParams) -> None:
        super().__init__(params, VOCAB, PROMPT)
        self._known: dict[tuple[bytes, bytes], tuple[np.ndarray, np.ndarray]] = {}

    def begin(self) -> None:
        """Another answer, with the random numbers that come next."""
        self._counts[:], self._seen[:] = 0, False
        if self._seen.size:  # which only penalties need
            self._seen[PROMPT] = True

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = logits.tobytes(), self._counts.tobytes()
        if state not in self._known:
            self._known[state] = super().probabilities(logits)
        return self._known[state]


def answer(sampler: FastSampler, stats: SpeculationStats) -> tuple[int, ...]:
    model, guesser = MarkovModel(SimpleNamespace(tokens=[], context=100, room=100)), Guesser()
    steps = Steps(model, {"ngram": guesser}, guesser, Speculation(), 99, stats, NO_BLOCKS)  # type: ignore[arg-type]
    logits, tokens = LOGITS[VOCAB], []
    sampler.begin()
    for _ in range(LENGTH):
        tokens.append(sampler.sample(logits))
        sampler.accept(tokens[-1])
        logits = steps.next(tokens[-1])
    return tuple(tokens)


NO_BLOCKS = np.zeros(1, np.int64)


def exact(setting: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probability of every answer that can be."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for path, chance in chances.items():
            probs = expected(LOGITS[path[-1] if path else VOCAB], path, **setting)
            longer |= {(*path, token): chance * p for token, p in enumerate(probs.tolist()) if p}
        chances = longer
    return chances


def chi_square_limit(degrees: int) -> float:
    """Exceeded with probability 0.01 (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 2.326 * (2 / (9 * degrees)) ** 0.5) ** 3


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_exact_distribution(name: str, seed: int = SEED) -> None:
    setting = NEUTRAL | SETTINGS[name]
    chances, counts = exact(setting), Counter()
    stats, answers = SpeculationStats(), DRAWS // LENGTH
    sampler = FastSampler(SamplingParams(seed=seed, **setting))
    for _ in range(answers):
        counts[answer(sampler, stats)] += 1
    assert stats.accepted > answers / 10 and set(counts) <= set(chances)
    common = {path for path, chance in chances.items() if chance * answers >= 5}
    rare = 1 - sum(chances[path] for path in common)
    cells = [(counts[path], chances[path] * answers) for path in common]
    if rare * answers >= 5:
        cells.append((answers - sum(count for count, _ in cells), rare * answers))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    assert statistic < chi_square_limit(len(cells) - 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_changes_the_distribution(name: str) -> None:
    """Or else the draws would prove nothing about it."""
    neutral, setting = exact(NEUTRAL), exact(NEUTRAL | SETTINGS[name])
    assert sum(abs(neutral[path] - setting.get(path, 0.0)) for path in neutral) > 0.1
