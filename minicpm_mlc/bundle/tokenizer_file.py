"""What tokenizer.json says of its tokens, without the library that encodes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own vocabulary, or one of it that is recognised as a whole."""

    id: int
    content: str


@dataclass(frozen=True)
class TokenizerFile:
    """`vocabulary`: the id of each of the model's tokens by its text; `added`: the added tokens."""

    vocabulary: dict[str, int]
    added: tuple[AddedToken, ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> TokenizerFile:
        """From the file's keys. Raises ValueError naming what is not as in such a file."""
        model = values.get("model")
        if not isinstance(model, dict):
            raise ValueError("it has no model")
        return TokenizerFile(_vocabulary(model.get("vocab")), _added(values.get("added_tokens")))

    def id_of(self, text: str) -> int | None:
        """The id of the token with this text; None where there is none."""
        added = {token.content: token.id for token in self.added}
        return added.get(text, self.vocabulary.get(text))

    def beyond(self, vocab_size: int) -> list[AddedToken]:
        """The added tokens that a model of `vocab_size` tokens can't compute, by their ids."""
        return sorted((t for t in self.added if t.id >= vocab_size), key=lambda token: token.id)


def _vocabulary(value: object) -> dict[str, int]:
    """Of a BPE, {text: id}; of a Unigram, [[text, score], ...] in the order of ids."""
    if isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value):
        value = {text: i for i, (text, _) in enumerate(value) if isinstance(text, str)}
    if not isinstance(value, dict) or not all(type(i) is int and i >= 0 for i in value.values()):
        raise ValueError("its model's vocab doesn't map texts to token ids")
    return value


def _added(value: object) -> tuple[AddedToken, ...]:
    tokens = [] if value is None else value
    if not isinstance(tokens, list):
        raise ValueError("added_tokens is no list")
    return tuple(map(_added_token, tokens))


def _added_token(value: object) -> AddedToken:
    match value:
        case {"id": int(number), "content": str(content)} if number >= 0:
            return AddedToken(number, content)
    raise ValueError(f"the added token {value!r:.80} has no id and content")
