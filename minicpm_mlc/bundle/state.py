"""The state table: every pool of a compiled library, by name and layer.

An entry stands for one pool in each of its layers. The library's functions take all pools in one
tuple, entry by entry, an entry's pools by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest_schema import INT32

PER = ("page", "sequence")
DTYPES = ("float32", "float16", "int32", "uint32", "int16", "uint16", "int8", "uint8")


@dataclass(frozen=True)
class StateEntry:
    """`shape` is that of one page of tokens, or of one sequence, as `per` says; a pool has another
    axis before it.
    """

    name: str
    layers: tuple[int, ...]  # ascending
    shape: tuple[int, ...]
    dtype: str
    per: str = "page"

    @property
    def bytes(self) -> int:
        """Bytes of one page, or of one sequence, in all its layers."""
        return len(self.layers) * prod(self.shape) * np.dtype(self.dtype).itemsize


Table = Sequence[StateEntry]


def pool_places(table: Table) -> list[tuple[str, int]]:
    """(name, layer) of each pool, in the order of the library's `pools`."""
    return [(entry.name, layer) for entry in table for layer in entry.layers]


def pool_shapes(table: Table, pages: int, sequences: int) -> list[tuple[tuple[int, ...], str]]:
    """(shape, dtype) of each pool, in the order of the library's `pools`."""
    rows = {"page": pages, "sequence": sequences}
    return [((rows[entry.per], *entry.shape), entry.dtype) for entry in table for _ in entry.layers]


def bytes_per(unit: str, table: Table) -> int:
    """Bytes of one "page" or "sequence" in all pools that have one for each."""
    return sum(entry.bytes for entry in table if entry.per == unit)


def parse_table(value: list[Any], num_layers: int) -> list[StateEntry]:
    """The table of a manifest, from its JSON. Raises ValueError with the name of what is wrong."""
    table = [_parse_entry(entry, num_layers) for entry in value]
    names = [entry.name for entry in table]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(twice[0])
    return table


def _parse_entry(value: Any, num_layers: int) -> StateEntry:
    if not isinstance(value, dict) or value.keys() != {field.name for field in fields(StateEntry)}:
        raise ValueError("fields")
    name, layers, shape = value["name"], value["layers"], value["shape"]
    good = (
        isinstance(name, str)
        and name
        and _counts(layers, 0, num_layers - 1)
        and layers == sorted(set(layers))
        and _counts(shape, 1, INT32)
        and value["dtype"] in DTYPES
        and value["per"] in PER
    )
    if not good:
        raise ValueError(str(name))
    return StateEntry(name, tuple(layers), tuple(shape), value["dtype"], value["per"])


def _counts(value: Any, lowest: int, highest: int) -> bool:
    """Whether it is a list of integers between these, and not empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(n) is int and lowest <= n <= highest for n in value)
    )
