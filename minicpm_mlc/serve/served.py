"""The model that is served: its names and facts, and how its prompts are made."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.bundle.manifest import manifest_sha256
from minicpm_mlc.prompt.prompt_tokens import PlainText
from minicpm_mlc.prompt.template import Prompt
from minicpm_mlc.prompt.tool_formats import FORMATS
from minicpm_mlc.prompt.tools import Tool, ToolFormat, Turn, json_rule, plain_messages
from minicpm_mlc.runtime_py.chat.reader import ChatReader, TextReader
from minicpm_mlc.runtime_py.chat.tool_reader import ToolReader
from minicpm_mlc.runtime_py.constraints import Bias, Chain, NoEnd
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.events import Job, Scored
from minicpm_mlc.runtime_py.grammar import Grammars, answer_grammar
from minicpm_mlc.runtime_py.request import Constraint, Options, Request
from minicpm_mlc.serve.errors import ApiError, bad, too_long


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, as all protocols say it. `options` are Engine.generate's."""

    options: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    biases: Mapping[int, float] = field(default_factory=dict)
    least_tokens: int | None = 0  # no end before; None: no end at all


@dataclass(frozen=True)
class Chat:
    """A conversation, and what its next answer has to be."""

    turns: Sequence[Turn]
    drawing: Drawing
    think: bool | None = None  # None: as the template likes
    most_thinking: int | None = None
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"  # or "none", "required", "=NAME"
    schema: Mapping[str, Any] | None = None
    most_calls: int | None = None
    continues: bool = False  # the last message is the beginning of the answer


class Served:
    """One engine's model. Its methods may run in any thread."""

    def __init__(
        self,
        engine: Engine,
        name: str | None = None,
        tool_format: str = "auto",
        strict_model: bool = False,
    ) -> None:
        self.name = name or engine.manifest.name
        self.strict_model = strict_model
        self.created = int(time.time())
        self.manifest = engine.manifest
        self.context = engine.context
        self.vocab_size = engine.vocab_size
        self.defaults = engine.defaults
        self.eos_token_ids = engine.eos_token_ids
        self.tokenizer = engine.tokenizer
        self.template = engine.template
        self.digest = manifest_sha256(engine.path)
        self.folder = Path(engine.path).name
        self.form: ToolFormat = FORMATS[
            _format_of(self.template.source, self.manifest.model)
            if tool_format == "auto"
            else tool_format
        ]
        self._lock = threading.Lock()
        self._pages = engine.model.cache.pages

    @property
    def thinks(self) -> bool:
        """Whether thinking can be switched."""
        return self.template.can_switch_thinking

    @property
    def cache_use(self) -> float:
        """The share of the cache's pages that running answers hold."""
        return 1 - self._pages.available / len(self._pages.owners)

    @property
    def size(self) -> int:
        """Bytes of the bundle."""
        return sum(entry["bytes"] for entry in self.manifest.files.values())

    @property
    def parameters(self) -> int:
        """How many numbers the model's matrices have."""
        model = self.manifest.model
        hidden, width = model["hidden_size"], model["head_dim"]
        heads = 2 * model["num_heads"] + 2 * model["num_kv_heads"]
        layer = hidden * (width * heads + 3 * model["intermediate_size"])
        tables = 1 if model["tie_word_embeddings"] else 2
        return tables * model["vocab_size"] * hidden + model["num_layers"] * layer

    def check_model(self, name: object) -> None:
        """Raises ApiError 404 for another model, with --strict-model alone."""
        known = (self.name, f"{self.name}:latest", None)
        if self.strict_model and name not in known:
            raise ApiError(
                404,
                f"there is no model {name!r:.80}; this server has {self.name}",
                "model",
                "model_not_found",
            )

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.eos_token_ids, self.vocab_size)

    def prompt(self, chat: Chat) -> Prompt:
        """The conversation as the model reads it. Raises TemplateError where the template
        refuses it.
        """
        tools = () if chat.tool_choice == "none" else chat.tools
        turns = chat.turns[:-1] if chat.continues else chat.turns
        messages = plain_messages(turns, tools, self.form)
        prompt = self.template.prompt(self.tokenizer.raw, messages, self._switch(chat.think))
        if not chat.continues:
            return prompt
        said = whole_characters(chat.turns[-1].content)
        more = PlainText().ids(self.tokenizer.raw, said)
        return Prompt(prompt.text + said, prompt.ids + more, False)

    def chat_job(self, chat: Chat) -> Job:
        """The job of a conversation. Raises ApiError, or MiniCPMError for what can't be asked."""
        prompt = self.prompt(chat)
        tools = () if chat.tool_choice == "none" else _chosen(chat)
        constrain = self._chat_constraint(chat, prompt, tools)
        drawing = chat.drawing
        stop = list(drawing.stop)

        def reader(choice: int) -> ChatReader:
            calls = ToolReader(choice, tools, self.form, chat.most_calls) if tools else None
            return ChatReader(
                choice, self.tokenizer, prompt.ids, stop, prompt.thinking, chat.most_thinking, calls
            )

        return self._job(prompt.ids, drawing, reader, constrain)

    def text_job(self, ids: list[int], drawing: Drawing, echo: bool = False) -> Job:
        """The job of a prompt without a template. Its options may ask for no tokens at all."""
        stop = list(drawing.stop)

        def reader(choice: int) -> TextReader:
            return TextReader(choice, self.tokenizer, ids, stop)

        return self._job(ids, drawing, reader, None, echo)

    def tokens(self, text: str) -> list[int]:
        """Ids of a text prompt, BOS first where the tokenizer adds it."""
        return self.tokenizer.encode(text) if text else []

    def token_bytes(self, token: Scored | int) -> bytes:
        """A token's text in bytes, a special token's name."""
        token_id = token if isinstance(token, int) else token.token_id
        hidden = self.tokenizer.hidden.get(token_id)
        return hidden.encode() if hidden is not None else self.tokenizer.token_bytes(token_id)

    def token_text(self, token: Scored | int) -> str:
        """The same as text; half a character is the replacement sign."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def _job(
        self,
        ids: list[int],
        drawing: Drawing,
        reader: Callable[[int], TextReader],
        constrain: Callable[[], Constraint] | None,
        echo: bool = False,
    ) -> Job:
        if not ids:
            raise bad("the prompt is empty; give at least one token", "prompt")
        options = dict(drawing.options)
        empty = options.get("max_tokens") == 0
        if empty:
            options["max_tokens"] = None
        room = self.context - (0 if empty else 1)
        if len(ids) > room:
            raise too_long(len(ids), self.context)
        Request.of(ids, options, self.defaults)  # refused before it waits
        return Job(
            ids,
            reader,
            Options(**options),  # type: ignore[typeddict-item]
            drawing.n,
            drawing.logprobs,
            echo,
            _constraints(drawing, self.eos_token_ids, constrain),
            empty,
        )

    def _switch(self, think: bool | None) -> bool | None:
        """What the template is told: nothing, where the model can't think and isn't to."""
        return think if self.thinks or think else None

    def _chat_constraint(
        self, chat: Chat, prompt: Prompt, tools: Sequence[Tool]
    ) -> Callable[[], Constraint] | None:
        forced = bool(tools) and chat.tool_choice not in ("auto", "none")
        if not forced and chat.schema is None:
            return None
        rules = [("call", self.form.grammar(tools))] if tools else []
        if chat.schema is not None and not forced:
            rules.append(("json", f"json: {json_rule(chat.schema)}\n"))
        body = f"body: {' | '.join(name for name, _ in rules)}\n" + "".join(r for _, r in rules)
        may_think = self.thinks and chat.think is not False and not chat.continues
        grammar = answer_grammar(prompt, body, may_think)
        with self._lock:
            grammars = self._grammars
        return grammars.start(grammar).copy


def _chosen(chat: Chat) -> Sequence[Tool]:
    """The tools that may be called."""
    if not chat.tool_choice.startswith("="):
        return chat.tools
    found = [tool for tool in chat.tools if tool.name == chat.tool_choice[1:]]
    if not found:
        raise bad(
            f"tool_choice names {chat.tool_choice[1:]!r:.80}, which is no tool", "tool_choice"
        )
    return found


def _constraints(
    drawing: Drawing, eos: frozenset[int], constrain: Callable[[], Constraint] | None
) -> Callable[[int], Constraint] | None:
    if constrain and drawing.least_tokens != 0:
        raise bad("min_tokens and ignore_eos can't be used with a schema or a forced call")
    makers: list[Callable[[], Constraint]] = [constrain] if constrain else []
    if drawing.biases:
        makers.append(lambda: Bias(drawing.biases))
    if drawing.least_tokens != 0:
        makers.append(lambda: NoEnd(eos, drawing.least_tokens))
    if not makers:
        return None
    if len(makers) == 1:
        return lambda _: makers[0]()
    return lambda _: Chain([make() for make in makers])


def _format_of(template: str, model: Mapping[str, Any]) -> str:
    """How a model writes calls, by what its template says of them."""
    if "<function" in template and "<param" in template:
        return "minicpm5"
    if "<tool_call>" in template:
        return "hermes"
    return "minicpm" if model.get("model_type", "minicpm") == "minicpm" else "hermes"


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises TemplateError for a conversation that no template takes."""
    if not turns:
        raise bad("messages is empty; expected at least one message", "messages")
    if turns[0].role == "tool":
        raise TemplateError("messages[0] has the role tool; a result follows a call")
