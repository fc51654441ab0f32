"""Tables of text cells, for a terminal and for Markdown; the first line is the head."""

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
