"""From prompts and messages to answers: what an engine does with text."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Sequence as Ids
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.sampling import check_count
from minicpm_mlc.prompt.template import ChatTemplate, Message, Prompt
from minicpm_mlc.prompt.thinking import OPEN, ThinkSplitter
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.pieces import Pieces
from minicpm_mlc.runtime_py.chat.reader import ChatReader, TextReader
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget
from minicpm_mlc.runtime_py.collected import Answer, Choice
from minicpm_mlc.runtime_py.events import Event, Job
from minicpm_mlc.runtime_py.generation import Generation, TokenReader
from minicpm_mlc.runtime_py.overflow import check_overflow, kept_messages
from minicpm_mlc.runtime_py.request import ChatOptions, Options, Request
from minicpm_mlc.runtime_py.scheduler.awaited import Awaited
from minicpm_mlc.runtime_py.scheduler.jobs import RunningJob
from minicpm_mlc.runtime_py.scheduler.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Answering(ABC):
    """Answers in text, by generations that an engine runs. `context`: the most tokens of one."""

    context: int

    def __init__(self, files: SmallFiles, bos_token_id: int | None, vocab_size: int) -> None:
        """`files`: the bundle's."""
        self._files = files
        self._bos_token_id = bos_token_id
        self.vocab_size = vocab_size

    @abstractmethod
    def request(self, token_ids: Ids[int], options: Mapping[str, Any]) -> Request:
        """A checked request of token ids and `Options`."""

    @abstractmethod
    def generation(self, request: Request, reader: TokenReader) -> Generation:
        """What answers a request, for `submit` or `read`; `reader` sees its tokens."""

    @abstractmethod
    def read(self, generation: Generation) -> Generator[object]:
        """What a generation's reader makes of its tokens, computed in this thread as it is read."""

    @abstractmethod
    def submit(
        self, generation: Generation, emit: Callable[[object], None], client: str = ""
    ) -> Task:
        """Has a generation go on by itself, in a thread of the engine; see `Task`."""

    @abstractmethod
    def until(self, done: Callable[[], bool]) -> None:
        """Returns when it is done; computes in this thread where no other one does."""

    @abstractmethod
    def cancel(self, task: Task) -> None:
        """Ends a task before the next step."""

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when first used: a bundle of random weights has none and still gives logits."""
        return Tokenizer.from_files(self._files, self._bos_token_id, self.vocab_size)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The bundle's chat template."""
        return ChatTemplate.from_files(self._files)

    def tokenize(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of text, BOS first if the model wants it."""
        return self.tokenizer.encode(text, bos)

    def detokenize(self, token_ids: Ids[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(token_ids)

    @overload
    def generate(
        self, prompt: str | Ids[int], *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str | Ids[int], *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[str]: ...
    def generate(
        self, prompt: str | Ids[int], *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Goes on from a prompt, text or token ids, without a chat template.

        Returns the text, or with stream=True an iterator of its pieces as they come.
        """
        pieces = self._pieces(self._going_on(prompt, options))
        return pieces if stream else "".join(pieces)

    def agenerate(self, prompt: str | Ids[int], **options: Unpack[Options]) -> Awaited:
        """Like generate, for an event loop: `await` it, or read its pieces by `async for`."""
        return Awaited(self._going_on(prompt, options), self.submit, self.cancel)

    def count(self, messages: Ids[Message], *, think: bool | None = None) -> int:
        """Tokens of the prompt that chat would make of messages."""
        return len(self.template.prompt(self.tokenizer.raw, messages, think).ids)

    @overload
    def chat(
        self,
        messages: Ids[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> str: ...
    @overload
    def chat(
        self, messages: Ids[Message], *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Iterator[str]: ...
    def chat(
        self, messages: Ids[Message], *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """The assistant's next turn, with its thinking between `<think>` and `</think>`.

        Args:
            messages: {"role", "content"} each.
            stream: gives an iterator of pieces instead of the text.
            options: see `ChatOptions`.
        """
        prompt, generation = self._chat(messages, options)
        texts = _texts(self._pieces(generation), _opening(prompt))
        return texts if stream else "".join(texts)

    def achat(self, messages: Ids[Message], **options: Unpack[ChatOptions]) -> Awaited:
        """Like chat, for an event loop: `await` it, or read its pieces by `async for`."""
        prompt, generation = self._chat(messages, options)
        return Awaited(generation, self.submit, self.cancel, _opening(prompt))

    def chat_events(
        self, messages: Ids[Message], **options: Unpack[ChatOptions]
    ) -> Generator[tuple[str, str]]:
        """Like chat, as (kind, text) events; kind is "thinking" or "answer", the markers are left
        out.
        """
        prompt, generation = self._chat(messages, options)
        return _events(self._pieces(generation), ThinkSplitter(prompt.thinking))

    def choices(
        self,
        prompt: Ids[Message] | str | Ids[int],
        n: int = 1,
        *,
        logprobs: int | None = None,
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Unpack[Options],
    ) -> list[Choice]:
        """n answers to one prompt, drawn with the seeds from `seed` on; they share its pages.

        Args:
            prompt: messages of a chat, a text, or token ids.
            n: how many answers.
            logprobs: score the answers' tokens, and so many of the likeliest beside each.
            think, max_think_tokens, options: as in chat.
        """
        check_count("n", n, lowest=1)
        check_count("logprobs", logprobs or 0)
        stop = options.pop("stop", None)
        StopStrings(stop)
        reading = {"tokenizer": self.tokenizer, "stop": stop}
        if _is_chat(prompt):
            made = self.template.prompt(self.tokenizer.raw, cast("Ids[Message]", prompt), think)
            ids = made.ids
            reading |= {"opened": made.thinking, "most_thinking": max_think_tokens}
        else:
            ids = list(self._prompt_ids(cast("str | Ids[int]", prompt)))
        kind = ChatReader if _is_chat(prompt) else TextReader
        reader = functools.partial(kind, prompt_ids=ids, **reading)
        return self._choices(Job(ids, reader, options, n, logprobs))

    def _prompt_ids(self, prompt: str | Ids[int]) -> Ids[int]:
        if isinstance(prompt, str):
            # an empty text is refused, even where BOS would be added
            return self.tokenize(prompt) if prompt else []
        return prompt

    def _going_on(self, prompt: str | Ids[int], options: Any) -> Generation:
        ids = self._prompt_ids(prompt)
        request = self.request(ids, options)
        stops = StopStrings(request.stop, self.tokenizer.hidden)
        return self.generation(request, Pieces(self.tokenizer, ids, stops))

    def _choices(self, job: Job) -> list[Choice]:
        answer = Answer()
        events: list[Event] = []
        running = RunningJob(self, job, events.append)
        running.start()
        try:
            self.until(lambda: running.over)
        finally:
            running.cancel()
        for event in events:
            answer.feed(event)
        return [choice for _, choice in answer.ordered]

    def _pieces(self, generation: Generation) -> Generator[str]:
        """The text, as it comes; nothing happens before the first piece is asked for."""
        with closing(self.read(generation)) as pieces:
            yield from cast("Generator[str]", pieces)

    def _chat(self, messages: Ids[Message], options: Any) -> tuple[Prompt, Generation]:
        """`options` are ChatOptions."""
        think, most = options.pop("think", None), options.pop("max_think_tokens", None)
        overflow, pinned = options.pop("overflow", "error"), options.pop("pinned", ())
        check_overflow(overflow)
        if overflow == "drop_oldest":
            count = functools.partial(self.count, think=think)
            limit = options.get("max_tokens")
            kept = kept_messages(messages, count, self.context, pinned, limit)
            messages = [messages[i] for i in kept]
        prompt = self.template.prompt(self.tokenizer.raw, messages, think)
        budget = None if most is None else ThinkBudget(most, prompt.thinking)
        request = self.request(prompt.ids, options)
        stops = AnswerStops(StopStrings(request.stop, self.tokenizer.hidden), prompt.thinking)
        reader = Pieces(self.tokenizer, prompt.ids, stops, budget)
        return prompt, self.generation(request, reader)


def _opening(prompt: Prompt) -> str:
    """A block that the template opened is opened in the text too, so that it can be read alone."""
    return f"{OPEN}\n" if prompt.thinking else ""


def _is_chat(prompt: Ids[Message] | str | Ids[int]) -> bool:
    return not isinstance(prompt, str) and any(isinstance(part, Mapping) for part in prompt)


def _texts(pieces: Generator[str], first: str = "") -> Generator[str]:
    """`first` and the pieces."""
    if first:
        yield first
    with closing(pieces):
        yield from pieces


def _events(pieces: Generator[str], splitter: ThinkSplitter) -> Generator[tuple[str, str]]:
    with closing(pieces):
        for piece in pieces:
            yield from splitter.feed(piece)
    yield from splitter.finish()
