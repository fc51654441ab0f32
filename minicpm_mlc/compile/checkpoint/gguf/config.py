"""config.json and generation_config.json of a GGUF file's metadata."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile, Value
from minicpm_mlc.compile.config.keys import is_positive

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
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
    rope.dimension_count rope.scaling.type rope.scaling.factor embedding_scale residual_scale
    logit_scale
""".split()
HARMLESS = {"rope.scaling.finetuned", "rope.scaling.original_context_length"}
# what the family has where an older file lacks the three scalings
MUP = {"embedding_scale": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}
OLD_FILE = "the file has no {key}: it is older than this key, and the family's {value:g} is taken"
END_TOKENS = ("<|im_end|>", "<|eot_id|>")  # end a turn, whatever eos_token_id says
LONG, SHORT, FREQUENCIES = "rope_factors_long", "rope_factors_short", "rope_freqs"
SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


class Metadata:
    """A GGUF file's keys, those of its architecture without the prefix. Raises CheckpointError for
    an architecture that is not read, ConfigError for a key that asks for other maths.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.values = file.metadata
        found = self.values.get("general.architecture")
        if found not in ARCHITECTURES:
            raise file.error(
                f"general.architecture is {found!r:.60}, expected {', '.join(ARCHITECTURES)}"
            )
        self.architecture = str(found)
        if self.values.get("general.type", "model") != "model":
            kind = self.values["general.type"]
            raise file.error(f"general.type is {kind!r:.60}, expected a whole model")

    def own(self, key: str, default: Value | None = None) -> Any:
        """The value of the architecture's `key`; a list of one value for each layer is that
        value.
        """
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, np.ndarray):
            if not len(value) or (value != value[0]).any():
                raise self.refuse(key, value.tolist()[:8], "the same in every layer")
            value = value[0].item()
        return decimal(value) if isinstance(value, float) else value

    def number(self, key: str) -> float | None:
        """The positive number of the architecture's `key`, where it has one."""
        value = self.own(key)
        if value is not None and not is_positive(value):
            raise self.refuse(key, value, "a positive number")
        return value

    def single(self, key: str) -> int | float | str | None:
        """The value of a key outside the architecture, where it has one that is no list."""
        value = self.values.get(key)
        if isinstance(value, (list, np.ndarray)):
            raise self.file.error(f"{key} is a list, expected one value; convert it again")
        return value

    def refuse(self, key: str, value: object, expected: str) -> ConfigError:
        """The error of an architecture's key."""
        where = f"{self.file.path}: {self.architecture}.{key}"
        return ConfigError(f"{where} is {value!r:.60}, expected {expected}")

    def check_keys(self) -> None:
        """Refuses a key of the architecture that is not read and may change the text."""
        known = {*SIZES.values(), *OTHERS, *HARMLESS}
        for name in self.values:
            prefix, _, key = name.partition(".")
            if prefix == self.architecture and key not in known and self.own(key):
                raise self.refuse(
                    key, self.own(key), "no such key: what it does is not implemented"
                )


def decimal(value: float) -> float:
    """The shortest decimal number that float32 rounds to this one: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def config_json(metadata: Metadata) -> tuple[dict[str, Any], list[str]]:
    """The config that the file stands for, and what a user should know of it."""
    metadata.check_keys()
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
    config |= _head_dim(metadata) | _rope_scaling(metadata, config) | _special_ids(metadata)
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


def _tokens(metadata: Metadata) -> list[str]:
    tokens = metadata.values.get("tokenizer.ggml.tokens", [])
    return tokens if isinstance(tokens, list) else []


def _head_dim(metadata: Metadata) -> dict[str, Any]:
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    found = {key: value for key in keys if (value := metadata.own(key)) is not None}
    if len(set(found.values())) > 1:
        raise metadata.refuse(keys[0], found, "one size for keys, values and RoPE")
    return {"head_dim": next(iter(found.values()))} if found else {}


def _rope_scaling(metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """LongRoPE's factors are tensors; other scalings are named, and refused with the config."""
    file, kind = metadata.file, metadata.own("rope.scaling.type")
    short, long, llama3 = (_vector(file, f"{name}.weight") for name in (SHORT, LONG, FREQUENCIES))
    if llama3 is not None and (llama3 != 1).any():
        raise file.error(
            f"{FREQUENCIES}.weight scales RoPE as Llama 3 does, which is not implemented"
        )
    if short is None and long is None and kind in (None, "none"):
        return {}
    if short is None or long is None:
        if kind != "linear":
            raise ConfigError(f"{file.path}: rope_type is {kind!r:.60}, expected none or linear")
        return {"rope_scaling": {"rope_type": kind, "factor": metadata.own("rope.scaling.factor")}}
    return {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": config["max_position_embeddings"],
        }
    }


def _vector(file: GgufFile, name: str) -> np.ndarray | None:
    if name not in file.tensors:
        return None
    tensor = file.tensors[name]
    if len(tensor.shape) != 1 or tensor.block.name != "F32":
        raise file.error(f"tensor {name} is {tensor.block.name} {list(tensor.shape)}, expected F32")
    return tensor.block.numbers(file.raw(name))[0]


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
