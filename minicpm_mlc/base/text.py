"""Sizes in bytes, and tables of text cells whose first line is their head."""

from __future__ import annotations

from collections.abc import Sequence


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces: the first to the left, the numbers after it to the right."""
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(form.format(*line).rstrip() for line in cells)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    rule = "|---" + "|--:" * (len(cells[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
