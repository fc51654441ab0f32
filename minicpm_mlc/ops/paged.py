"""What the operators over paged keys and values share: arguments and costs.

A sequence's token at slot s lies in page `page_table[s // 64]` of the pools, at place s % 64. Row r
of a batch (decode) has page table r; the rows of a chunk (prefill) share the only one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import SEGMENTS
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.tree import MASK_WORDS
from minicpm_mlc.ops.operator import POOL, Argument, Cost, Extent, Operator, takes


class PagedOperator(Operator):
    """Base of the records whose pools are stored in the format `kv`."""

    kv: KVFormat

    @property
    def dtype_label(self) -> str:
        return self.kv.dtype

    def fits(self, traits: Any) -> bool:
        return self.kv.fits(traits)


def key_pool(num_kv_heads: int, head_dim: int, kv: KVFormat, role: str = "input") -> Argument:
    """One layer's pool of keys."""
    return Argument(kv.storage, (POOL, *kv.key_shape(num_kv_heads, head_dim)), role)


def kv_pools(
    num_kv_heads: int, head_dim: int, kv: KVFormat, role: str = "input"
) -> dict[str, Argument]:
    """One layer's keys and values."""
    values = Argument(kv.storage, (POOL, *kv.value_shape(num_kv_heads, head_dim)), role)
    return {"k_pages": key_pool(num_kv_heads, head_dim, kv, role), "v_pages": values}


def mean_pool(num_kv_heads: int, head_dim: int, role: str = "input") -> Argument:
    """One layer's means of segments."""
    return Argument("float32", (POOL, num_kv_heads, SEGMENTS, head_dim), role)


def page_tables() -> Argument:
    """A page table per row, or one."""
    return takes("int32", "s", "p")


def row_places() -> dict[str, Argument]:
    """Where rows lie: their page tables and slots."""
    return {"page_tables": page_tables(), "slots": takes("int32", "n")}


def tree_place() -> dict[str, Argument]:
    """Where a token tree lies: its sequence's page table, its first slot (base[0], so that the
    slots of a whole tree serve) and its nodes' ancestors (ops/formats/tree.py).
    """
    return {
        "page_table": takes("int32", 1, "p"),
        "base": takes("int32", "m"),
        "ancestors": takes("int32", "n", MASK_WORDS),
    }


def read_keys(kv: KVFormat, k_pages: np.ndarray) -> np.ndarray:
    """The numbers in a pool of keys, float64 [pages, kv_heads, d, 64]."""
    pages, kv_heads, stored_rows, _ = k_pages.shape
    _, values = kv.empty(pages, kv_heads, stored_rows - kv.scale_rows)
    return kv.read(k_pages, values)[0]


def cost_of_pages(operator: Operator, extent: Extent, num_heads: int, pages: int) -> Cost:
    """What the call's rows cost, each of which reads `pages` of every pool: a multiply-add per row,
    query head and number of a page's head. Rows of one sequence share its pages.
    """
    found = [each for each in operator.arguments().values() if POOL in each.shape]
    moved = extent.dims.get("s", 1) * sum(each.nbytes({POOL: pages}) for each in found)
    numbers = sum(pages * prod(each.sizes({POOL: 1})[2:]) for each in found)
    operations = 2 * extent.dims["n"] * num_heads * numbers
    return Cost(operator.moved_bytes(extent.dims) + moved, operations)
