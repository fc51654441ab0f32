"""From prompts and messages to answers: what an engine does with text."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Sequence as Ids
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.conversation import Chat, chat_of
from minicpm_mlc.prompt.sampling import check_count
from minicpm_mlc.prompt.template import ChatTemplate, Message, Prompt
from minicpm_mlc.prompt.thinking import OPEN
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.prompt.tools import compact
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.pieces import Pieces
from minicpm_mlc.runtime_py.chat.reader import TextReader
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget
from minicpm_mlc.runtime_py.chats import Chats, format_named
from minicpm_mlc.runtime_py.collected import Answer, Choice
from minicpm_mlc.runtime_py.constraints import Chain
from minicpm_mlc.runtime_py.events import Event, Job, Reasoning, Text, ToolArguments, ToolCall
from minicpm_mlc.runtime_py.generation import Generation, TokenReader
from minicpm_mlc.runtime_py.overflow import check_overflow, kept_messages
from minicpm_mlc.runtime_py.request import ChatOptions, Constraint, Options, Request
from minicpm_mlc.runtime_py.scheduler.awaited import Awaited
from minicpm_mlc.runtime_py.scheduler.jobs import RunningJob
from minicpm_mlc.runtime_py.scheduler.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack


CHAT_OPTIONS = ChatOptions.__annotations__.keys() - Options.__annotations__.keys()


@dataclass(frozen=True)
class Asked:
    """A chat that is to be answered. `hold` makes what holds one answer to a schema or a call."""

    chat: Chat
    prompt: Prompt
    options: Options
    hold: Callable[[], Constraint] | None

    @property
    def held(self) -> Options:
        """The options of one answer, with what holds it."""
        if self.hold is None:
            return self.options
        given = self.options.get("constraint")
        both: Constraint = Chain([given, self.hold()]) if given else self.hold()
        return {**self.options, "constraint": both}


class Answering(ABC):
    """Answers in text, by generations that an engine runs. `context`: the most tokens of one."""

    context: int

    manifest: Manifest
    eos_token_ids: frozenset[int]
    tool_format = "auto"  # how the model writes calls of tools; another one before the first chat

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

    @functools.cached_property
    def chats(self) -> Chats:
        """What prompts and answers of conversations are made and read by."""
        form = format_named(self.tool_format, self.template.source, self.manifest.model)
        return Chats(self.template, self.tokenizer, self.eos_token_ids, self.vocab_size, form)

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

    def count(
        self,
        messages: Ids[Message],
        *,
        think: bool | None = None,
        tools: Ids[Mapping[str, Any]] | None = None,
    ) -> int:
        """Tokens of the prompt that chat would make of messages."""
        own = dict.fromkeys(CHAT_OPTIONS) | {"think": think, "tools": tools}
        return len(self._rendered(messages, own)[1].ids)

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
        """The assistant's next turn, with its thinking between `<think>` and `</think>` and calls
        of tools as the model writes them (chat_events and choices have them read).

        Args:
            messages: {"role", "content"} each; of tools in the form of OpenAI's chat API.
            stream: gives an iterator of pieces instead of the text.
            options: see `ChatOptions`.
        """
        asked = self._asked(messages, options)
        texts = _texts(self._pieces(self._answer(asked)), _opening(asked.prompt))
        return texts if stream else "".join(texts)

    def achat(self, messages: Ids[Message], **options: Unpack[ChatOptions]) -> Awaited:
        """Like chat, for an event loop: `await` it, or read its pieces by `async for`."""
        asked = self._asked(messages, options)
        opening = _opening(asked.prompt)
        return Awaited(self._answer(asked), self.submit, self.cancel, opening)

    def chat_events(
        self, messages: Ids[Message], **options: Unpack[ChatOptions]
    ) -> Generator[tuple[str, str]]:
        """Like chat, as (kind, text) events; kind is "thinking", "answer" or "call", the markers
        are left out. The text of a call is JSON: {"name", "arguments"}.
        """
        asked = self._asked(messages, options)
        request = self.request(asked.prompt.ids, asked.held)
        reader = self.chats.reader(asked.chat, asked.prompt, request.stop)(0)
        return _events(self.read(self.generation(request, reader)))

    def choices(
        self,
        prompt: Ids[Message] | str | Ids[int],
        n: int = 1,
        *,
        logprobs: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[Choice]:
        """n answers to one prompt, drawn with the seeds from `seed` on; they share its pages.

        Args:
            prompt: messages of a chat, a text, or token ids.
            n: how many answers.
            logprobs: score the answers' tokens, and so many of the likeliest beside each.
            options: as in chat.
        """
        check_count("n", n, lowest=1)
        check_count("logprobs", logprobs or 0)
        stop = options.pop("stop", None)
        StopStrings(stop)
        if _is_chat(prompt):
            asked = self._asked(cast("Ids[Message]", prompt), options)
            reader = self.chats.reader(asked.chat, asked.prompt, stop)
            hold = asked.hold
            made = Job(asked.prompt.ids, reader, asked.options, n, logprobs)
            return self._choices(replace(made, constraint=hold and (lambda _: hold())))
        ids = list(self._prompt_ids(cast("str | Ids[int]", prompt)))
        reader = functools.partial(TextReader, tokenizer=self.tokenizer, prompt_ids=ids, stop=stop)
        return self._choices(Job(ids, reader, cast("Options", options), n, logprobs))

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

    def _asked(self, messages: Ids[Message], options: Mapping[str, Any]) -> Asked:
        """What a chat asks for. Plain messages go to the template as they are, which says what is
        wrong with them.
        """
        rest = dict(options)
        own = {name: rest.pop(name, None) for name in CHAT_OPTIONS}
        overflow = own["overflow"] or "error"
        check_overflow(overflow)
        if overflow == "drop_oldest":

            def count(some: Ids[Message]) -> int:
                return len(self._rendered(some, own)[1].ids)

            pinned, most = own["pinned"] or (), rest.get("max_tokens")
            kept = kept_messages(messages, count, self.context, pinned, most)
            messages = [messages[i] for i in kept]
        chat, prompt = self._rendered(messages, own)
        return Asked(chat, prompt, cast("Options", rest), self.chats.constraint(chat, prompt))

    def _rendered(self, messages: Ids[Message], own: Mapping[str, Any]) -> tuple[Chat, Prompt]:
        """The chat, and its prompt; `own` are the ChatOptions that are no Options."""
        think, most = own["think"], own["max_think_tokens"]
        called = any("tool_calls" in message for message in messages)
        if own["tools"] or own["tool_choice"] or called:
            chat = chat_of(messages, think, most, own["tools"], own["tool_choice"], own["schema"])
            return chat, self.chats.prompt(chat)
        chat = Chat((), think, most, schema=own["schema"])
        return chat, self.template.prompt(self.tokenizer.raw, messages, think)

    def _answer(self, asked: Asked) -> Generation:
        """What answers it in text."""
        prompt, most = asked.prompt, asked.chat.most_thinking
        budget = None if most is None else ThinkBudget(most, prompt.thinking)
        request = self.request(prompt.ids, asked.held)
        stops = AnswerStops(StopStrings(request.stop, self.tokenizer.hidden), prompt.thinking)
        return self.generation(request, Pieces(self.tokenizer, prompt.ids, stops, budget))


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


def _events(found: Generator[object]) -> Generator[tuple[str, str]]:
    """A reader's events, a call's arguments put together."""
    call: list[str] = []  # its name, then its arguments
    with closing(found):
        for event in found:
            if isinstance(event, ToolArguments):
                call.append(event.text)
                continue
            yield from _called(call)
            call = [event.name] if isinstance(event, ToolCall) else []
            if isinstance(event, Reasoning | Text):
                yield "thinking" if isinstance(event, Reasoning) else "answer", event.text
    yield from _called(call)


def _called(call: list[str]) -> Iterator[tuple[str, str]]:
    if call:
        name, *arguments = call
        yield "call", compact({"name": name, "arguments": json.loads("".join(arguments))})
