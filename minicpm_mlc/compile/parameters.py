"""Which checkpoint tensors make which parameter of the library, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..manifest import PAGE_SIZE, WEIGHT_LAYOUTS
from .config import ModelConfig
from .convert import Param
from .quantize import SCHEMES, Scheme

SEGMENTS = 4  # of 16 tokens in a page



@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools.

    Arithmetic is float32; with `activations` "int8" integer weights meet inputs rounded to 8 bits.
    """

    linear: Scheme
    embedding: Scheme
    kv_dtype: str
    activations: str = "f32"

    def layout(self, scheme: Scheme) -> str:
        """How weights of a scheme are interleaved (ops/packing.py)."""
        return WEIGHT_LAYOUTS[self.activations if scheme.kind == "int" else "f32"]


def parameters(config: ModelConfig, precision: Precision) -> list[Param]:
    """The checkpoint tensors behind every parameter, in the library's order."""
    c, matrix, layout = config, precision.linear, precision.layout(precision.linear)
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

    def layer(i: int) -> list[Param]:
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        qkv = tuple(attention + f"{name}_proj.weight" for name in "qkv")
        gate_up = (mlp + "gate_proj.weight", mlp + "up_proj.weight")
        return [
            norm(ours + "input_norm", theirs + "input_layernorm.weight"),
            Param(ours + "attention.qkv", qkv, q + 2 * kv, c.hidden_size, matrix, layout),
            Param(ours + "attention.out", (attention + "o_proj.weight",), c.hidden_size, q, matrix, layout),
            norm(ours + "mlp_norm", theirs + "post_attention_layernorm.weight"),
            Param(ours + "mlp.gate_up", gate_up, 2 * c.intermediate_size, c.hidden_size, matrix, layout),
            Param(ours + "mlp.down", (mlp + "down_proj.weight",), c.hidden_size, c.intermediate_size, matrix, layout),
        ]

    def norm(name: str, source: str) -> Param:
        return Param(name, (source,), c.hidden_size, 0, SCHEMES["f32"])

    wide = (c.vocab_size, c.hidden_size, precision.embedding, precision.layout(precision.embedding))
    table = Param("embedding", ("model.embed_tokens.weight",), *wide)
    head = Param("head", ("lm_head.weight",), *wide)
    layers = [param for i in range(c.num_layers) for param in layer(i)]
    body = [table, *layers, norm("norm", "model.norm.weight")]
    return body if c.tie_word_embeddings else [*body, head]


def pool_layout(config: ModelConfig, kv_dtype: str) -> dict[str, tuple[list[int], str]]:
    """Shape of one page and dtype of each kind of pool, in the library's order: all layers' keys, values, means.

    Keys are transposed inside a page, so that the scores of 64 tokens fill vectors. A model with sparse attention has
    the mean key of each 16-token segment, in float32: rounded to float16 it can move a selection.
    """
    heads, width = config.num_kv_heads, config.head_dim
    pools = {"k": ([heads, width, PAGE_SIZE], kv_dtype), "v": ([heads, PAGE_SIZE, width], kv_dtype)}
    return pools | {"means": ([heads, SEGMENTS, width], "float32")} if config.sparse else pools


def pool_bytes_per_token(config: ModelConfig, kv_dtype: str) -> int:
    """Bytes that one token takes in the pools of all layers."""
    item = {"float16": 2, "float32": 4}
    pages = (prod(shape) * item[dtype] for shape, dtype in pool_layout(config, kv_dtype).values())
    return config.num_layers * sum(pages) // PAGE_SIZE
