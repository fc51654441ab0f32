"""An engine without a model, for tests of what talks to one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats


@dataclass
class FakeStats:
    prompt_tokens: int = 12
    cached_tokens: int = 4
    generated_tokens: int = 3
    context_used: int = 15
    context: int = 64
    attention: str = "dense"
    prefill_rate: float = 100.0
    decode_rate: float = 20.0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    finish_reason: str | None = "stop"


@dataclass
class FakeEngine:
    """Answers with `events`; an exception among them is raised when its turn comes."""

    events: list[Any] = field(
        default_factory=lambda: [("thinking", "hm"), ("answer", "He"), ("answer", "llo")]
    )
    calls: list[tuple[list[dict[str, str]], dict[str, Any]]] = field(default_factory=list)
    stats: FakeStats = field(default_factory=FakeStats)
    closed: int = 0
    defaults: SamplingParams = field(default_factory=SamplingParams)
    opened: dict[str, Any] | None = None

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def chat_events(
        self, messages: list[dict[str, str]], *, on_prefill: Any = None, **options: Any
    ) -> Iterator[Any]:
        self.calls.append((messages, options))
        return self._stream()

    def _stream(self) -> Iterator[Any]:
        try:
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed += 1
