"""Which checkpoint tensors make which parameter of the library, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import WEIGHT_LAYOUTS
from minicpm_mlc.compile.config.model_config import LayerConfig, ModelConfig
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.quantize import SCHEMES, Scheme
from minicpm_mlc.ops.formats.kv import KVFormat


@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools.

    Arithmetic is float32; with `activations` "int8" integer weights meet inputs rounded to 8 bits.
    """

    linear: Scheme
    embedding: Scheme
    kv: KVFormat
    activations: str = "f32"

    def layout(self, scheme: Scheme) -> str:
        """How weights of a scheme are interleaved (ops/formats/packing.py)."""
        return WEIGHT_LAYOUTS[self.activations if scheme.kind == "int" else "f32"]


def parameters(config: ModelConfig, precision: Precision) -> list[Param]:
    """The checkpoint tensors behind every parameter, in the library's order."""
    c = config
    table = table_parameter(
        "embedding", "model.embed_tokens.weight", c.vocab_size, c.hidden_size, precision
    )
    head = table_parameter("head", "lm_head.weight", c.vocab_size, c.hidden_size, precision)
    layers = [
        layer_parameters(c, f"layers.{i}.", f"model.layers.{i}.", precision)
        for i in range(c.num_layers)
    ]
    body = [
        table,
        *(param for layer in layers for param in layer),
        vector("norm", "model.norm.weight", c.hidden_size),
    ]
    return body if c.tie_word_embeddings else [*body, head]


def layer_parameters(
    config: LayerConfig, ours: str, theirs: str, precision: Precision, inputs: int | None = None
) -> list[Param]:
    """Those of one decoder layer, by the prefixes of their names. `inputs`: columns of q, k and v,
    if not hidden_size.
    """
    c, attention, mlp = config, theirs + "self_attn.", theirs + "mlp."
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    qkv = tuple(attention + f"{name}_proj.weight" for name in "qkv")
    gate_up = (mlp + "gate_proj.weight", mlp + "up_proj.weight")
    return [
        vector(ours + "input_norm", theirs + "input_layernorm.weight", c.hidden_size),
        matrix(ours + "attention.qkv", qkv, q + 2 * kv, inputs or c.hidden_size, precision),
        matrix(ours + "attention.out", (attention + "o_proj.weight",), c.hidden_size, q, precision),
        vector(ours + "mlp_norm", theirs + "post_attention_layernorm.weight", c.hidden_size),
        matrix(ours + "mlp.gate_up", gate_up, 2 * c.intermediate_size, c.hidden_size, precision),
        matrix(
            ours + "mlp.down",
            (mlp + "down_proj.weight",),
            c.hidden_size,
            c.intermediate_size,
            precision,
        ),
    ]


def matrix(
    name: str, sources: tuple[str, ...], rows: int, columns: int, precision: Precision
) -> Param:
    return Param(name, sources, rows, columns, precision.linear, precision.layout(precision.linear))


def vector(name: str, source: str, width: int) -> Param:
    return Param(name, (source,), width, 0, SCHEMES["f32"])


def table_parameter(name: str, source: str, rows: int, columns: int, precision: Precision) -> Param:
    """An embedding or a head."""
    return Param(
        name, (source,), rows, columns, precision.embedding, precision.layout(precision.embedding)
    )
