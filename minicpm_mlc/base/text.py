"""Tables of text cells, for a terminal and for Markdown, and sizes for people."""

from __future__ import annotations

from collections.abc import Sequence


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces, the first to the left, the numbers after it to the right.

    `cells` are rows of equal length, the first one the head.
    """
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(form.format(*line).rstrip() for line in cells)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """The same cells as plain_table takes, as a Markdown table."""
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    rule = "|---" + "|--:" * (len(cells[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def any_of(names: Sequence[str]) -> str:
    """Two names or more as a choice: 'auto, int8 or f32'."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def human_bytes(count: float) -> str:
    """A number of bytes in binary units: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
