"""Small random checkpoints with the published models' file names and shape families, for any test
that needs one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from minicpm_mlc.compile.checkpoint import RandomCheckpoint
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS

# Each keeps its preset's head_dim, factors, tying and number of query heads per kv head.
TINY: dict[str, dict[str, Any]] = {
    "MiniCPM4-0.5B": {
        "hidden_size": 1024,
        "intermediate_size": 192,
        "num_heads": 16,
        "num_kv_heads": 2,
    },
    "MiniCPM4-8B": {
        "hidden_size": 2048,
        "intermediate_size": 96,
        "num_heads": 16,
        "num_kv_heads": 1,
    },
    "MiniCPM4.1-8B": {
        "hidden_size": 256,
        "intermediate_size": 320,
        "num_heads": 32,
        "num_kv_heads": 2,
    },
    "MiniCPM5-1B": {
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_heads": 16,
        "num_kv_heads": 2,
    },
}
# Settings of sparse attention, few so that tests share bundles: a row reads 6 blocks,
# or 4, of which one is chosen by its score.
SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=4, dense_len=384)
NARROW = SparseConfig(init_blocks=1, window_size=64, topk=3, dense_len=256)
# LongRoPE factors as the config.json files have them, digit by digit: model -> "native" and "128K".
PUBLISHED_ROPE: dict[str, dict[str, list[float]]] = json.loads(
    (Path(__file__).parent / "published_rope_factors.json").read_text()
)
SIZES = {
    "bf16": ("bfloat16", np.uint16),
    "f16": ("float16", np.float16),
    "f32": ("float32", np.float32),
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(preset_name: str, **overrides: Any) -> ModelConfig:
    """The preset scaled down to two layers and a vocabulary of 323, which no kernel's tile
    divides.
    """
    vocab = overrides.get("vocab_size", 323)
    small = {
        "num_layers": 2,
        "vocab_size": vocab,
        "eos_token_ids": (2, vocab - 2),
        **TINY[preset_name],
        **overrides,
    }
    return replace(PRESETS[preset_name], **small)


def config_json(config: ModelConfig, form: str = "remote") -> dict[str, Any]:
    """config.json of the published remote-code form, or of transformers' own ("native") with
    rope_parameters.
    """
    assert config.rope_attention_scale == 1.0, (
        "the original context isn't kept, so another scale can't be written"
    )
    rope: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(config.rope_factors),
        "long_factor": list(config.rope_factors),
        "original_max_position_embeddings": config.max_position_embeddings,
    }
    values: dict[str, Any] = {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "initializer_range": 0.1,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if config.head_dim * config.num_heads != config.hidden_size:
        values["head_dim"] = config.head_dim
    if config.sparse:
        values["sparse_config"] = asdict(config.sparse)
    if config.model_type == "llama":
        llama = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rope_theta": config.rope_theta,
        }
        scaled = any(factor != 1.0 for factor in config.rope_factors)
        values |= llama | {"rope_scaling": rope if scaled else None, "attention_bias": False}
        del values["auto_map"]
        return values
    values |= {"scale_emb": config.scale_emb, "scale_depth": config.scale_depth}
    values |= {"dim_model_base": config.dim_model_base}
    if form == "native":
        values |= {
            "architectures": ["MiniCPM4ForCausalLM"],
            "model_type": "minicpm4",
            "head_dim": config.head_dim,
        }
        values |= {"rope_parameters": {**rope, "rope_theta": config.rope_theta}, "mlp_bias": False}
        del values["auto_map"]
        return values
    return values | {"rope_theta": config.rope_theta, "rope_scaling": rope}


def write_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    *,
    dtype: str = "bf16",
    seed: int = 0,
    shards: int = 1,
    tied_alias: bool = False,
    form: str = "remote",
    **config_overrides: Any,
) -> dict[str, np.ndarray]:
    """Writes a random checkpoint and returns its weights as float32, after rounding to `dtype`
    (bf16, f16 or f32).

    `tied_alias` stores lm_head.weight beside a tied embedding; `config_overrides` replace keys of
    config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = RandomCheckpoint(config, seed)
    weights = {
        name: _round(_unlike_ones(name, source.rows(name)), dtype) for name in source.names()
    }
    stored = weights | (
        {"lm_head.weight": weights["model.embed_tokens.weight"]} if tied_alias else {}
    )
    write_tensors(folder, stored, dtype, shards)
    write_json(folder / "config.json", config_json(config, form) | config_overrides)
    write_json(
        folder / "generation_config.json", {"do_sample": True, "temperature": 0.9, "top_p": 0.95}
    )
    write_tokenizer(folder, config.vocab_size)
    return weights


def write_tensors(
    folder: Path, tensors: dict[str, np.ndarray], dtype: str = "bf16", shards: int = 1
) -> None:
    """model.safetensors, or `shards` numbered files of it and their index."""
    if shards == 1:
        return save_tensors(folder / "model.safetensors", tensors, dtype)
    places = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(tensors)
    }
    for file in set(places.values()):
        save_tensors(
            folder / file, {name: tensors[name] for name in tensors if places[name] == file}, dtype
        )
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def save_tensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "bf16") -> None:
    kind, stored_as = SIZES[dtype]
    stored = {}
    for name, value in tensors.items():
        bits = (value.view(np.uint32) >> 16) if dtype == "bf16" else value
        stored[name] = np.ascontiguousarray(bits.astype(stored_as))
    specs = {
        name: TensorSpec(
            dtype=kind, shape=list(value.shape), data_ptr=value.ctypes.data, data_len=value.nbytes
        )
        for name, value in stored.items()
    }
    serialize_file(specs, str(path), {"format": "pt"})


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A SentencePiece-like BPE of letters with byte fallback; the last two ids are <|im_end|> and
    <|im_start|>.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
    pieces += letters[: vocab_size - 2 - len(pieces)]
    pieces += [f"<unused{i}>" for i in range(vocab_size - 2 - len(pieces))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    bpe = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>"]
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in specials]
    )
    # as published: encoding adds <s> unless asked not to
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": CHAT_TEMPLATE})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _unlike_ones(name: str, value: np.ndarray) -> np.ndarray:
    """Norm weights that differ from channel to channel, so that a forgotten norm shows."""
    return (
        value
        if value.ndim == 2
        else value + 0.25 * np.sin(np.arange(value.size, dtype=np.float32) + len(name))
    )


def _round(value: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rounded to what `dtype` can hold; bf16 to nearest even by its bits."""
    if dtype == "bf16":
        bits = value.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return value.astype(SIZES[dtype][1]).astype(np.float32)
