"""How a bundle stores things: weights, and keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from minicpm_mlc.bundle.manifest import KV_STORAGE, PAGE_SIZE, WEIGHT_LAYOUTS, key_rows
from minicpm_mlc.compile.config.model_config import LayerConfig
from minicpm_mlc.compile.quantize import Scheme

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
        """How weights of a scheme are interleaved (ops/formats/packing.py)."""
        return WEIGHT_LAYOUTS[self.activations if scheme.kind == "int" else "f32"]


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
