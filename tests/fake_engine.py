"""An engine without a model, for tests of what talks to one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats


@dataclass
class FakeStats:
    prompt_tokens: int = 12
    cached_tokens: int = 4
    computed_tokens: int = 8
    generated_tokens: int = 3
    context_used: int = 15
    context: int = 64
    attention: str = "dense"
    prefill_rate: float = 100.0
    decode_rate: float = 20.0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    finish_reason: str | None = "stop"


def _about() -> Any:
    return SimpleNamespace(
        name="fake",
        scheme="w4",
        kv_dtype="float16",
        target={"device": "cpu"},
        memory={"weights": 1 << 20},
        max_context=128,
    )


@dataclass
class FakeEngine:
    """Answers with `events`; an exception among them is raised when its turn comes. A character is
    a token, and a template takes one for each message.
    """

    events: list[Any] = field(
        default_factory=lambda: [("thinking", "hm"), ("answer", "He"), ("answer", "llo")]
    )
    calls: list[tuple[list[dict[str, str]], dict[str, Any]]] = field(default_factory=list)
    stats: FakeStats = field(default_factory=FakeStats)
    closed: int = 0
    defaults: SamplingParams = field(default_factory=SamplingParams)
    opened: dict[str, Any] | None = None
    context: int = 64
    threads: int = 2
    path: str = "bundle"
    manifest: Any = field(default_factory=_about)
    gears: Any = field(
        default_factory=lambda: SimpleNamespace(
            attention="auto", dense_len=None, sparse=lambda length: False
        )
    )
    library: Any = field(default_factory=lambda: SimpleNamespace(device_name="no device"))
    drafters: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def roofline(self) -> None:
        return None

    def tokenize(self, text: str, bos: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def count(self, messages: Sequence[dict[str, str]], *, think: bool | None = None) -> int:
        return sum(len(message["content"]) + 1 for message in messages)

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
