"""Prompt text to ids, with the texts of control tokens in messages taken for text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Tokenizer

from minicpm_mlc.prompt.library_tokenizer import token_ids


class PlainText:
    """Encodes text from outside: the characters of a control token are only characters.

    It does so on a copy of the tokenizer. Switching the tokenizer itself, for a moment, would show
    in what other threads encode.
    """

    def __init__(self) -> None:
        self._copied: tuple[Tokenizer, Tokenizer] | None = None  # the last tokenizer and its copy

    def ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids of text; none of them is a special token."""
        return token_ids(self._copy(tokenizer), text) if text else []

    def _copy(self, tokenizer: Tokenizer) -> Tokenizer:
        copied = self._copied  # read once: another thread may replace it
        if copied is None or copied[0] is not tokenizer:
            copy = Tokenizer.from_str(tokenizer.to_str())
            copy.encode_special_tokens = True
            self._copied = copied = tokenizer, copy
        return copied[1]


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text and id of every special token, longest first."""
    added = tokenizer.get_added_tokens_decoder().items()
    tokens = {token.content: i for i, token in added if token.special and token.content}
    return dict(sorted(tokens.items(), key=lambda item: -len(item[0])))


def encode_pieces(
    tokenizer: Tokenizer, plain: PlainText, pieces: Iterable[tuple[str, bool]]
) -> list[int]:
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
                ids += [*plain.ids(tokenizer, run), tokens[part]]
                run = ""
            else:
                run += part
    return ids + plain.ids(tokenizer, run)


def beginning(tokenizer: Tokenizer) -> list[int]:
    """Ids that tokenizer.json's post-processor puts before a text: BOS, or none.

    It alone decides, as in `transformers`: `add_bos_token` of tokenizer_config.json counts only
    where there is no tokenizer.json.
    """
    bare = token_ids(tokenizer, "a")
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[: next(starts, 0)]
