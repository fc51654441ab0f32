"""How tokens are drawn, read from the fields that OpenAI's API and its kin share."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.base.choices import SPECULATE
from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.serve.served import Drawing

MOST_STOPS = 64
MOST_CHOICES = 128
MOST_LIKELY = 20
# told and not used: they change nothing of an answer here
IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prediction verbosity "
    "stream_options cache_prompt id_slot".split()
)


def sampling_options(fields: Fields) -> dict[str, Any]:
    """The options of Engine.generate that are fields of all these APIs."""
    options = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "seed": fields.whole("seed", -(2**63), 2**64 - 1),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "top_k": fields.whole("top_k", -1),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0, 100),
        "speculate": fields.choice("speculate", SPECULATE),  # the engine's own option
    }
    repeat = fields.number("repeat_penalty", 0, 100)  # llama.cpp's name
    options["repetition_penalty"] = options["repetition_penalty"] or repeat
    return cleaned(options)


def cleaned(options: dict[str, Any]) -> dict[str, Any]:
    """Without what isn't given, and with the numbers that mean "all" and "any" as the engine has
    them.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if given.get("top_p") == 0:  # the likeliest token alone
        given |= {"top_p": 1.0, "top_k": 1}
    if given.get("seed", 0) < 0:  # llama.cpp and Ollama: another text each time
        del given["seed"]
    return given


def read_drawing(fields: Fields, max_tokens: int | None, logprobs: int | None) -> Drawing:
    """Everything about drawing in a request of OpenAI's."""
    options = sampling_options(fields)
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    least = fields.whole("min_tokens", 0) or 0
    return Drawing(
        options,
        read_stops(fields, "stop"),
        fields.whole("n", 1, MOST_CHOICES) or 1,
        logprobs,
        _biases(fields),
        None if fields.flag("ignore_eos") else least,
    )


def read_stops(fields: Fields, name: str) -> list[str]:
    """Stop strings; empty ones are none."""
    stops = [stop for stop in fields.texts(name) if stop]
    if len(stops) > MOST_STOPS:
        raise FieldError(f"{name} has {len(stops)} texts; expected at most {MOST_STOPS}", name)
    return stops


def _biases(fields: Fields) -> dict[int, float]:
    given = fields.object("logit_bias")
    biases: dict[int, float] = {}
    for key in given.values if given else ():
        if not key.isdecimal() or len(key) > 9:
            raise FieldError(
                f"logit_bias has the key {key!r:.40}; expected token ids", "logit_bias"
            )
        biases[int(key)] = given.number(key, -100, 100) or 0.0  # type: ignore[union-attr]
    return biases
