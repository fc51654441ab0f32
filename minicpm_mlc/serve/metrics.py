"""Figures of all requests, as Prometheus reads them."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping

from minicpm_mlc.runtime_py.collected import Answer

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
COUNTERS = {
    "prompt_tokens": "Tokens of prompts, the cached ones among them.",
    "prompt_cached_tokens": "Tokens of prompts that were computed before.",
    "prompt_seconds": "Seconds of computing prompts.",
    "generation_tokens": "Tokens of answers.",
    "generation_seconds": "Seconds of computing answers.",
    "draft_tokens": "Tokens that were guessed.",
    "draft_accepted_tokens": "Guesses that were kept.",
}


class Histogram:
    """How many values were at most each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """Its lines in Prometheus's text format."""
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {below}"


class Metrics:
    """Counts of a server's life."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter({name: 0 for name in COUNTERS})
        self._reasons: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._first_token = Histogram(SECONDS)
        self._per_token = Histogram(TOKEN_SECONDS)
        self._duration = Histogram(SECONDS)

    def failed(self, kind: str) -> None:
        """Counts an error."""
        self._errors[kind] += 1

    def answered(self, answer: Answer, first: float | None, seconds: float) -> None:
        """Counts an answer that took `seconds`, `first` of them up to its first token."""
        counts = answer.counts
        self._totals.update(
            {
                "prompt_tokens": counts.prompt_tokens,
                "prompt_cached_tokens": counts.cached_tokens,
                "generation_tokens": counts.completion_tokens,
                "draft_tokens": counts.draft_tokens,
                "draft_accepted_tokens": counts.draft_accepted,
            }
        )
        self._totals["prompt_seconds"] += counts.prompt_seconds  # type: ignore[assignment]
        self._totals["generation_seconds"] += counts.decode_seconds  # type: ignore[assignment]
        self._reasons.update(choice.reason for choice in answer.choices.values())
        if first is not None:
            self._first_token.add(first)
        if counts.completion_tokens:
            self._per_token.add(counts.decode_seconds / counts.completion_tokens)
        self._duration.add(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All figures, with those of this moment."""
        lines: list[str] = []
        for name, about in COUNTERS.items():
            lines += _head(f"{name}_total", "counter", about)
            lines.append(f"minicpm_{name}_total {self._totals[name]}")
        lines += _head("requests_total", "counter", "Choices by how they ended.")
        lines += _labelled("requests_total", "finish_reason", self._reasons)
        lines += _head("request_errors_total", "counter", "Errors by type.")
        lines += _labelled("request_errors_total", "type", self._errors)
        for name, value in gauges.items():
            lines += [*_head(name, "gauge", "Of this moment."), f"minicpm_{name} {value}"]
        for name, histogram in (
            ("time_to_first_token_seconds", self._first_token),
            ("time_per_output_token_seconds", self._per_token),
            ("request_duration_seconds", self._duration),
        ):
            lines += [*_head(name, "histogram", "Seconds."), *histogram.lines(f"minicpm_{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP minicpm_{name} {about}", f"# TYPE minicpm_{name} {kind}"]


def _labelled(name: str, label: str, counts: Mapping[str, int]) -> list[str]:
    return [f'minicpm_{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]
