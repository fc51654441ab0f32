"""POST /v1/completions: prompts without a template, and what evaluation harnesses ask of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.runtime_py.collected import Answer, Choice
from minicpm_mlc.runtime_py.events import Ended, Event, Scored, Started, Text
from minicpm_mlc.serve.drawing import IGNORED, MOST_LIKELY, read_drawing
from minicpm_mlc.serve.logprobs import text_logprobs
from minicpm_mlc.serve.openai_chat import (
    FINISH,
    ChatCompletions,
    Shape,
    timings_of,
    usage_of,
    wants_usage,
)
from minicpm_mlc.serve.served import Served
from minicpm_mlc.serve.surface import Ask, Json, ask_of, new_id

DEFAULT_TOKENS = 16
MOST_PROMPTS = 2048


@dataclass(frozen=True)
class Echo:
    """What a stream or an answer repeats of each prompt: its text, where that is asked for."""

    shape: Shape
    prompts: Sequence[Sequence[int]]
    n: int
    echo: bool

    def text(self, choice: int) -> str:
        """The text before a choice's own."""
        if not self.echo:
            return ""
        return self.shape.served.tokenizer.decode(self.prompts[choice // self.n])

    def first(self, choice: int) -> int:
        """The first choice of the same prompt."""
        return choice // self.n * self.n


class Completions(ChatCompletions):
    """The surface. Streams and errors are framed as those of chats."""

    name = "completions"

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        served.check_model(fields.text("model"))
        fields.refuse("suffix", why="this model has no documented format for it")
        prompts = read_prompts(fields, served)
        echo = fields.flag("echo") or False
        longest = fields.whole("max_tokens", 0 if echo else 1)
        likely = fields.whole("logprobs", 0, MOST_LIKELY)
        drawing = read_drawing(fields, DEFAULT_TOKENS if longest is None else longest, likely)
        if (best := fields.whole("best_of", 1)) not in (None, drawing.n):
            raise FieldError(
                f"best_of is {best} and n is {drawing.n}; they must be equal", "best_of"
            )
        shape = Shape(
            served,
            new_id("cmpl-", 22),
            int(time.time()),
            likely,
            wants_usage(fields),
            "",
            drawing.n * len(prompts),
        )
        scores_prompt = echo and likely is not None
        repeated = Echo(shape, prompts, drawing.n, echo)
        return ask_of(
            fields,
            [served.text_job(ids, drawing, scores_prompt) for ids in prompts],
            functools.partial(whole, repeated),
            functools.partial(CompletionStream, repeated),
            IGNORED,
        )


def read_prompts(fields: Fields, served: Served) -> list[list[int]]:
    """The ids of each prompt, which is a text or ids already; ids get no BOS."""
    given = fields.need("prompt")
    several = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not several or len(several) > MOST_PROMPTS:
        raise FieldError(
            f"prompt has {len(several)} prompts; expected 1 to {MOST_PROMPTS}", "prompt"
        )
    prompts = []
    for prompt in several:
        if isinstance(prompt, str):
            prompts.append(served.tokens(prompt))
        elif isinstance(prompt, list) and _are_ids(prompt):
            prompts.append(check_ids(prompt, served))
        else:
            raise FieldError("prompt is neither a text nor token ids, nor a list of them", "prompt")
    return prompts


def check_ids(ids: list[int], served: Served) -> list[int]:
    """The ids. Raises FieldError for one outside of the vocabulary."""
    if wrong := [i for i in ids if not 0 <= i < served.vocab_size]:
        raise FieldError(
            f"the token id {wrong[0]} is none of the {served.vocab_size} tokens", "prompt"
        )
    return ids


def _are_ids(values: list[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def whole(echo: Echo, answer: Answer) -> Json:
    """The answer in one object."""
    counts = answer.counts
    return {
        **echo.shape.head("text_completion"),
        "choices": [_choice(echo, answer, index, choice) for index, choice in answer.ordered],
        "usage": usage_of(counts),
        "timings": timings_of(counts),
    }


def _choice(echo: Echo, answer: Answer, index: int, choice: Choice) -> dict[str, Any]:
    before = echo.text(index)
    logprobs = None
    if echo.shape.logprobs is not None:
        tokens = [*choice.tokens, *filter(None, [choice.end_token])]
        tokens = [*answer.started[echo.first(index)].scores, *tokens]
        logprobs = text_logprobs(echo.shape.served, tokens, echo.shape.logprobs)
    return {
        "index": index,
        "text": before + choice.text,
        "logprobs": logprobs,
        "finish_reason": FINISH.get(choice.reason, "stop"),
    }


class CompletionStream:
    """The chunks of a stream."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._shape = echo.shape
        self._answer = Answer()
        self._head = self._shape.head("text_completion")
        self._offsets: dict[int, int] = {}

    def feed(self, event: Event) -> Iterator[Json]:
        """The chunks of one event."""
        self._answer.feed(event)
        if isinstance(event, Started) and self._echo.echo:
            for index in range(event.choice, event.choice + self._echo.n):
                yield self._chunk(index, self._echo.text(index), event.scores)
        elif isinstance(event, Text):
            yield self._chunk(event.choice, event.text, event.tokens)
        elif isinstance(event, Ended):
            yield from self._end(event)

    def _end(self, event: Ended) -> Iterator[Json]:
        last = (event.end_token,) if event.end_token else ()
        yield self._chunk(event.choice, "", last, FINISH.get(event.reason, "stop"))
        ended = sum(bool(choice.reason) for choice in self._answer.choices.values())
        if ended == self._shape.choices and self._shape.usage:
            counts = self._answer.counts
            usage = {"usage": usage_of(counts), "timings": timings_of(counts)}
            yield self._head | {"choices": []} | usage

    def _chunk(
        self, index: int, text: str, tokens: Sequence[Scored] = (), reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if self._shape.logprobs is not None and tokens:
            offset = self._offsets.get(index, 0)
            logprobs = text_logprobs(self._shape.served, tokens, self._shape.logprobs, offset)
            self._offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._shape.usage else {}
        return {**self._head, "choices": [choice], **usage}
