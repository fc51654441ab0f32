"""Which pools a model's layers have, and where a layer finds its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.bundle.state import StateEntry, Table, bytes_per, pool_places
from minicpm_mlc.compile.config.model_config import LayerConfig, ModelConfig
from minicpm_mlc.ops.formats.kv import KVFormat

Pool = TypeVar("Pool")


LIGHTNING = "lightning"


def model_state(config: ModelConfig, kv: KVFormat) -> list[StateEntry]:
    """What attention keeps, and of each lightning layer a float32 matrix for every head."""
    lightning, size = config.lightning_layers, config.head_dim
    others = tuple(i for i in range(config.num_layers) if i not in lightning)
    table = attention_state(config, kv, others)
    if lightning:
        shape = (config.num_heads, size, size)
        table.append(StateEntry(LIGHTNING, lightning, shape, "float32", "sequence"))
    return table


def attention_state(
    config: LayerConfig, kv: KVFormat, layers: tuple[int, ...] | None = None
) -> list[StateEntry]:
    """Keys and values of these layers, by default all; with sparse attention also the mean key of
    each segment of 16 tokens, in float32: rounded to float16 it can move a selection.
    """
    heads, width = config.num_kv_heads, config.head_dim
    layers = tuple(range(config.num_layers)) if layers is None else layers
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
