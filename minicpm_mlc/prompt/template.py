"""Messages to prompt text and prompt ids: the checkpoint's own chat template, rendered in a
sandbox.

A turn can't be faked. Only the template's text may become control tokens such as `<|im_end|>`; the
same characters inside a message are encoded as plain text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.bundle.small_files import CONFIG, SmallFiles
from minicpm_mlc.prompt.jinja import (
    BUILT_IN,
    CHATML,
    CHATML_TOKENS,
    compile_template,
    render_template,
)
from minicpm_mlc.prompt.library_tokenizer import token_ids
from minicpm_mlc.prompt.prompt_tokens import (
    PlainText,
    beginning,
    control_tokens,
    encode_pieces,
)
from minicpm_mlc.prompt.special_tokens import special_tokens
from minicpm_mlc.prompt.thinking import CLOSE, OPEN, opens_thinking, without_thinking

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
MARKER = re.compile(r"(?:^|\s)/(no_)?think\s*\Z")
THINK_TAG = re.compile(f"{OPEN}|{CLOSE}")
PRIVATE = range(0xE000, 0xF900)  # characters without a meaning


@dataclass(frozen=True)
class Prompt:
    """What the engine needs of a rendered conversation."""

    text: str
    ids: list[int]
    thinking: bool  # the template opened a think block that the model is to fill


@dataclass(frozen=True)
class ChatTemplate:
    """A jinja2 chat template and the facts of tokenizer_config.json that it needs.

    `add_bos`: True puts `bos_token` before a prompt that has none; None leaves that to the
    tokenizer's post-processor. `other_tokens` are further special tokens by name.
    """

    source: str = CHATML
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool | None = True
    origin: str = BUILT_IN
    other_tokens: Mapping[str, Any] = field(default_factory=dict)
    _compiled: Template = field(init=False, repr=False, compare=False)
    _plain: PlainText = field(init=False, repr=False, compare=False, default_factory=PlainText)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", compile_template(self.source, self.origin))

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """Template of a checkpoint or bundle: chat_template.jinja, else tokenizer_config.json, else
        plain ChatML.

        Raises:
            TemplateError: a file that isn't JSON, or a template that doesn't parse (with its line).
        """
        files = SmallFiles(Path(folder), TemplateError, "copy it again from the checkpoint")
        return cls.from_files(files)

    @classmethod
    def from_files(cls, files: SmallFiles) -> ChatTemplate:
        """The same of files that are read already. Raises their error, or TemplateError."""
        source, origin = files.chat_template or (CHATML, BUILT_IN)
        tokens = special_tokens(files)
        bos, eos = tokens.pop("bos_token", None), tokens.pop("eos_token", None)
        no_bos = files.object(CONFIG).get("bos_token_id", 0) is None
        add_bos = False if no_bos else None
        return cls(source, bos, eos, add_bos, origin=origin, other_tokens=tokens)

    @property
    def can_switch_thinking(self) -> bool:
        """The template reads `enable_thinking` (MiniCPM4.1, MiniCPM5); MiniCPM4's doesn't."""
        return "enable_thinking" in self.source

    @property
    def takes_markers(self) -> bool:
        """Whether /think and /no_think at a user message's end are taken out here: the template
        has a switch, and doesn't handle them itself.
        """
        return self.can_switch_thinking and "/no_think" not in self.source

    def render(self, messages: Sequence[Message], think: bool | None = None) -> str:
        """Prompt text of a conversation, ready for the assistant's next turn.

        Thinking of past assistant turns is left out. A user message's final `/think` or `/no_think`
        is taken out of the text, and that of the last one overrides `think`, unless the template
        handles those markers itself or has no thinking switch.

        Args:
            messages: {"role", "content"} each.
            think: True or False sets the template's `enable_thinking`; None leaves its default.

        Raises:
            TemplateError: malformed messages, an error inside the template, or `think` without a
                switch for it.
        """
        return self.rendered(*self._prepare(messages, think))

    def prompt(
        self, tokenizer: Tokenizer, messages: Sequence[Message], think: bool | None = None
    ) -> Prompt:
        """Rendered conversation with its ids: BOS exactly once, messages unable to fake control
        tokens.

        Where a message contains the text of a control token, the prompt is cut at the template's
        own control tokens and the rest is encoded with their recognition off. If the template
        rewrites its messages (beyond trimming them), so that message text can't be found again in
        its output, such strings are broken by a zero-width space.
        """
        if missing := self.missing_tokens(tokenizer):
            raise TemplateError(missing)
        clean, switch = self._prepare(messages, think)
        text = self.rendered(clean, switch)
        ids = self._encode(tokenizer, text, clean, switch)
        return Prompt(text, self._with_bos(tokenizer, ids), opens_thinking(text))

    def missing_tokens(self, tokenizer: Tokenizer) -> str | None:
        """Why nobody can chat by the built-in ChatML with this tokenizer; None where one can."""
        missing = [token for token in CHATML_TOKENS if tokenizer.token_to_id(token) is None]
        if self.origin != BUILT_IN or not missing:
            return None
        return (
            f"there is no chat template, and ChatML's {missing[0]} is not in the vocabulary: use "
            "generate, or add chat_template.jinja to the checkpoint and compile it again"
        )

    def _encode(
        self, tokenizer: Tokenizer, text: str, messages: list[Message], think: bool | None
    ) -> list[int]:
        tokens = control_tokens(tokenizer)
        if not tokens or not any(
            token in message["content"] for message in messages for token in tokens
        ):
            return token_ids(tokenizer, text)
        for contents in (
            [m["content"] for m in messages],
            [m["content"].strip() for m in messages],
        ):
            pieces = self._pieces(messages, contents, think)
            if "".join(piece for piece, _ in pieces) == text:
                return encode_pieces(tokenizer, self._plain, pieces)
        pattern = re.compile("|".join(map(re.escape, tokens)))
        safe = [m | {"content": pattern.sub(_break_token, m["content"])} for m in messages]
        return token_ids(tokenizer, self.rendered(safe, think))

    def _pieces(
        self, messages: list[Message], contents: list[str], think: bool | None
    ) -> list[tuple[str, bool]]:
        """(text, from the template) in order, found by rendering with a unique stand-in for each
        content.
        """
        nonce = secrets.randbits(64)  # no message can hold it
        names = [f"\ue000{nonce}:{i}\ue001" for i in range(len(messages))]
        skeleton = self.rendered(
            [m | {"content": name} for m, name in zip(messages, names, strict=True)], think
        )
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", skeleton)
        return [
            (contents[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts)
        ]

    def beginning(self, tokenizer: Tokenizer) -> list[int]:
        """The ids that a prompt begins with: BOS, or none."""
        if self.add_bos is None:
            return beginning(tokenizer)
        bos = tokenizer.token_to_id(self.bos_token) if self.bos_token and self.add_bos else None
        return [] if bos is None else [bos]

    def _with_bos(self, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
        first = self.beginning(tokenizer)
        return ids if ids[: len(first)] == first else [*first, *ids]

    def _prepare(
        self, messages: Sequence[Message], think: bool | None
    ) -> tuple[list[Message], bool | None]:
        clean = [check_message(message, i) for i, message in enumerate(messages)]
        if not clean:
            raise TemplateError(
                "no messages: expected at least one {'role': 'user', 'content': ...}"
            )
        if think is not None and not self.can_switch_thinking:
            raise TemplateError(
                f"{self.origin} has no thinking switch (enable_thinking): leave out think, "
                "--think and --no-think"
            )
        for i, message in enumerate(clean):
            if message["role"] == "assistant" and self._opened(clean[:i], messages[i], think):
                message["content"] = without_thinking(message["content"], opened=True)
        return clean, self._switch(clean, think)

    def _switch(self, messages: list[Message], think: bool | None) -> bool | None:
        """`think`, or what the last message's marker says; markers are taken out."""
        if self.takes_markers:
            return _take_markers(messages, think)
        return think

    def _opened(self, before: list[Message], message: Message, think: bool | None) -> bool:
        """Whether the message ends a think block that the template had opened for it: it begins
        with none of its own.
        """
        content = message["content"]
        if CLOSE not in content or content.lstrip().startswith(OPEN) or not before:
            return False
        asked = [dict(m) for m in before]
        try:
            return opens_thinking(self.rendered(asked, self._switch(asked, think)))
        except TemplateError:  # it refuses the conversation that far
            return False

    def rendered(self, messages: list[Message], think: bool | None) -> str:
        """The prompt of prepared messages. Think tags in messages are text: templates that cut an
        answer at its last `</think>` don't see them.
        """
        gap = ""
        if any(THINK_TAG.search(m["content"]) for m in messages):
            gap = self._unused_character(messages)
            messages = [
                m | {"content": THINK_TAG.sub(lambda tag: f"<{gap}{tag[0][1:]}", m["content"])}
                for m in messages
            ]
        values: dict[str, Any] = {} if think is None else {"enable_thinking": think}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        values |= {name: text for name, text in tokens.items() if text is not None}
        text = render_template(
            self._compiled,
            self.origin,
            **{**self.other_tokens, **values},
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
        )
        return text.replace(gap, "") if gap else text

    def _unused_character(self, messages: list[Message]) -> str:
        used = set(self.source).union(*(m["content"] for m in messages))
        unused = next((character for character in map(chr, PRIVATE) if character not in used), None)
        if unused is None:
            raise TemplateError("messages with think tags hold every private character: leave some")
        return unused


def check_message(message: Message, index: int = 0) -> Message:
    """A copy of the message, a past assistant's without its thinking. Raises TemplateError if it's
    malformed.
    """
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise TemplateError(
            f"message {index}: expected a dict with exactly 'role' and 'content', got "
            f"{message!r:.200}"
        )
    role = message["role"]
    content = message["content"]
    if role not in ROLES:
        raise TemplateError(f"message {index}: role {role!r:.80} is none of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise TemplateError(
            f"message {index}: content must be a string, got {type(content).__name__}"
        )
    content = whole_characters(content)
    return {"role": role, "content": without_thinking(content) if role == "assistant" else content}


def switch_name(think: bool | None) -> str:
    """The thinking switch in one word."""
    return {None: "default", True: "think", False: "no_think"}[think]


def _break_token(match: re.Match[str]) -> str:
    return match[0][0] + "\u200b" + match[0][1:]


def _take_markers(messages: list[Message], think: bool | None) -> bool | None:
    """Removes `/think` and `/no_think` from the ends of user messages; the last message's marker
    decides.
    """
    for message in messages:
        if message["role"] != "user":
            continue
        found = MARKER.search(message["content"])
        if found:
            message["content"] = message["content"][: found.start()]
        if found and message is messages[-1]:
            think = found[1] is None
    return think
