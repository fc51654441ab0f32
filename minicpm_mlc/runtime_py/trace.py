"""Which blocks of a document each answer token read: recorded from the sparse gear, shown as one HTML page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import EngineError
from ..files import write_whole
from ..manifest import PAGE_SIZE
from .chat import Message
from .engine import Engine

NOTE = (
    "This page shows which blocks of 64 tokens were selected for attention, per layer and answer token. "
    "Selection is not attribution: a block that was read need not have shaped the answer, and the first block and the "
    "latest ones are always read."
)


@dataclass(frozen=True)
class Trace:
    """`reads[step, layer, block]`: the share of KV heads that read a block while that answer token was computed.

    `forced[step, block]` marks the blocks that every row reads: the first ones and the local window.
    """

    blocks: list[str]
    answer: str
    reads: np.ndarray
    forced: np.ndarray


def trace(engine: Engine, messages: list[Message], max_tokens: int) -> Trace:
    """Answer greedily and record what each decode step read. Raises EngineError if all of it ran in the dense gear."""
    prompt = engine.template.prompt(engine.tokenizer.raw, messages, None).ids
    engine.truncate(0)
    logits, steps, answer = engine.prefill(prompt), [], []
    while len(answer) < max_tokens and len(prompt) + len(answer) < engine.context:
        token = int(logits.argmax())
        if token in engine.eos_token_ids:
            break
        answer.append(token)
        logits = engine.decode(token)
        steps.append(engine.selected)
    if not any(steps):
        dense_len = engine.manifest.dense_len
        raise EngineError(
            f"{len(prompt) + len(answer)} tokens ran in the dense gear, which reads every block; "
            + (f"give a prompt of {dense_len} tokens or more" if dense_len else "use a model with sparse attention")
        )
    texts = [engine.detokenize(prompt[i : i + PAGE_SIZE]) for i in range(0, len(prompt), PAGE_SIZE)]
    reads = np.array([count_reads(step, len(texts)) for step in steps if step])
    forced = np.array([forced_blocks(engine, len(prompt) + i, len(texts)) for i, step in enumerate(steps) if step])
    sparse = [token for token, step in zip(answer, steps, strict=True) if step]
    return Trace(texts, engine.detokenize(sparse), reads, forced)


def count_reads(selected: list[np.ndarray], blocks: int) -> np.ndarray:
    """float [layers, blocks]: share of KV heads whose list (i32 [kv_heads, budget], -1 padded) names each block."""
    return np.array([[np.equal(layer, block).any(-1).mean() for block in range(blocks)] for layer in selected])


def forced_blocks(engine: Engine, position: int, blocks: int) -> np.ndarray:
    """bool [blocks]: what a row at `position` reads whatever the scores."""
    sparse = engine.manifest.model["sparse"]
    numbers, current = np.arange(blocks), position // PAGE_SIZE
    return (numbers < sparse["init_blocks"]) | (numbers >= current - sparse["window_size"] // sparse["block_size"])


def most_read(engine: Engine, count: int = 3) -> list[str]:
    """A line for each of the blocks that the last answer chose most by score, with the beginning of its text.

    Blocks that every row reads are left out. Empty when the answer ran in the dense gear.
    """
    tokens, chosen = engine.cached_tokens, engine.block_reads.copy()
    if not chosen.any():
        return []
    present = len(tokens) // PAGE_SIZE + 1
    chosen[:present][forced_blocks(engine, len(tokens), present)] = 0
    best = [int(block) for block in np.argsort(-chosen, kind="stable")[:count] if chosen[block]]
    texts = [_beginning(engine, tokens[PAGE_SIZE * b : PAGE_SIZE * (b + 1)]) for b in best]
    return [f"block {b}, read {chosen[b]} times: {text}" for b, text in zip(best, texts, strict=True)]


def _beginning(engine: Engine, token_ids: list[int], width: int = 80) -> str:
    text = " ".join(engine.detokenize(token_ids).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def as_html(result: Trace) -> str:
    """One self-contained page: the text shaded by how often it was chosen, and a table of layers and blocks."""
    free = ~result.forced[:, None, :]
    by_layer = (result.reads * free).sum(0) / np.maximum(free.sum(0), 1)  # of the steps that could leave a block out
    total, always = by_layer.mean(0).tolist(), np.all(result.forced, axis=0).tolist()
    text = "".join(map(_passage, range(len(total)), result.blocks, total, always))
    rows = "".join(
        f"<tr><th>{layer}</th>{''.join(_cell(value, layer, i) for i, value in enumerate(values))}</tr>"
        for layer, values in enumerate(by_layer)
    )
    answer = html.escape(result.answer)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Blocks read</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "span.forced{color:#888}table{border-collapse:collapse}td{width:9px;height:14px;padding:0}"
        "th{font-weight:normal;padding-right:.5rem;text-align:right;color:#666}.scroll{overflow-x:auto}</style>"
        f"<h1>Blocks read</h1><p>{NOTE}</p><h2>Answer</h2><p>{answer}</p>"
        "<h2>Document</h2><p>The darker a passage, the more often it was chosen by score; grey text is always read.</p>"
        f"<p>{text}</p><h2>By layer</h2><div class=scroll><table>{rows}</table></div></html>\n"
    )


def write_page(path: str | Path, page: str) -> None:
    """Write the page whole or not at all. Raises EngineError."""
    try:
        write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path} can't be written: {error.strerror}; choose another file with -o") from None


def _passage(number: int, text: str, share: float, forced: bool) -> str:
    kind = ' class="forced"' if forced else f' style="background:rgba(255,140,0,{share:.2f})"'
    return f'<span{kind} title="block {number}: {share:.0%}">{html.escape(text)}</span>'


def _cell(share: float, layer: int, block: int) -> str:
    return f'<td style="background:rgba(255,140,0,{share:.2f})" title="layer {layer}, block {block}: {share:.0%}"></td>'
