"""The model that is served: its names and facts, and how its prompts are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.bundle.manifest import manifest_sha256
from minicpm_mlc.prompt.conversation import Chat
from minicpm_mlc.prompt.template import Prompt
from minicpm_mlc.runtime_py.chat.reader import TextReader
from minicpm_mlc.runtime_py.chats import Chats, format_named
from minicpm_mlc.runtime_py.constraints import Bias, Chain, NoEnd
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.events import Job, Scored
from minicpm_mlc.runtime_py.request import Constraint, Options, Request
from minicpm_mlc.serve.errors import ApiError, too_long


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, as all protocols say it. `options` are Engine.generate's."""

    options: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    biases: Mapping[int, float] = field(default_factory=dict)
    least_tokens: int | None = 0  # no end before; None: no end at all


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
        self.gears = engine.gears
        self.vocab_size = engine.vocab_size
        self.defaults = engine.defaults
        self.eos_token_ids = engine.eos_token_ids
        self.tokenizer = engine.tokenizer
        self.template = engine.template
        self.digest = manifest_sha256(engine.path)
        self.folder = Path(engine.path).name
        form = format_named(tool_format, self.template.source, self.manifest.model)
        self.chats = Chats(self.template, self.tokenizer, self.eos_token_ids, self.vocab_size, form)
        self._pages = engine.model.cache.pages

    @property
    def thinks(self) -> bool:
        """Whether thinking can be switched."""
        return self.chats.thinks

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

    def prompt(self, chat: Chat) -> Prompt:
        """The conversation as the model reads it. Who doesn't want a model to think that can't,
        has that.
        """
        quiet = chat.think is False and not self.thinks
        return self.chats.prompt(replace(chat, think=None) if quiet else chat)

    def chat_job(self, chat: Chat, drawing: Drawing) -> Job:
        """The job of a conversation. Raises MiniCPMError or ApiError for what can't be asked."""
        prompt = self.prompt(chat)
        reader = self.chats.reader(chat, prompt, drawing.stop)
        return self._job(prompt.ids, drawing, reader, self.chats.constraint(chat, prompt))

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
            raise FieldError("the prompt is empty; give at least one token", "prompt")
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


def _constraints(
    drawing: Drawing, eos: frozenset[int], constrain: Callable[[], Constraint] | None
) -> Callable[[int], Constraint] | None:
    if constrain and drawing.least_tokens != 0:
        raise FieldError("min_tokens and ignore_eos can't be used with a schema or a forced call")
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
