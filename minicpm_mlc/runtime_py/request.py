"""What one call asks for, and the figures it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypedDict

import numpy as np

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.text import quoted
from minicpm_mlc.prompt.sampling import SamplingParams, check_count
from minicpm_mlc.prompt.template import Message as Message  # what a call is given
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats
from minicpm_mlc.runtime_py.spent import Spent


class Constraint(Protocol):
    """Which tokens may come next in one answer, by a grammar. Tokens are drawn in order, one after
    the other, also where speculation has the logits of several: nothing has to be taken back.
    """

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [vocab] with -inf for the tokens that may not come; the argument itself
        where all may. The argument is not changed.
        """
        ...

    def accept(self, token_id: int) -> None:
        """A token has come, drawn or forced."""
        ...


class Options(TypedDict, total=False):
    """Options of one call. What is left out, or None, is the bundle's default."""

    max_tokens: int | None  # None: until the context is full
    stop: str | list[str] | None  # the text, in a chat the answer, ends before the first of them
    temperature: float | None  # 0: greedy
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None  # same seed, same text
    speculate: str | None  # "auto" (the default), "off", or a drafter: see Speculation
    # nodes of a draft tree; None: chosen by what was measured, as the next two
    tree_size: int | None
    draft_depth: int | None
    draft_top_k: int | None
    on_prefill: Callable[[int, int], None] | None  # (tokens done, tokens to do)
    constraint: Constraint | None  # which tokens may come


class ChatOptions(Options, total=False):
    """Options of one answer in a chat."""

    think: bool | None  # whether to think first; None: the template's default
    # the most tokens of thinking; then the block is closed and the answer follows
    max_think_tokens: int | None
    # functions that may be called: {"name", "description", "parameters": their JSON schema}, or in
    # the form of OpenAI's API
    tools: Sequence[Mapping[str, Any]] | None
    # "auto" (the default), "none", "required", or {"name": the one to call}
    tool_choice: str | Mapping[str, Any] | None
    schema: Mapping[str, Any] | None  # a JSON schema that the answer follows, after the thinking
    # what messages longer than the context do: "error" (the default) refuses them, "drop_oldest"
    # leaves out the oldest turns, but no system message and none of `pinned`, by their places
    overflow: str | None
    pinned: Collection[int] | None


@dataclass(frozen=True)
class Request:
    """Checked options and the prompt."""

    token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    on_prefill: Callable[[int, int], None] | None = None
    constraint: Constraint | None = None
    speculation: Speculation = field(default_factory=Speculation)
    logprobs: int | None = None  # how many of the likeliest tokens to score; None: score nothing
    echo: bool = False  # score the prompt too

    @classmethod
    def of(
        cls, token_ids: list[int], options: Mapping[str, Any], defaults: SamplingParams
    ) -> Request:
        """Raises SamplingError for an option that is unknown or out of range."""
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise SamplingError(
                f"there is no option {quoted(unknown[0])}; options are "
                f"{', '.join(Options.__annotations__)}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        sampling, drafting = (_taken(given, kind) for kind in (SamplingParams, Speculation))
        check_count("max_tokens", given.get("max_tokens", 1), lowest=1)
        StopStrings(given.get("stop"))  # refuses a bad one now, not at the first piece
        return cls(
            token_ids, replace(defaults, **sampling), **given, speculation=Speculation(**drafting)
        )


def _taken(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """The options that are fields of a dataclass; they are taken out."""
    return {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}


@dataclass
class Stats:
    """Figures of one call, updated while it runs."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, already in the cache
    computed_tokens: int = 0  # of the prompt, by this call: fewer where it was stopped
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    # tokens computed after the prefill; the first comes from it, so these are fewer than the tokens
    decode_steps: int = 0
    decode_seconds: float = 0.0  # decode steps, drafting, verification and sampling
    spent: Spent = field(default_factory=Spent)  # of these, in the library's calls
    context_used: int = 0
    context: int = 0
    attention: str = "dense"  # the gear that the last token ran in
    blocks_read: int = 0  # of 64 tokens, by the last token in each layer and KV head
    blocks: int = 0  # that there were
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    # "stop", "length" or "context"; None while it runs or when it was abandoned
    finish_reason: str | None = None

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second."""
        return self.computed_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens decoded per second."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    def timing(self, name: str, calls: Spent | None = None) -> Timing:
        """Adds the time of the block to the field `name`, and to `spent` what it adds to `calls`, a
        library's.
        """
        return Timing(self, name, calls)


class Timing:
    """A block that is timed. A class: a generator would cost thrice as much, several times for each
    row of a step.
    """

    __slots__ = ("_before", "_calls", "_name", "_start", "_stats")

    def __init__(self, stats: Stats, name: str, calls: Spent | None) -> None:
        self._stats = stats
        self._name = name
        self._calls = calls

    def __enter__(self) -> None:
        self._before = self._calls.copy() if self._calls else None
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = getattr(self._stats, self._name) + time.perf_counter() - self._start
        setattr(self._stats, self._name, seconds)
        if self._calls and self._before:
            self._stats.spent.add(self._calls.since(self._before))
