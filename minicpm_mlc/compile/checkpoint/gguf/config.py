"""config.json and generation_config.json of a GGUF file's metadata."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.metadata import ARCHITECTURES, Metadata, decimal
from minicpm_mlc.compile.checkpoint.gguf.rope import KEYS as ROPE_KEYS
from minicpm_mlc.compile.checkpoint.gguf.rope import rope_scaling
from minicpm_mlc.compile.config.keys import is_positive

# config.json's key: the metadata key after the architecture
SIZES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
OTHERS = """
    attention.head_count_kv attention.key_length attention.value_length rope.freq_base vocab_size
    rope.dimension_count embedding_scale residual_scale logit_scale
""".split()
HARMLESS = {"rope.scaling.finetuned"}
# what the family has where an older file lacks the three scalings
MUP = {"embedding_scale": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}
OLD_FILE = "the file has no {key}: it is older than this key, and the family's {value:g} is taken"
END_TOKENS = ("<|im_end|>", "<|eot_id|>")  # end a turn, whatever eos_token_id says
SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


def config_json(metadata: Metadata) -> tuple[dict[str, Any], list[str]]:
    """The config that the file stands for, and what a user should know of it."""
    _check_keys(metadata)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[metadata.architecture]],
        "model_type": metadata.architecture,
        "hidden_act": "silu",
        "torch_dtype": "float16",
        "tie_word_embeddings": "output.weight" not in metadata.file.tensors,
        "rope_theta": metadata.own("rope.freq_base", 10000.0),
        "vocab_size": metadata.own("vocab_size", len(_tokens(metadata))),
    }
    for key, name in SIZES.items():
        if (value := metadata.own(name)) is None:
            raise metadata.file.error(f"has no {metadata.architecture}.{name}; convert it again")
        config[key] = value
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = metadata.own("attention.head_count_kv", heads)
    config |= _head_dim(metadata) | _special_ids(metadata)
    if scaling := rope_scaling(metadata, config["max_position_embeddings"]):
        config["rope_scaling"] = scaling
    scalings, notes = (
        _scalings(metadata, config) if metadata.architecture == "minicpm" else ({}, [])
    )
    return config | scalings, notes


def generation_json(metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Sampling defaults, where the file has some, and the tokens that end an answer."""
    values = {key: metadata.single(f"general.sampling.{name}") for name, key in SAMPLING.items()}
    given = {
        k: decimal(v) if isinstance(v, float) else v for k, v in values.items() if v is not None
    }
    return given | {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}


def _check_keys(metadata: Metadata) -> None:
    """Refuses a key of the architecture that is not read and may change the text."""
    known = {*SIZES.values(), *OTHERS, *HARMLESS, *ROPE_KEYS}
    for name in metadata.values:
        prefix, _, key = name.partition(".")
        if prefix == metadata.architecture and key not in known and metadata.own(key):
            expected = "no such key: what it does is not implemented"
            raise metadata.refuse(key, metadata.own(key), expected)


def _tokens(metadata: Metadata) -> list[str]:
    tokens = metadata.values.get("tokenizer.ggml.tokens", [])
    return tokens if isinstance(tokens, list) else []


def _head_dim(metadata: Metadata) -> dict[str, Any]:
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    found = {key: value for key in keys if (value := metadata.own(key)) is not None}
    if len(set(found.values())) > 1:
        raise metadata.refuse(keys[0], found, "one size for keys, values and RoPE")
    return {"head_dim": next(iter(found.values()))} if found else {}


def _special_ids(metadata: Metadata) -> dict[str, Any]:
    """bos and pad, and every token that ends a turn as eos."""
    ids = {
        key: metadata.single(f"tokenizer.ggml.{name}_token_id")
        for key, name in {"bos": "bos", "eos": "eos", "eot": "eot", "pad": "padding"}.items()
    }
    tokens = _tokens(metadata)
    named = [tokens.index(token) for token in END_TOKENS if token in tokens]
    ends = [end for end in (ids["eos"], ids["eot"], *named) if end is not None]
    special = {"bos_token_id": ids["bos"], "pad_token_id": ids["pad"]}
    return special | {"eos_token_id": list(dict.fromkeys(ends)) or None}


def _scalings(metadata: Metadata, config: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """MiniCPM4's: the file has scale_depth / sqrt(layers) and hidden_size / dim_model_base."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    if type(layers) is not int or layers < 1:
        raise metadata.refuse("block_count", layers, "a number of layers")
    if not is_positive(hidden):
        raise metadata.refuse("embedding_length", hidden, "a positive number")
    residual, logits = metadata.number("residual_scale"), metadata.number("logit_scale")
    depth = None if residual is None else residual * math.sqrt(layers)
    found = {
        "embedding_scale": metadata.own("embedding_scale"),
        "scale_depth": depth and _rounded(depth, np.float32(residual), 1 / math.sqrt(layers)),
        "dim_model_base": logits and _rounded(hidden / logits, np.float32(hidden / logits), 1),
    }
    names = dict(zip(found, ("embedding_scale", "residual_scale", "logit_scale"), strict=True))
    notes = [
        OLD_FILE.format(key=f"minicpm.{names[key]}", value=MUP[key])
        for key, value in found.items()
        if value is None
    ]
    values = {key: MUP[key] if value is None else value for key, value in found.items()}
    return {"scale_emb": values.pop("embedding_scale"), **values}, notes


def _rounded(value: float, stored: np.float32, times: float) -> float:
    """The shortest number that gives what is stored, times a factor."""
    shorter = (round(value, digits) for digits in range(1, 7))
    return next((s for s in shorter if np.float32(s * times) == stored), value)
