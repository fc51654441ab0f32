"""The merges of a SentencePiece vocabulary, which stores scores in their place."""

from __future__ import annotations

import numpy as np

LONGEST = 512  # characters of a token: the cuts of one are tried one by one


def merges_of(tokens: list[str], scores: np.ndarray) -> list[list[str]]:
    """Every way to make a token of two others, best score first; of equal scores, longer ones."""
    ids = {token: number for number, token in enumerate(tokens)}
    found: list[tuple[float, str, str]] = []
    for token, score in zip(tokens, scores.tolist(), strict=True):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        cuts = [(left, right) for left, right in halves if left in ids and right in ids]
        cuts.sort(key=lambda cut: (ids[cut[0]], ids[cut[1]]))
        found += [(score, *cut) for cut in cuts]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]
