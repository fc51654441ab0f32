"""What --show-blocks prints: which blocks of the context the last answer chose most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine
    from minicpm_mlc.runtime_py.request import Stats

SHOWN = 3  # blocks
WIDTH = 80  # characters of a block's text


def block_lines(engine: Engine) -> list[str]:
    """A line for each of the blocks chosen most by score, with the beginning of its text; or why
    there are none.
    """
    return _most_read(engine) or [_none_chosen(engine.stats)]


def _most_read(engine: Engine) -> list[str]:
    tokens = engine.cached_tokens
    reads = engine.block_reads
    size = engine.manifest.page_size
    best = [int(block) for block in np.argsort(-reads, kind="stable")[:SHOWN] if reads[block]]
    texts = [_beginning(engine, tokens[size * b : size * (b + 1)]) for b in best]
    return [
        f"block {b}, read {reads[b]} times: {text}" for b, text in zip(best, texts, strict=True)
    ]


def _beginning(engine: Engine, token_ids: list[int]) -> str:
    text = " ".join(engine.detokenize(token_ids).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _none_chosen(stats: Stats) -> str:
    if stats.attention == "dense":
        return "dense attention: every block was read"
    if not stats.decode_steps:
        return (
            "sparse attention: an answer's first token comes from the prompt's pass, whose "
            "choices are not kept"
        )
    return (
        f"sparse attention: nothing was left to the scores; {stats.blocks_read} of "
        f"{stats.blocks} blocks were read"
    )
