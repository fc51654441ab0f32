"""Messages to prompt text and prompt ids: the checkpoint's own chat template, rendered in a
sandbox.

A turn can't be faked. Only the template's text may become control tokens such as `<|im_end|>`; the
same characters inside a message are encoded as plain text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.runtime_py.chat.jinja import (
    BUILT_IN,
    CHATML,
    compile_template,
    find_template,
    read_tokenizer_config,
    render_template,
)
from minicpm_mlc.runtime_py.chat.thinking import opens_thinking, without_thinking

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
MARKER = re.compile(r"(?:^|\s)/(no_)?think\s*\Z")


@dataclass(frozen=True)
class Prompt:
    """What the engine needs of a rendered conversation."""

    text: str
    ids: list[int]
    thinking: bool  # the template opened a think block that the model is to fill


@dataclass(frozen=True)
class ChatTemplate:
    """A jinja2 chat template and the facts of tokenizer_config.json that it needs."""

    source: str = CHATML
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = True
    origin: str = BUILT_IN
    _compiled: Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", compile_template(self.source, self.origin))

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """Template of a checkpoint or bundle: chat_template.jinja, else tokenizer_config.json, else
        plain ChatML.

        Raises:
            TemplateError: a file that isn't JSON, or a template that doesn't parse (with its line).
        """
        folder = Path(folder)
        config = read_tokenizer_config(folder / "tokenizer_config.json")
        source, origin = find_template(folder, config)
        bos = _token_text(config.get("bos_token"))
        eos = _token_text(config.get("eos_token"))
        return cls(source, bos, eos, config.get("add_bos_token") is not False, origin)

    @property
    def can_switch_thinking(self) -> bool:
        """The template reads `enable_thinking` (MiniCPM4.1, MiniCPM5); MiniCPM4's doesn't."""
        return "enable_thinking" in self.source

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
        return self._render(*self._prepare(messages, think))

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
        clean, switch = self._prepare(messages, think)
        text = self._render(clean, switch)
        ids = self._encode(tokenizer, text, clean, switch)
        return Prompt(text, self._with_bos(tokenizer, ids), opens_thinking(text))

    def _encode(
        self, tokenizer: Tokenizer, text: str, messages: list[Message], think: bool | None
    ) -> list[int]:
        tokens = control_tokens(tokenizer)
        if not tokens or not any(
            token in message["content"] for message in messages for token in tokens
        ):
            return tokenizer.encode(text, add_special_tokens=False).ids
        for contents in (
            [m["content"] for m in messages],
            [m["content"].strip() for m in messages],
        ):
            pieces = self._pieces(messages, contents, think)
            if "".join(piece for piece, _ in pieces) == text:
                return encode_pieces(tokenizer, pieces)
        pattern = re.compile("|".join(map(re.escape, tokens)))
        safe = [m | {"content": pattern.sub(_break_token, m["content"])} for m in messages]
        return tokenizer.encode(self._render(safe, think), add_special_tokens=False).ids

    def _pieces(
        self, messages: list[Message], contents: list[str], think: bool | None
    ) -> list[tuple[str, bool]]:
        """(text, from the template) in order, found by rendering with a unique stand-in for each
        content.
        """
        nonce = next(
            n for n in itertools.count() if not any(f"\ue000{n}:" in text for text in contents)
        )
        names = [f"\ue000{nonce}:{i}\ue001" for i in range(len(messages))]
        skeleton = self._render(
            [m | {"content": name} for m, name in zip(messages, names, strict=True)], think
        )
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", skeleton)
        return [
            (contents[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts)
        ]

    def _with_bos(self, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
        bos = tokenizer.token_to_id(self.bos_token) if self.bos_token and self.add_bos else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

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
        if self.can_switch_thinking and "/no_think" not in self.source:
            think = _take_markers(clean, think)
        return clean, think

    def _render(self, messages: list[Message], think: bool | None) -> str:
        values: dict[str, Any] = {} if think is None else {"enable_thinking": think}
        values |= {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "add_generation_prompt": True,
        }
        return render_template(self._compiled, self.origin, messages=messages, **values)


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


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text and id of every special token, longest first."""
    added = tokenizer.get_added_tokens_decoder().items()
    tokens = {token.content: i for i, token in added if token.special and token.content}
    return dict(sorted(tokens.items(), key=lambda item: -len(item[0])))


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[tuple[str, bool]]) -> list[int]:
    """Ids of (text, may hold control tokens) pieces; the others' control tokens become plain text.
    No BOS is added.

    Text between two control tokens is encoded in one go, across pieces, so that merges and the
    tokenizer's word prefix come out as they would for a harmless message.
    """
    tokens = control_tokens(tokenizer)
    pattern = re.compile("(" + "|".join(map(re.escape, tokens)) + ")") if tokens else None
    ids: list[int] = []
    run = ""
    for text, trusted in pieces:
        for part in pattern.split(text) if trusted and pattern else [text]:
            if trusted and part in tokens:
                ids += [*encode_plain(tokenizer, run), tokens[part]]
                run = ""
            else:
                run += part
    return ids + encode_plain(tokenizer, run)


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text that comes from outside: the characters of a control token are only
    characters.
    """
    if not text:
        return []
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before


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


def _token_text(token: Any) -> str:
    """A token of tokenizer_config.json is a string, an object with 'content', or null."""
    return token.get("content", "") if isinstance(token, dict) else token or ""
