"""A whole answer, gathered from its events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from minicpm_mlc.runtime_py.events import (
    Counts,
    Ended,
    Event,
    Failed,
    Reasoning,
    Scored,
    Started,
    Text,
    ToolArguments,
    ToolCall,
)


@dataclass
class Choice:
    """One choice as far as it has come."""

    reasoning: str = ""
    text: str = ""
    tokens: list[Scored] = field(default_factory=list)  # of the text
    calls: list[list[str]] = field(default_factory=list)  # [name, arguments as JSON]
    reason: str = ""
    stop: str | None = None
    counts: Counts = field(default_factory=Counts)
    end_token: Scored | None = None
    block_reads: tuple[int, ...] = ()

    @property
    def called(self) -> bool:
        """It ended by itself in calls of tools."""
        return bool(self.calls) and self.reason == "stop"


@dataclass
class Answer:
    """The choices of all jobs of a request, and each job's start by its first choice."""

    choices: dict[int, Choice] = field(default_factory=dict)
    started: dict[int, Started] = field(default_factory=dict)

    @staticmethod
    def of(events: Iterable[Event]) -> Answer:
        """The answer that the events make."""
        answer = Answer()
        for event in events:
            answer.feed(event)
        return answer

    def feed(self, event: Event) -> None:
        """Adds an event. Raises the error of one that failed."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Started):
            self.started[event.choice] = event
            return
        choice = self.choices.setdefault(event.choice, Choice())
        if isinstance(event, Reasoning):
            choice.reasoning += event.text
        elif isinstance(event, Text):
            choice.text += event.text
            choice.tokens += event.tokens
        elif isinstance(event, ToolCall):
            choice.calls.append([event.name, ""])
        elif isinstance(event, ToolArguments):
            choice.calls[-1][1] += event.text
        else:
            _end(choice, event)

    @property
    def ordered(self) -> list[tuple[int, Choice]]:
        """The choices by number."""
        return sorted(self.choices.items())

    @property
    def counts(self) -> Counts:
        """Of all together: each job's prompt once, every choice's tokens."""
        starts = self.started.values()
        every = [choice.counts for choice in self.choices.values()]
        return Counts(
            sum(start.prompt_tokens for start in starts),
            sum(start.cached_tokens for start in starts),
            sum(counts.completion_tokens for counts in every),
            sum(counts.reasoning_tokens for counts in every),
            sum(counts.prompt_seconds for counts in every),
            sum(counts.decode_seconds for counts in every),
            sum(counts.draft_tokens for counts in every),
            sum(counts.draft_accepted for counts in every),
        )


def _end(choice: Choice, ended: Ended) -> None:
    choice.reason, choice.stop = ended.reason, ended.stop
    choice.counts, choice.end_token = ended.counts, ended.end_token
    choice.block_reads = ended.block_reads
