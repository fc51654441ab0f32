"""Shapes to measure: a published model's, with other numbers of layers, context or sparse attention
than it has.
"""

from __future__ import annotations

import itertools
import json
import string
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.model.registry import models, sparse_settings

CONTEXT = 1 << 18  # tokens: no depth is refused, and RoPE's angles cost the same everywhere
SAME_KEYS = """
    vocab_size hidden_size intermediate_size head_dim rms_norm_eps rope_theta
    max_position_embeddings tie_word_embeddings bos_token_id
"""
MUP_KEYS = "scale_emb scale_depth dim_model_base"
LETTERS = [*string.ascii_lowercase, " "]
NOT_PART_OF_WORDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"


def shape(preset: str, layers: int | None = None, sparse: bool = False) -> ModelConfig:
    """The preset's shape with `layers` layers; with `sparse` it has the published sparse attention
    whatever its heads.
    """
    config = PRESETS[preset]
    parts = [preset, *([f"{layers}-layers"] if layers else []), *(["sparse"] if sparse else [])]
    return replace(
        config,
        name="-".join(parts),
        num_layers=layers or config.num_layers,
        max_position_embeddings=CONTEXT,
        sparse=SparseConfig() if sparse else sparse_settings(config),
    )


def write_source(config: ModelConfig, folder: Path) -> Path:
    """A checkpoint folder without weights, for `compile --random-weights`; its name is the
    model's.
    """
    source = folder / config.name
    source.mkdir(parents=True, exist_ok=True)
    tokenizer = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {
        "config": config_json(config),
        "tokenizer_config": tokenizer,
        "tokenizer": tokenizer_json(config.vocab_size),
    }
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    return source


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json as published; the context's original length is its length, so that RoPE keeps its
    scale.
    """
    factors = list(config.rope_factors)
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    rope["original_max_position_embeddings"] = config.max_position_embeddings
    keys = {key: getattr(config, key) for key in SAME_KEYS.split()}
    keys |= {"num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads}
    keys |= {
        "num_key_value_heads": config.num_kv_heads,
        "eos_token_id": list(config.eos_token_ids),
        "rope_scaling": rope,
    }
    keys["architectures"] = [models()[config.model_type].architectures[0]]
    if config.scale_depth:
        keys |= {key: getattr(config, key) for key in MUP_KEYS.split()}
    return keys | ({"sparse_config": asdict(config.sparse)} if config.sparse else {})


def tokenizer_json(vocab_size: int) -> dict[str, Any]:
    """A byte-fallback BPE as large as the model's: its words are letters and ever longer strings of
    them.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    words = (
        "".join(word)
        for length in itertools.count(2)
        for word in itertools.product(LETTERS, repeat=length)
    )
    longer = list(itertools.islice(words, vocab_size - len(pieces)))
    vocab = {piece: i for i, piece in enumerate(pieces + longer)}
    merges = [[word[:-1], word[-1]] for word in longer]
    specials = [
        {"id": i, "content": pieces[i], "special": True} | NOT_PART_OF_WORDS for i in range(3)
    ]
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": merges,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return {
        "version": "1.0",
        "added_tokens": specials,
        "decoder": {"type": "ByteFallback"},
        "model": model,
    }
