"""From a conversation to what an engine is asked: its prompt, what reads the answer's tokens, and
which tokens may come.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.prompt.conversation import Chat
from minicpm_mlc.prompt.prompt_tokens import PlainText
from minicpm_mlc.prompt.template import ChatTemplate, Prompt
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.prompt.tool_formats import FORMATS
from minicpm_mlc.prompt.tools import ToolFormat, json_rule, plain_messages
from minicpm_mlc.runtime_py.chat.reader import ChatReader
from minicpm_mlc.runtime_py.chat.tool_reader import ToolReader
from minicpm_mlc.runtime_py.grammar import Grammars, answer_grammar
from minicpm_mlc.runtime_py.request import Constraint


class Chats:
    """Conversations with one model. Its methods may run in any thread."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        vocab_size: int,
        form: ToolFormat,
    ) -> None:
        """`form`: how the model writes calls of tools."""
        self.form = form
        self._template = template
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    @property
    def thinks(self) -> bool:
        """Whether thinking can be switched."""
        return self._template.can_switch_thinking

    def prompt(self, chat: Chat) -> Prompt:
        """The conversation as the model reads it. Raises TemplateError where the template
        refuses it.
        """
        tools = () if chat.tool_choice == "none" else chat.tools
        turns = chat.turns[:-1] if chat.continues else chat.turns
        messages = plain_messages(turns, tools, self.form)
        prompt = self._template.prompt(self._tokenizer.raw, messages, chat.think)
        if not chat.continues:
            return prompt
        said = whole_characters(chat.turns[-1].content)
        more = PlainText().ids(self._tokenizer.raw, said)
        return Prompt(prompt.text + said, prompt.ids + more, False)

    def reader(
        self, chat: Chat, prompt: Prompt, stop: str | Sequence[str] | None = None
    ) -> Callable[[int], ChatReader]:
        """Makes the reader of one choice, given its number."""
        tools = chat.callable

        def reader(choice: int) -> ChatReader:
            calls = ToolReader(choice, tools, self.form, chat.most_calls) if tools else None
            return ChatReader(
                choice,
                self._tokenizer,
                prompt.ids,
                stop,
                prompt.thinking,
                chat.most_thinking,
                calls,
            )

        return reader

    def constraint(self, chat: Chat, prompt: Prompt) -> Callable[[], Constraint] | None:
        """Makes what holds one answer to a call or a schema; None where nothing does. Raises
        SamplingError for a schema that can't be enforced.
        """
        tools = chat.callable
        forced = bool(tools) and chat.must_call
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

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer, self._eos_token_ids, self._vocab_size)


def format_named(name: str, template: str, model: Mapping[str, Any]) -> ToolFormat:
    """A format by its name; "auto" is what the template's text says of calls."""
    return FORMATS[_format_of(template, model) if name == "auto" else name]


def _format_of(template: str, model: Mapping[str, Any]) -> str:
    if "<function" in template and "<param" in template:
        return "minicpm5"
    if "<tool_call>" in template:
        return "hermes"
    return "minicpm" if model.get("model_type", "minicpm") == "minicpm" else "hermes"
