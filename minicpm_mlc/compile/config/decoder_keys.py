"""The keys that the config.json of every decoder has."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.bundle.generation_config import token_ids
from minicpm_mlc.compile.config.keys import Keys, check_fixed
from minicpm_mlc.compile.config.rope import read_rope


def decoder_fields(
    keys: Keys, *, tied: bool, bos: int | None = 1, eos: int | None = 2
) -> dict[str, Any]:
    """The fields of ModelConfig that every decoder has. Raises ConfigError.

    Absent keys have the defaults of the published configuration classes; `tied` is that of
    tie_word_embeddings, `bos` and `eos` are those of bos_token_id and eos_token_id, which differ
    between models.
    """
    check_fixed(keys)
    heads = keys.integer("num_attention_heads")
    hidden = keys.integer("hidden_size")
    if keys.left.get("head_dim") is None:
        keys.left["head_dim"] = _derived_head_dim(keys.where, hidden, heads)
    fields: dict[str, Any] = {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_layers": keys.integer("num_hidden_layers", high=1024),
        "num_heads": heads,
        "num_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": keys.integer("head_dim", high=1024),
        "rms_norm_eps": keys.positive("rms_norm_eps", 1e-6),
        "tie_word_embeddings": keys.boolean("tie_word_embeddings", tied),
        "bos_token_id": keys.integer_or_null("bos_token_id", bos, low=0),
        "eos_token_ids": _eos(keys, eos),
    }
    return fields | read_rope(keys, fields["head_dim"])


def _derived_head_dim(where: str, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )
    return hidden // heads


def _eos(keys: Keys, default: int | None) -> tuple[int, ...]:
    """None where the file has null: generation_config.json or the tokenizer may name some."""
    value = keys.take("eos_token_id", default)
    if value == []:
        raise keys.refuse("eos_token_id", value, "a token id or a list of token ids")
    try:
        return token_ids({"eos_token_id": value}, "eos_token_id")
    except ValueError as wrong:
        raise ConfigError(f"{keys.where}: {wrong}") from None
