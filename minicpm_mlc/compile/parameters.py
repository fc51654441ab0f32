"""Which checkpoint tensors make which parameter of the library, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig
from .convert import Param
from .quantize import SCHEMES, Scheme


@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools. Arithmetic is float32."""

    linear: Scheme
    embedding: Scheme
    kv_dtype: str


def parameters(config: ModelConfig, precision: Precision) -> list[Param]:
    """The checkpoint tensors behind every parameter, in the library's order."""
    c, matrix = config, precision.linear
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

    def layer(i: int) -> list[Param]:
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        qkv = tuple(attention + f"{name}_proj.weight" for name in "qkv")
        gate_up = (mlp + "gate_proj.weight", mlp + "up_proj.weight")
        return [
            norm(ours + "input_norm", theirs + "input_layernorm.weight"),
            Param(ours + "attention.qkv", qkv, q + 2 * kv, c.hidden_size, matrix),
            Param(ours + "attention.out", (attention + "o_proj.weight",), c.hidden_size, q, matrix),
            norm(ours + "mlp_norm", theirs + "post_attention_layernorm.weight"),
            Param(ours + "mlp.gate_up", gate_up, 2 * c.intermediate_size, c.hidden_size, matrix),
            Param(ours + "mlp.down", (mlp + "down_proj.weight",), c.hidden_size, c.intermediate_size, matrix),
        ]

    def norm(name: str, source: str) -> Param:
        return Param(name, (source,), c.hidden_size, 0, SCHEMES["f32"])

    table = Param("embedding", ("model.embed_tokens.weight",), c.vocab_size, c.hidden_size, precision.embedding)
    head = Param("head", ("lm_head.weight",), c.vocab_size, c.hidden_size, precision.embedding)
    layers = [param for i in range(c.num_layers) for param in layer(i)]
    body = [table, *layers, norm("norm", "model.norm.weight")]
    return body if c.tie_word_embeddings else [*body, head]
