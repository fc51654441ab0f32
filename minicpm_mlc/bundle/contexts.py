"""The context lengths that memory is forecast for."""

from __future__ import annotations

SHORTEST = 1024  # tokens


def context_lengths(longest: int) -> list[int]:
    """1024, 2048, ... and the longest, in tokens."""
    lengths = []
    while SHORTEST << len(lengths) < longest:
        lengths.append(SHORTEST << len(lengths))
    return [*lengths, longest]
