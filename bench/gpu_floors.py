"""What CUDA's kernels must not fall behind, read off the tables of bench/gpu_static.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Row = dict[str, str]  # cells by the names of their columns


@dataclass(frozen=True)
class Floor:
    """`column` of the rows of a table, by its first column's name, that `rows` matches: from
    `least` to `most`.
    """

    table: str
    rows: str
    column: str
    least: float = 0
    most: float = float("inf")


DENSE, STREAMS = "decode (1K|128K dense)", "norm, qkv|o|norm, gate, up, SwiGLU|down"
STORED = f"{STREAMS}|(qkv|o|gate, up|down|head, w8|attention).*"
FLOORS = (
    Floor("kernel", ".*", "spilled", most=0),
    Floor("kernel", STREAMS, "instructions", most=1.2),
    Floor("kernel", "o, exact activations", "instructions", most=5),
    Floor("kernel", "attention.*", "instructions", most=12),
    Floor("kernel", STORED, "of weights and cache", least=90),
    Floor("step", DENSE, "launches of a layer", most=6),
    Floor("step", "decode 1K", "H200, of the memory's", least=55),
    Floor("step", "decode 128K sparse", "H200, of the memory's", least=50),
    Floor("step", "decode.*", "RTX 4090, of the memory's", least=80),
    Floor("step", "verify 16 rows, 1K", "H200, times decode 1K", most=1.6),
    Floor("prompt", ".*", "H200, of float16's", least=30),
    Floor("prompt", ".*", "RTX 4090, of float16's", least=80),
)


def faults(text: str) -> list[str]:
    """A line for each number of the tables that is beyond its limit, or that isn't there."""
    tables = {next(iter(rows[0])): rows for rows in map(_rows, text.strip().split("\n\n")) if rows}
    return [line for floor in FLOORS for line in _missed(floor, tables.get(floor.table, []))]


def _rows(part: str) -> list[Row]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
    head, _, *others = cells
    return [dict(zip(head, own, strict=True)) for own in others]


def _missed(floor: Floor, rows: list[Row]) -> Iterator[str]:
    own = [row for row in rows if re.fullmatch(floor.rows, row[floor.table])]
    if not own:
        yield f"no {floor.table} is named {floor.rows}"
    for row in own:
        number = re.match(r"[\d.]+", row.get(floor.column, ""))
        if number is None or not floor.least <= float(number[0]) <= floor.most:
            seen, limits = row.get(floor.column), f"{floor.least:g} to {floor.most:g}"
            yield f"{row[floor.table]}: {floor.column} is {seen}, expected {limits}"
