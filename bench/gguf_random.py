"""Write a preset with random weights as a GGUF file for llama.cpp: the other side of
bench/vs_llama.py.

    python bench/gguf_random.py MiniCPM4-0.5B MiniCPM4-0.5B-q4_0.gguf --linear q4_0 --embedding q4_0

The weights are those of `minicpm-mlc compile PRESET --random-weights` with the same seed, so both
programs compute the same model. There is no vocabulary: token ids are fed directly.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from minicpm_mlc.compile.checkpoint import RandomCheckpoint
from minicpm_mlc.compile.config.presets import PRESETS

TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "q8_0": GGMLType.Q8_0, "q4_0": GGMLType.Q4_0}
ARCHITECTURES = {"minicpm4": "minicpm"}  # as GGUF calls models that it calls otherwise
BLOCK_ROWS = 4096  # rows converted at a time: bounds the memory a large tensor takes

OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Weights(Protocol):
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray: ...


def gguf_name(name: str) -> str:
    """The checkpoint's tensor name in llama.cpp's spelling."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


def interleave_rope_pairs(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder q or k rows from pairs (i, i + d/2) to pairs (2i, 2i + 1), the order llama.cpp
    rotates in.
    """
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def tensor_type(
    name: str, shape: tuple[int, ...], linear: GGMLType, embedding: GGMLType
) -> GGMLType:
    if len(shape) == 1:
        return GGMLType.F32  # norms
    return embedding if name in OUTER_NAMES else linear


def encode(weights: Weights, name: str, kind: GGMLType, head_dim: int) -> np.ndarray:
    """One tensor in its GGUF type, read and quantised a block of rows at a time."""
    shape = weights.shape(name)
    step = BLOCK_ROWS // head_dim * head_dim  # whole heads
    blocks = []
    for start in range(0, shape[0], step):
        rows = weights.rows(name, start, min(start + step, shape[0]))
        if ".q_proj." in name or ".k_proj." in name:
            rows = interleave_rope_pairs(rows, head_dim)
        blocks.append(gguf.quants.quantize(rows, kind))
    return np.concatenate(blocks)


def add_metadata(writer: gguf.GGUFWriter, config) -> None:
    """The keys llama.cpp needs of arch `minicpm`; its logit_scale divides, so it is the inverse of
    ours.
    """
    writer.add_name(config.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("no_vocab")
    if config.scale_depth:
        writer.add_embedding_scale(config.scale_emb)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(1 / config.logit_scale)


def rope_factor_tensors(writer: gguf.GGUFWriter, config) -> dict[str, np.ndarray]:
    """LongRoPE's factors, which GGUF keeps as tensors; the published long and short lists are
    equal.
    """
    if all(factor == 1 for factor in config.rope_factors):
        return {}
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
    writer.add_rope_scaling_attn_factors(config.rope_attention_scale)
    factors = np.asarray(config.rope_factors, np.float32)
    return {f"rope_factors_{length}.weight": factors for length in ("short", "long")}


def stored_bytes(shape: tuple[int, ...], kind: GGMLType) -> int:
    return math.prod(gguf.quants.quant_shape_to_byte_shape(shape, kind))


def write_gguf(
    path: Path, config, weights: Weights, linear: str = "q4_0", embedding: str = "q4_0"
) -> Path:
    """Write `weights` of the model `config` to `path`: linears in type `linear`, embedding and head
    in `embedding`.
    """
    kinds = {
        n: tensor_type(n, weights.shape(n), TYPES[linear], TYPES[embedding])
        for n in weights.names()
    }
    partial = path.with_name(path.name + ".partial")
    arch = ARCHITECTURES.get(config.model_type) or str(config.model_type)
    writer = gguf.GGUFWriter(None, arch)
    add_metadata(writer, config)
    factors = rope_factor_tensors(writer, config)
    for name, array in factors.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    for name, kind in kinds.items():
        shape = weights.shape(name)
        # any dtype but uint8 makes the writer take the shape as counted in values
        writer.add_tensor_info(
            gguf_name(name), shape, np.dtype(np.float32), stored_bytes(shape, kind), raw_dtype=kind
        )
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in factors.values():
            writer.write_tensor_data(array)
        for name, kind in kinds.items():
            writer.write_tensor_data(encode(weights, name, kind, config.head_dim))
        writer.flush()
        for file in writer.fout or []:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return path


def write_random(
    path: Path, preset: str, seed: int = 0, linear: str = "q4_0", embedding: str = "q4_0"
) -> Path:
    config = PRESETS[preset]
    return write_gguf(path, config, RandomCheckpoint(config, seed), linear, embedding)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--linear", choices=TYPES, default="q4_0", help="type of the linear layers (default q4_0)"
    )
    parser.add_argument(
        "--embedding",
        choices=TYPES,
        default="q4_0",
        help="type of embedding and head (default q4_0)",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = write_random(args.output, args.preset, args.seed, args.linear, args.embedding)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
