"""Which blocks of a document each answer token read, recorded from the sparse gear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.prompt.sampling import check_count
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.runtime_py.chat.text import pieces_of
from minicpm_mlc.runtime_py.engine import Engine


@dataclass(frozen=True)
class Trace:
    """`reads[i, layer, block]`, float32: the share of KV heads that read a block in the row that
    chose an answer token.

    `forced[i, block]` marks the blocks that this row reads whatever the scores. The first `dense`
    tokens of `answer`, each a piece of text, were chosen in the dense gear; the rows are those of
    the others. `model` is its name.
    """

    blocks: list[str]
    answer: list[str]
    dense: int
    reads: np.ndarray
    forced: np.ndarray
    model: str = ""


def trace(engine: Engine, messages: list[Message], max_tokens: int) -> Trace:
    """Answer greedily and record what each token's row read.

    Raises EngineError if that is nothing: in the dense gear, or for an answer without a token.
    """
    _check(engine, max_tokens)
    prompt = engine.template.prompt(engine.tokenizer.raw, messages, None).ids
    answer, steps = _answer(engine, prompt, max_tokens)
    if not answer:
        raise EngineError(
            "the answer ended before its first token, so nothing was read for it; ask another "
            "question"
        )
    sparse = [step for step in steps if step]
    if not sparse:
        raise EngineError(
            f"{len(prompt) + len(answer)} tokens ran in the dense gear, which reads every block; "
            f"give a prompt of {engine.gears.dense_len} tokens or more, or --attention sparse"
        )
    dense = len(steps) - len(sparse)
    texts = list(pieces_of(engine.tokenizer, prompt, PAGE_SIZE))
    own = len(prompt) - 1 + dense  # the position of the first sparse row
    return Trace(
        texts,
        list(pieces_of(engine.tokenizer, answer, 1, after=prompt)),
        dense,
        np.array([count_reads(step, len(texts)) for step in sparse]),
        np.array([engine.gears.forced(own + i, len(texts)) for i in range(len(sparse))]),
        engine.manifest.name,
    )


def _check(engine: Engine, max_tokens: int) -> None:
    check_count("max_tokens", max_tokens, lowest=1)
    if engine.gears.dense_len is None:
        raise EngineError(
            f"{engine.manifest.name} has no sparse attention in this bundle: every token reads "
            "every block; "
            "trace a model with sparse attention"
        )
    if engine.gears.attention == "dense":
        raise EngineError(
            "--attention dense reads every block; leave it out, or give --attention sparse"
        )


def _answer(
    engine: Engine, prompt: list[int], max_tokens: int
) -> tuple[list[int], list[list[np.ndarray]]]:
    """The answer's tokens, and what the row that chose each of them read, per layer; nothing where
    it was dense.
    """
    engine.truncate(0)
    engine.prefill(prompt)
    # the last row is computed again as a decode step, which tells what it reads
    engine.truncate(len(prompt) - 1)
    answer = []
    steps = []
    token = prompt[-1]
    while len(answer) < max_tokens and len(prompt) + len(answer) <= engine.context:
        token = int(engine.decode(token).argmax())
        if token in engine.eos_token_ids:
            break
        answer.append(token)
        steps.append(engine.selected)
    return answer, steps


def count_reads(selected: list[np.ndarray], blocks: int) -> np.ndarray:
    """float32 [layers, blocks]: share of KV heads whose list (i32 [kv_heads, budget], -1 padded)
    names each block.
    """
    lists = np.stack(selected)
    lists[(lists < 0) | (lists > blocks)] = blocks  # of the answer, or padding
    named = np.zeros((*lists.shape[:2], blocks + 1), np.float32)
    np.put_along_axis(named, lists, 1, axis=-1)
    return named[..., :blocks].mean(1)
