"""A real model from a GGUF file, as a checkpoint folder whose weights lie on no quantisation grid.

    python bench/off_grid.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2

A 4-bit file looks lossless to formats that share its grid. So each input channel of every linear is
scaled by a random factor, the inverse goes into the norm or the linear before it, and the head
becomes a tensor of its own: the function stays the same, in float32 as before.
`--multiple 256` appends channels of zeros where columns are no multiple of llama.cpp's blocks;
`--sparse` calls it a MiniCPM4.1 of the same maths, with the published sparse attention.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from gguf_random import LAYER_NAMES, OUTER_NAMES
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from minicpm_mlc.compile.config.model_config import SparseConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPREAD = (0.7, 1.4)  # of the random factors
CONTROL = 3  # a token that stands for no text, in GGUF's list of kinds

Weights = dict[str, np.ndarray]


def read_gguf(path: Path) -> tuple[dict, Weights]:
    """The metadata, and float32 weights by their published names: a Llama's, its head tied."""
    reader = GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    names = {f"{inner}.weight": f"{outer}.weight" for outer, inner in LAYER_NAMES.items()}
    outer = {inner: name for name, inner in OUTER_NAMES.items()}
    weights = {}
    for tensor in reader.tensors:
        rows = dequantize(tensor.data, tensor.tensor_type).copy()  # some are views of the file
        if tensor.name in outer:
            weights[outer[tensor.name]] = rows
            continue
        _, layer, inner = tensor.name.split(".", 2)
        weights[f"model.layers.{layer}.{names[inner]}"] = rows
    for name, heads in (("q_proj", "head_count"), ("k_proj", "head_count_kv")):
        for key in [key for key in weights if name in key]:
            weights[key] = _halves(weights[key], fields[f"llama.attention.{heads}"])
    return fields, weights


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of neighbouring rotary pairs, as GGUF has them -> pairs half a head apart."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def off_grid(weights: Weights, fields: dict, seed: int = 0) -> None:
    """Rescales the linears' input channels in place, and unties the head."""
    rng = np.random.default_rng(seed)
    weights[HEAD] = weights[EMBEDDING].copy()
    heads, kv_heads = _head_counts(fields)

    def scale(before: str, after: list[str], repeats: int = 1) -> None:
        factors = rng.uniform(*SPREAD, len(weights[before])).astype(np.float32)
        weights[before] /= factors.reshape(-1, *[1] * (weights[before].ndim - 1))
        by_head = factors.reshape(kv_heads if repeats > 1 else 1, -1)
        for name in after:
            weights[name] *= np.repeat(by_head, repeats, 0).reshape(-1)

    for i in range(fields["llama.block_count"]):
        at = f"model.layers.{i}"
        q, k, v, o = (f"{at}.self_attn.{name}_proj.weight" for name in "qkvo")
        gate, up, down = (f"{at}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        scale(f"{at}.input_layernorm.weight", [q, k, v])
        scale(v, [o], heads // kv_heads)  # the query heads of a group read the same values
        scale(f"{at}.post_attention_layernorm.weight", [gate, up])
        scale(up, [down])
    scale("model.norm.weight", [HEAD])


def padded(weights: Weights, fields: dict, multiple: int) -> None:
    """Appends zeros to the residual stream, to feed-forward channels and, as whole groups of heads,
    to attention, until each is a multiple; the function stays the same.

    The norms divide by the mean square of more channels, so their weights and epsilon shrink.
    """
    heads, kv_heads = _head_counts(fields)
    head_dim, group = fields["llama.rope.dimension_count"], heads // kv_heads
    width, inner = fields["llama.embedding_length"], fields["llama.feed_forward_length"]
    hidden, inner = (-(-size // multiple) * multiple for size in (width, inner))
    while kv_heads * group * head_dim % multiple:
        kv_heads += 1
    queries, keys = kv_heads * group * head_dim, kv_heads * head_dim
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner, "up_proj": inner}
    columns = {"o_proj": queries, "down_proj": inner}
    for name, array in weights.items():
        part = name.split(".")[-2]
        if array.ndim == 1:
            weights[name] = _zeros_after(array * np.float32((width / hidden) ** 0.5), hidden)
        else:
            outer = len(array) if name in (EMBEDDING, HEAD) else rows.get(part, hidden)
            weights[name] = _zeros_after(array, outer, columns.get(part, hidden))
    fields["llama.embedding_length"] = hidden
    fields["llama.feed_forward_length"] = inner
    fields["llama.attention.head_count"] = kv_heads * group
    fields["llama.attention.head_count_kv"] = kv_heads
    fields["llama.attention.layer_norm_rms_epsilon"] *= width / hidden


def _zeros_after(array: np.ndarray, *shape: int) -> np.ndarray:
    return np.pad(array, [(0, size - own) for size, own in zip(shape, array.shape, strict=True)])


def _head_counts(fields: dict) -> tuple[int, int]:
    return fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]


def config_json(fields: dict, tied: bool) -> dict:
    """The config.json of what the metadata describe."""
    heads, kv_heads = _head_counts(fields)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer(fields: dict) -> Tokenizer:
    """The byte-level BPE of SmolLM2: digits stand alone."""
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return made


def as_minicpm(config: dict) -> dict:
    """The config.json of the same model as a MiniCPM4.1 whose scalings are all 1."""
    return config | {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "scale_emb": 1,
        "scale_depth": math.sqrt(config["num_hidden_layers"]),
        "dim_model_base": config["hidden_size"],
        "sparse_config": asdict(SparseConfig()),
    }


def write_checkpoint(
    source: Path, folder: Path, *, moved: bool = True, multiple: int = 1, sparse: bool = False
) -> Path:
    """The checkpoint of a GGUF file, off its grid if `moved`, unless it is there -> folder."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    fields, weights = read_gguf(source)
    if moved:
        off_grid(weights, fields)
    if multiple > 1:
        padded(weights, fields, multiple)
    save_file(
        {name: np.ascontiguousarray(rows) for name, rows in weights.items()},
        folder / "model.safetensors",
    )
    tokenizer(fields).save(str(folder / "tokenizer.json"))
    chat = {
        "chat_template": fields["tokenizer.chat_template"],
        "add_bos_token": fields["tokenizer.ggml.add_bos_token"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(chat))
    config = config_json(fields, tied=not moved)
    config = as_minicpm(config) if sparse else config
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--as-is", action="store_true", help="leave the weights on their grid")
    parser.add_argument("--multiple", type=int, default=1, help="of which all columns are")
    parser.add_argument("--sparse", action="store_true", help="as a MiniCPM4.1")
    args = parser.parse_args()
    options = {"moved": not args.as_is, "multiple": args.multiple, "sparse": args.sparse}
    print(write_checkpoint(args.gguf, args.folder, **options))


if __name__ == "__main__":
    main()
