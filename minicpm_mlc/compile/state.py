"""Which pools a model's layers have, and where a layer finds its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.bundle.state import StateEntry, Table, bytes_per, pool_places
from minicpm_mlc.compile.config.model_config import LayerConfig
from minicpm_mlc.ops.formats.kv import KVFormat

Pool = TypeVar("Pool")


def attention_state(config: LayerConfig, kv: KVFormat) -> list[StateEntry]:
    """Keys and values of every layer; with sparse attention also the mean key of each segment of 16
    tokens, in float32: rounded to float16 it can move a selection.
    """
    heads, width, layers = config.num_kv_heads, config.head_dim, tuple(range(config.num_layers))
    table = [
        StateEntry("keys", layers, kv.key_shape(heads, width), kv.storage),
        StateEntry("values", layers, kv.value_shape(heads, width), kv.storage),
    ]
    if config.sparse:
        table.append(StateEntry("means", layers, (heads, SEGMENTS, width), "float32"))
    return table


def bytes_per_token(table: Table) -> int:
    """Bytes that one token takes in the pools of all layers."""
    return bytes_per("page", table) // PAGE_SIZE


def layer_pools(table: Table, pools: Sequence[Pool], layer: int) -> dict[str, Pool]:
    """The pools of one layer by name, of all `pools` that a function of the library takes."""
    named = zip(pool_places(table), pools, strict=True)
    return {name: pool for (name, of), pool in named if of == layer}
