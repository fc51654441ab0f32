"""generation_config.json: how tokens are drawn where the caller doesn't say, and what ends an
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMBERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationConfig:
    """`sampling` holds the options that the file sets, `eos_token_ids` its end tokens."""

    sampling: dict[str, float]
    eos_token_ids: tuple[int, ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> GenerationConfig:
        """From the file's keys; null says nothing. Raises ValueError naming a key of another
        kind.
        """
        return GenerationConfig(_sampling(values), token_ids(values, "eos_token_id"))


def token_ids(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Token ids, from one or a list of them; none where the key is null or absent. Raises
    ValueError for anything else.
    """
    value = values.get(key)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{key} is {value!r:.60}, expected a token id or a list of token ids")
    return tuple(ids)


def _sampling(values: Mapping[str, Any]) -> dict[str, float]:
    sampled = values.get("do_sample")
    if not (sampled is None or isinstance(sampled, bool)):
        raise ValueError(f"do_sample is {sampled!r:.60}, expected true or false")
    # a greedy answer reads no number but the penalty
    names = ("repetition_penalty",) if sampled is False else NUMBERS
    given = {name: _number(name, values[name]) for name in names if values.get(name) is not None}
    if "top_k" in given:
        given["top_k"] = _count("top_k", given["top_k"])
    return given | ({"temperature": 0.0} if sampled is False else {})


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r:.60}, expected a number")
    return value


def _count(name: str, value: float) -> int:
    """vLLM writes -1 for "all", and some tools write whole numbers as 50.0."""
    if value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise ValueError(f"{name} is {value!r:.60}, expected a whole number")
    return 0 if value == -1 else int(value)
