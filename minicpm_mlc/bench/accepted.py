"""How many tokens a draft head's trees bring, on texts that its model goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minicpm_mlc.runtime_py.engine import Engine

PLACES = 8  # in each text
BEFORE = 96  # tokens that are read
TREE = {"tree_size": 16, "draft_depth": 5}  # the same for all, whatever would pay
GREEDY: dict[str, Any] = {"max_tokens": 48, "temperature": 0, "speculate": "eagle", **TREE}


def accept_length(engine: Engine, texts: Sequence[Sequence[int]]) -> float | None:
    """Tokens that a verified tree brings, the model's own among them: greedy answers after token
    ids of texts. None without a draft head, or where the texts are too short for a tree.
    """
    if not engine.manifest.draft:
        return None
    rounds = accepted = 0
    for ids in texts:
        for start in places(len(ids)):
            engine.truncate(0)  # the head begins anew
            engine.generate(ids[start : start + BEFORE], **GREEDY)
            rounds += engine.stats.speculation.rounds
            accepted += engine.stats.speculation.accepted
    return 1 + accepted / rounds if rounds else None


def places(length: int) -> list[int]:
    """Where in a text of so many tokens prompts begin: spread over it, none twice."""
    last = max(0, length - BEFORE)
    return sorted({last * place // (PLACES - 1) for place in range(PLACES)})
