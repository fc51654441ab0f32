"""Log-probabilities in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from minicpm_mlc.runtime_py.events import Scored
from minicpm_mlc.serve.served import Served

LOWEST = -9999.0  # stands for minus infinity, which JSON lacks


def chat_logprobs(served: Served, tokens: Iterable[Scored], count: int) -> list[dict[str, Any]]:
    """An entry for each token of the answer's text."""
    return [
        _entry(served, token.token_id, token.logprob)
        | {"top_logprobs": [_entry(served, i, value) for i, value in token.top[:count]]}
        for token in tokens
    ]


def text_logprobs(
    served: Served, tokens: Sequence[Scored], count: int, offset: int = 0
) -> dict[str, Any]:
    """The older form. The top list holds the token itself too, with the very same number; of two
    tokens with one text it is the one that counts.
    """
    texts = [served.token_text(token) for token in tokens]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [
            _top(served, token, text, count) for token, text in zip(tokens, texts, strict=True)
        ],
        "text_offset": offsets[:-1],
    }


def finite(value: float | None) -> float | None:
    """A number that JSON has."""
    return value if value is None else max(value, LOWEST)


def _top(served: Served, token: Scored, text: str, count: int) -> dict[str, float | None] | None:
    if token.logprob is None:
        return None
    likely: dict[str, float | None] = {}
    for i, value in token.top[:count]:
        likely.setdefault(served.token_text(i), finite(value))
    return likely | {text: finite(token.logprob)}


def _entry(served: Served, token_id: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": served.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(served.token_bytes(token_id)),
    }
