"""Reads a config.json key by key: what changes the maths is read or refused by name, harmless keys
pass.
"""

from __future__ import annotations

import json
import math
from typing import Any

from minicpm_mlc.base.errors import ConfigError

MODEL_TYPES = {"minicpm": "minicpm4", "minicpm4": "minicpm4", "llama": "llama"}
ARCHITECTURES = {
    "MiniCPMForCausalLM": "minicpm4",
    "MiniCPM4ForCausalLM": "minicpm4",
    "LlamaForCausalLM": "llama",
}

# Maths that exists elsewhere and not here: only the value that switches it off is accepted.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "attn_use_rope": True,
    "attn_use_output_gate": False,
    "qk_norm": False,
    "use_output_gate": False,
    "use_output_norm": False,
    "num_experts": 0,
    "num_local_experts": 0,
    "sliding_window": None,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
    "mixer_types": None,
    "quantization_config": None,
}

HINTS = {"quantization_config": "; compile the unquantised checkpoint instead"}

# Training, serialisation and generation settings: none of them changes a logit.
HARMLESS = frozenset(
    """
    auto_map transformers_version torch_dtype dtype initializer_range use_cache return_dict
    return_dict_in_generate output_hidden_states output_attentions output_scores torchscript
    tokenizer_class pad_token_id sep_token_id decoder_start_token_id cls_token_id unk_token_id
    prefix chunk_size_feed_forward cross_attention_hidden_size is_decoder tie_encoder_decoder
    pruned_heads id2label label2id problem_type task_specific_params finetuning_task
    attention_dropout attn_dropout hidden_dropout resid_dropout resid_pdrop embd_pdrop
    embd_dropout dropout classifier_dropout attn_implementation attn_implementation_autoset
    use_flash_attn use_flash_attention_2 mup_denominator shift_labels
    keys_to_ignore_at_inference gradient_checkpointing unsloth_version unsloth_fixed
    bad_words_ids begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id
    num_beams num_beam_groups num_return_sequences do_sample early_stopping temperature top_k
    top_p typical_p repetition_penalty length_penalty diversity_penalty
    encoder_no_repeat_ngram_size no_repeat_ngram_size exponential_decay_length_penalty
    max_length min_length remove_invalid_values tf_legacy_loss use_bfloat16
    """.split()
)

_REQUIRED: Any = object()


class Keys:
    """A JSON object whose keys are taken one by one, checked for type and range. `where` names it
    in messages.
    """

    def __init__(self, values: object, where: str):
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a JSON object, found {_shown(values)}")
        self.left: dict[str, Any] = dict(values)
        self.where = where

    def refuse(self, key: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key} is {_shown(value)}, expected {expected}")

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of `key`; an absent key gives the default or is refused as missing."""
        if key not in self.left and default is _REQUIRED:
            raise ConfigError(f"{self.where}: {key} is missing")
        return self.left.pop(key, default)

    def integer(
        self, key: str, default: Any = _REQUIRED, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        value = self.take(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        value = self.take(key, default)
        if not _is_positive(value):
            raise self.refuse(key, value, "a positive number")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Refuses every key nobody took, unless it is harmless, private to transformers, or
        switched off.
        """
        for key, value in self.left.items():
            off = value is None or value is False or value in ([], {}, "")
            if not off and key not in harmless and not key.startswith("_"):
                raise ConfigError(
                    f"{self.where}: {key} = {_shown(value)} is not implemented and may change "
                    "the model's text; "
                    "remove the key if it has no effect on this model"
                )


def read_fields(raw: object, where: str = "config.json") -> dict[str, Any]:
    """ModelConfig's fields (without `name`, and with `sparse` still a JSON object) from a parsed
    config.json.

    Absent keys have the defaults of the published configuration classes. Raises ConfigError.
    """
    keys = Keys(raw, where)
    model_type = _model_type(keys)
    check_fixed(keys)
    heads = keys.integer("num_attention_heads")
    hidden = keys.integer("hidden_size")
    if keys.left.get("head_dim") is None:
        keys.left["head_dim"] = _derived_head_dim(where, hidden, heads)
    fields: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_layers": keys.integer("num_hidden_layers", high=1024),
        "num_heads": heads,
        "num_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": keys.integer("head_dim", high=1024),
        "rms_norm_eps": keys.positive("rms_norm_eps", 1e-6),
        "tie_word_embeddings": keys.boolean("tie_word_embeddings", model_type == "minicpm4"),
        "bos_token_id": keys.integer("bos_token_id", 1, low=0),
        "eos_token_ids": _eos(keys),
        "sparse": keys.take("sparse_config", None),
    }
    fields |= _scalings(keys, model_type)
    fields |= read_rope(keys, fields["head_dim"])
    keys.finish(HARMLESS)
    return fields


def _model_type(keys: Keys) -> str:
    named = keys.take("model_type", None)
    architectures = keys.take("architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise keys.refuse("architectures", architectures, "a list of names")
    found = {ARCHITECTURES.get(a, f"architecture {a}") for a in architectures}
    if named is not None:  # the published 0.5B has no model_type
        found.add(MODEL_TYPES.get(str(named), f"model_type {named}"))
    if len(found) != 1 or not found <= set(MODEL_TYPES.values()):
        raise ConfigError(
            f"{keys.where}: model_type {_shown(named)} with architectures "
            f"{_shown(architectures)} is not supported, "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    return found.pop()


def check_fixed(keys: Keys) -> None:
    """Takes the keys of maths that exists elsewhere. Raises ConfigError where one is switched
    on.
    """
    for key, only in FIXED.items():
        value = keys.take(key, None)
        if value is None or (value == only and isinstance(value, bool) == isinstance(only, bool)):
            continue
        # use_sliding_window false switches the window off whatever its size
        if key == "sliding_window" and keys.left.get("use_sliding_window") is False:
            continue
        raise ConfigError(
            f"{keys.where}: {key} = {_shown(value)} is not implemented (only {_shown(only)} "
            f"is){HINTS.get(key, '')}"
        )


def _derived_head_dim(where: str, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )
    return hidden // heads


def _eos(keys: Keys) -> tuple[int, ...]:
    value = keys.take("eos_token_id", 2)
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise keys.refuse("eos_token_id", value, "a token id or a list of token ids")
    return tuple(ids)


def _scalings(keys: Keys, model_type: str) -> dict[str, float | None]:
    """The muP scalings; null switches one off. Llama has none, and there the same keys are
    refused.
    """
    if model_type == "llama":
        return {"scale_emb": 1.0, "scale_depth": None, "dim_model_base": None}
    depth = keys.take("scale_depth")
    base = keys.take("dim_model_base")
    for key, value in (("scale_depth", depth), ("dim_model_base", base)):
        if value is not None and not _is_positive(value):
            raise keys.refuse(key, value, "a positive number or null")
    return {"scale_emb": keys.positive("scale_emb"), "scale_depth": depth, "dim_model_base": base}


def read_rope(keys: Keys, head_dim: int) -> dict[str, Any]:
    """RoPE from `rope_scaling` (published configs) or `rope_parameters` (newer transformers)."""
    scaling, parameters = keys.take("rope_scaling", None), keys.take("rope_parameters", None)
    if scaling and parameters and scaling != parameters:
        raise ConfigError(
            f"{keys.where}: rope_scaling and rope_parameters are both given and differ; keep one"
        )
    rope = Keys(
        parameters or scaling or {},
        f"{keys.where}: {'rope_parameters' if parameters else 'rope_scaling'}",
    )
    theta = keys.positive("rope_theta", rope.left.get("rope_theta", 10000.0))
    if rope.positive("rope_theta", theta) != theta:
        raise ConfigError(
            f"{keys.where}: rope_theta is {theta} at the top and another value in {rope.where}"
        )
    original = keys.take("original_max_position_embeddings", None)
    kind = _rope_type(rope)
    _accept(rope, "partial_rotary_factor", (1.0,))
    if kind == "default":
        _accept(rope, "factor", (1.0,))
        longest = keys.integer("max_position_embeddings")
        factors, scale = (1.0,) * (head_dim // 2), 1.0
    else:
        original = rope.take("original_max_position_embeddings", original)
        longest = keys.integer("max_position_embeddings", original)
        factors, scale = _longrope(
            rope, head_dim, longest, longest if original is None else original
        )
    rope.finish()
    return {
        "rope_theta": theta,
        "rope_factors": factors,
        "rope_attention_scale": scale,
        "max_position_embeddings": longest,
    }


def _rope_type(rope: Keys) -> str:
    known = {"longrope": "longrope", "su": "longrope", "default": "default"}
    kinds = [
        kind for kind in (rope.take("rope_type", None), rope.take("type", None)) if kind is not None
    ]
    if not kinds and not rope.left.keys() - {"rope_theta"}:
        return "default"
    found = {known.get(str(kind)) for kind in kinds} or {None}
    kind = found.pop()
    if kind is None or found:
        raise rope.refuse(
            "rope_type", kinds, "longrope, su or default (no other scaling is implemented)"
        )
    return kind


def _longrope(
    rope: Keys, head_dim: int, longest: int, original: int
) -> tuple[tuple[float, ...], float]:
    """Factors, and the scale of cos and sin: sqrt(1 + ln(longest/original) / ln(original)), arXiv
    2402.13753.
    """
    if type(original) is not int or original < 2:
        raise rope.refuse(
            "original_max_position_embeddings", original, "a whole number of at least 2"
        )
    short, long = rope.take("short_factor"), rope.take("long_factor")
    for key, factors in (("short_factor", short), ("long_factor", long)):
        if not isinstance(factors, list) or not all(_is_positive(f) for f in factors):
            raise ConfigError(f"{rope.where}: {key} must be a list of positive numbers")
        if len(factors) != head_dim // 2:
            raise ConfigError(
                f"{rope.where}: {key} has {len(factors)} factors, expected {head_dim // 2}, half "
                "of head_dim"
            )
    if short != long:
        raise ConfigError(
            f"{rope.where}: short_factor and long_factor differ, which is not implemented"
        )
    ratio = max(1.0, longest / original)
    scale = math.sqrt(1 + math.log(ratio) / math.log(original))
    _accept(rope, "factor", (1.0, ratio))
    _accept(rope, "attention_factor", (scale,))
    return tuple(float(f) for f in short), scale


def _accept(rope: Keys, key: str, values: tuple[float, ...]) -> None:
    found = rope.take(key, None)
    if found is not None and not (
        _is_positive(found) and any(math.isclose(found, v) for v in values)
    ):
        raise rope.refuse(key, found, " or ".join(f"{v:.6g}" for v in dict.fromkeys(values)))


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-15 <= value <= 1e15
    )


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
