"""Held-out text for perplexity: documents and conversations whose facts and numbers training never
showed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import data
from tokenizers import Tokenizer

HERE = Path(__file__).parent
LENGTHS = (256, 512, 1024, 2048, 4096)  # tokens of a text, in turn


def held_out_text(seed: int = 0, tokens: int = 100_000) -> list[str]:
    """Rendered texts (special tokens written out, no `<s>`) of together at least that many tokens;
    the same for a seed.

    Half are conversations, a third questions about a document, the rest plain text that ends in
    `</s>`. Each is at most about 4096 tokens long. Tokens are counted by the demo checkpoint's
    tokenizer.
    """
    tokenizer = Tokenizer.from_file(str(HERE / "MiniCPM4.1-demo" / "tokenizer.json"))
    texts, counted = [], 0
    source = _samples(random.Random(f"held-out text {seed}"))
    while counted < tokens:
        texts.append(data.render(next(source)))
        counted += len(tokenizer.encode(texts[-1], add_special_tokens=False).ids)
    return texts


def _samples(rng: random.Random) -> Iterator[data.Sample]:
    while True:
        for length in LENGTHS:
            kind = rng.random()
            if kind < 1 / 2:
                yield data.conversation(rng, True, max(3, length // 50))
            elif kind < 5 / 6:
                yield data.recall(
                    rng, True, length // 24, max(3, length // 128), min(24, length // 128)
                )
            else:
                yield data.Sample(text=data.document(rng, data.facts(rng, 3, True), length // 16))
