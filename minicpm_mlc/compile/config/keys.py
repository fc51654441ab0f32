"""Reads a config.json key by key: what changes the maths is read or refused by name, harmless keys
pass.
"""

from __future__ import annotations

import json
from typing import Any

from minicpm_mlc.base.errors import ConfigError

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
    attention_dropout attn_dropout hidden_dropout resid_dropout resid_pdrop embd_pdrop embd_dropout
    dropout classifier_dropout attn_implementation attn_implementation_autoset use_flash_attn
    use_flash_attention_2 mup_denominator shift_labels keys_to_ignore_at_inference
    gradient_checkpointing unsloth_version unsloth_fixed bad_words_ids begin_suppress_tokens
    suppress_tokens forced_bos_token_id forced_eos_token_id num_beams num_beam_groups
    num_return_sequences do_sample early_stopping temperature top_k top_p typical_p
    repetition_penalty length_penalty diversity_penalty encoder_no_repeat_ngram_size
    no_repeat_ngram_size exponential_decay_length_penalty max_length min_length
    remove_invalid_values tf_legacy_loss use_bfloat16
    """.split()
)

_REQUIRED: Any = object()


class Keys:
    """A JSON object whose keys are taken one by one, checked for type and range. `where` names it
    in messages.
    """

    def __init__(self, values: object, where: str):
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a JSON object, found {shown(values)}")
        self.left: dict[str, Any] = dict(values)
        self.where = where

    def refuse(self, key: str, value: object, expected: str) -> ConfigError:
        """The error of a key whose value is not the expected one."""
        return ConfigError(f"{self.where}: {key} is {shown(value)}, expected {expected}")

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of `key`; an absent key gives the default or is refused as missing."""
        if key not in self.left and default is _REQUIRED:
            raise ConfigError(f"{self.where}: {key} is missing")
        return self.left.pop(key, default)

    def integer(
        self, key: str, default: Any = _REQUIRED, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """An integer in [low, high]. Raises ConfigError."""
        value = self.take(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def integer_or_null(self, key: str, default: int | None, low: int = 1) -> int | None:
        """An integer of at least `low`, or None where the file has null. Raises ConfigError."""
        value = self.left.get(key, default)
        return self.take(key, None) if value is None else self.integer(key, default, low)

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive number, as a float. Raises ConfigError."""
        value = self.take(key, default)
        if not is_positive(value):
            raise self.refuse(key, value, "a positive number")
        return float(value)

    def positive_or_null(self, key: str, default: Any = _REQUIRED) -> float | None:
        """A positive number, or None where the file has null. Raises ConfigError."""
        value = self.take(key, default)
        if value is not None and not is_positive(value):
            raise self.refuse(key, value, "a positive number or null")
        return value

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false. Raises ConfigError."""
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
                    f"{self.where}: {key} = {shown(value)} is not implemented, and a model that "
                    "was trained with it says something else without it; choose another model, or "
                    "add it: docs/extending.md"
                )


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
            f"{keys.where}: {key} = {shown(value)} is not implemented (only {shown(only)} "
            f"is){HINTS.get(key, '')}"
        )


def is_positive(value: object) -> bool:
    """Whether a JSON value is a number that float32 maths can multiply by."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-15 <= value <= 1e15
    )


def shown(value: object) -> str:
    """A JSON value as messages show it, in at most 60 characters."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
