"""Which checkpoint tensors make which parameter of the library, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from minicpm_mlc.bundle.manifest import KV_STORAGE, PAGE_SIZE, key_rows
from minicpm_mlc.compile.config.model_config import LayerConfig, ModelConfig
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme

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

    @property
    def matrices(self) -> Scheme:
        """How linears are stored, laid out for the activations."""
        return self.linear.beside(self.activations)

    @property
    def tables(self) -> Scheme:
        """How the embedding and the head are stored, laid out for the activations."""
        return self.embedding.beside(self.activations)


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
    return Param(name, sources, rows, columns, precision.matrices)


def vector(name: str, source: str, width: int) -> Param:
    return Param(name, (source,), width, 0, SCHEMES["f32"])


def table_parameter(name: str, source: str, rows: int, columns: int, precision: Precision) -> Param:
    """An embedding or a head."""
    return Param(name, (source,), rows, columns, precision.tables)


def pool_layout(config: LayerConfig, kv_dtype: str) -> dict[str, tuple[list[int], str]]:
    """Shape of one page and dtype of each kind of pool, in the library's order: all layers' keys,
    values, means.

    Keys are transposed inside a page, so that the scores of 64 tokens fill vectors. A model with
    sparse attention has the mean key of each 16-token segment, in float32: rounded to float16 it
    can move a selection.
    """
    heads, width, storage = config.num_kv_heads, config.head_dim, KV_STORAGE[kv_dtype]
    pools = {
        "k": ([heads, key_rows(kv_dtype, width), PAGE_SIZE], storage),
        "v": ([heads, PAGE_SIZE, width], storage),
    }
    return pools | {"means": ([heads, SEGMENTS, width], "float32")} if config.sparse else pools


def pool_bytes_per_token(config: LayerConfig, kv_dtype: str) -> int:
    """Bytes that one token takes in the pools of all layers."""
    pages = (
        prod(shape) * np.dtype(dtype).itemsize
        for shape, dtype in pool_layout(config, kv_dtype).values()
    )
    return config.num_layers * sum(pages) // PAGE_SIZE
