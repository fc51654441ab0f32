"""The compiled model against an independent one: transformers' Llama with the muP scalings folded
into its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW, SPARSE
from llama_oracle import folded_llama, llama_logits

from minicpm_mlc import Engine

FAMILIES: dict[str, dict[str, Any]] = {  # and how their sparse attention, not run here, is set
    "MiniCPM4-0.5B": {},  # tied, 8 query heads per KV head, head_dim 64, 32 factors
    "MiniCPM4-8B": {"sparse": None},  # untied, 16 per KV head, head_dim 128, 64 factors
    "MiniCPM4.1-8B": {"sparse": SPARSE},  # two KV heads of 16, other factors
    "MiniCPM5-1B": {},  # Llama: no scalings, heads wider than the residual stream
}


def prompt(vocab: int, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, vocab, length).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_folded_llama(tiny_bundle, family):
    tiny = tiny_bundle(family, **FAMILIES[family])
    ids = prompt(tiny.config.vocab_size, 300)
    with Engine(tiny.path, context=512, attention="dense") as engine:
        logits = engine.logits(ids)
    assert logits.dtype == np.float32
    expected = llama_logits(folded_llama(tiny.config, tiny.weights), ids)
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_the_folded_llama_over_256_steps(tiny_bundle, family):
    tiny = tiny_bundle(family, **FAMILIES[family])
    ids = prompt(tiny.config.vocab_size, 20)
    with Engine(tiny.path, context=512, attention="dense") as engine:
        logits = engine.prefill(ids)
        tokens = []
        for _ in range(256):
            tokens.append(int(logits.argmax()))
            logits = engine.decode(tokens[-1])
    model = folded_llama(tiny.config, tiny.weights)
    expected = llama_logits(model, ids + tokens)[len(ids) - 1 : -1].argmax(-1)
    assert tokens == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_chunk_size_and_decode_give_the_same_logits(tiny_bundle, family):
    tiny = tiny_bundle(family, **FAMILIES[family])
    ids = prompt(tiny.config.vocab_size, 200)
    with Engine(tiny.path, context=512, attention="dense") as engine:
        whole = engine.logits(ids)
        for chunk in (1, 7, 64, 2048):
            engine.prefill_chunk = chunk
            assert np.abs(engine.logits(ids) - whole).max() <= 1e-4, chunk
        engine.truncate(0)
        decoded = [engine.prefill(ids[:5]), *(engine.decode(token) for token in ids[5:])]
        assert np.abs(np.stack(decoded) - whole[4:]).max() <= 1e-4


def test_a_long_context_crosses_chunks_and_pages_exactly(tiny_bundle):
    tiny = tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE)
    ids = prompt(tiny.config.vocab_size, 2500)
    with Engine(tiny.path, context=4096, attention="dense") as engine:
        logits = engine.logits(ids)
    expected = llama_logits(folded_llama(tiny.config, tiny.weights), ids)
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.parametrize(
    "scheme, bound, sparse",
    [("f16", 1e-5, None), ("bf16", 1e-3, None), ("w8", 1e-3, None), ("w4", 6e-2, NARROW)],
)
def test_quantised_logits_stay_near_f32(tiny_bundle, scheme, bound, sparse):
    exact = tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE)
    tiny = tiny_bundle("MiniCPM4.1-8B", scheme, sparse=sparse)
    ids = prompt(tiny.config.vocab_size, 64)
    with Engine(exact.path, context=128) as engine:
        expected = engine.logits(ids)
    with Engine(tiny.path, context=128) as engine:
        got = engine.logits(ids)
    assert ((got - expected) ** 2).mean() / (expected**2).mean() <= bound
