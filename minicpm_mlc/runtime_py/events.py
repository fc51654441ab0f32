"""What a server asks of a backend, and what it hears back: one request is a `Job`, its answer a
stream of events.

A backend knows tokens alone. What they mean (thinking, text, tool calls, stop strings) is read by
a `Reader`, one for each choice, which the job brings along; what may come next, by a `Constraint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from minicpm_mlc.runtime_py.request import Constraint, Options


@dataclass(frozen=True)
class Scored:
    """A token and natural logarithms of the model's probabilities, before temperature, penalties
    and constraints.
    """

    token_id: int
    logprob: float | None = None  # None: not asked for, or the first token of a prompt
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), the likeliest first


@dataclass(frozen=True)
class Counts:
    """Figures of one choice."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, already computed
    completion_tokens: int = 0  # thinking and tool calls among them; the end token is not
    reasoning_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_tokens: int = 0  # guessed by speculation
    draft_accepted: int = 0


@dataclass(frozen=True)
class Started:
    """Once per job: the prompt is computed. `scores`: of each of its tokens, with `echo` alone;
    `choice`: the job's first.
    """

    prompt_tokens: int
    cached_tokens: int
    scores: tuple[Scored, ...] = ()
    choice: int = 0


@dataclass(frozen=True)
class Reasoning:
    """A piece of a choice's thinking, without its markers."""

    choice: int
    text: str


@dataclass(frozen=True)
class Text:
    """A piece of a choice's answer, and its tokens where log-probabilities are wanted."""

    choice: int
    text: str
    tokens: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool begins. Those of a choice are numbered from 0 by their order."""

    choice: int
    name: str


@dataclass(frozen=True)
class ToolArguments:
    """A piece of the JSON object that the call begun last is given."""

    choice: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The last event of a choice."""

    choice: int
    reason: str  # "stop", "length", "context" or "cancelled"
    counts: Counts
    stop: str | None = None  # the stop string that ended it
    end_token: Scored | None = None  # the end token that was drawn, where scores are wanted
    # of the sparse gear: how often each block of the context was chosen by its score
    block_reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The last event of a job that an error ended; it replaces what was still to come."""

    error: BaseException


Event = Started | Reasoning | Text | ToolCall | ToolArguments | Ended | Failed


class Reader(Protocol):
    """Makes events of one choice's tokens. The backend calls `feed` for each token but the end
    token, then looks at `stopped` and `forced`; `finish` once, after the last token.
    """

    @property
    def stop(self) -> str | None:
        """The stop string that came; the answer ends with the token fed last."""
        ...

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens were thinking."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that come next in place of drawn ones: a spent think budget closes its block.
        Asked for once before the first token, and after each. They are fed too.
        """
        ...

    def feed(self, token: Scored) -> Iterable[Event]:
        """The events that this token completes."""
        ...

    def finish(self) -> Iterable[Event]:
        """What was held back, when no more tokens come."""
        ...


@dataclass(frozen=True)
class Job:
    """One request: a prompt, and `n` choices of how it goes on.

    `options` are those of `Engine.generate` without `stop`, `on_prefill` and `constraint`; choice i
    draws with seed + i, where there is a seed. `reader` and `constraint` make those of one choice,
    given its number.
    """

    token_ids: list[int]
    reader: Callable[[int], Reader]
    options: Options = field(default_factory=lambda: Options())
    n: int = 1
    logprobs: int | None = None  # how many of the likeliest tokens to score; None: score nothing
    echo: bool = False  # score the prompt too
    constraint: Callable[[int], Constraint] | None = None
    empty: bool = False  # no tokens are wanted at all, only the prompt's scores
    client: str = ""  # whose it is: where several wait, clients take turns


class Running(Protocol):
    """A job that was handed in."""

    def cancel(self) -> None:
        """Ends the job at its next token, or the next chunk of its prompt. May be called from any
        thread, more than once, and after the end. Choices that had not ended end as "cancelled".
        """
        ...


class Backend(Protocol):
    """Answers jobs, first come first served."""

    def submit(self, job: Job, emit: Callable[[Event], None]) -> Running:
        """Takes a job and returns at once. `emit` gets its events in order, from a thread of the
        backend; it must return soon and not raise. A job ends with the `Ended` of its last choice
        or with `Failed`.
        """
        ...

    def close(self) -> None:
        """Cancels what runs and waits, and ends the backend's threads."""
        ...
