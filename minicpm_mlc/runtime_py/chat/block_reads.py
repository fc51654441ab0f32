"""Which blocks of 64 tokens the last answer chose by score, for `chat --show-blocks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine


def most_read(engine: Engine, count: int = 3) -> list[str]:
    """A line for each of the blocks that the last answer chose most by score, with the beginning of
    its text.

    Empty when it chose none.
    """
    tokens, chosen = engine.cached_tokens, engine.block_reads
    best = [int(block) for block in np.argsort(-chosen, kind="stable")[:count] if chosen[block]]
    texts = [_beginning(engine, tokens[PAGE_SIZE * b : PAGE_SIZE * (b + 1)]) for b in best]
    return [
        f"block {b}, read {chosen[b]} times: {text}" for b, text in zip(best, texts, strict=True)
    ]


def _beginning(engine: Engine, token_ids: list[int], width: int = 80) -> str:
    text = " ".join(engine.detokenize(token_ids).split())
    return text if len(text) <= width else text[: width - 1] + "…"
