"""Sparse attention in the whole model: against the float64 definition, across the shift of gears,
and in the engine.
"""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import SPARSE
from numpy_model import forward

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError

LENGTH = 600  # tokens: 10 blocks, of which 6 are read, 2 of them by score


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    return tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE)


@pytest.fixture(scope="module")
def ids(tiny) -> list[int]:
    return np.random.default_rng(0).integers(3, tiny.config.vocab_size, LENGTH).tolist()


@pytest.fixture(scope="module")
def all_sparse(tiny, ids) -> np.ndarray:
    return forward(tiny.config, tiny.weights, ids, [True] * LENGTH)


def test_a_long_prompt_is_sparse_from_its_first_row(tiny, ids, all_sparse):
    dense = forward(tiny.config, tiny.weights, ids, [False] * LENGTH)
    assert np.abs(dense - all_sparse).max() > 1e-2, "the case must tell the gears apart"
    with Engine(tiny.path, context=1024) as engine:
        assert np.abs(engine.logits(ids) - all_sparse).max() <= 1e-4
    with Engine(tiny.path, context=1024, attention="dense") as engine:
        assert np.abs(engine.logits(ids) - dense).max() <= 1e-4


def test_chunks_and_decode_agree_with_the_whole(tiny, ids, all_sparse):
    with Engine(tiny.path, context=1024, attention="sparse") as engine:
        for chunk in (1, 7, 64):
            engine.prefill_chunk = chunk
            assert np.abs(engine.logits(ids) - all_sparse).max() <= 1e-4, chunk
        engine.truncate(0)
        rows = [engine.prefill(ids[:5]), *(engine.decode(token) for token in ids[5:])]
    assert np.abs(np.stack(rows) - all_sparse[4:]).max() <= 1e-4


def test_a_prompt_longer_than_the_largest_chunk_is_as_defined(tiny):
    """2048 rows and 64 more, whose windows and blocks reach back over the border.

    With this seed no two scores at a cut are nearer than 1.6e-5 of themselves, unless they are the
    same.
    """
    ids = np.random.default_rng(10).integers(3, tiny.config.vocab_size, 2112).tolist()
    expected = forward(tiny.config, tiny.weights, ids, [True] * len(ids))
    with Engine(tiny.path, context=2112) as engine:
        assert engine.prefill_chunk == 2048
        assert np.abs(engine.logits(ids) - expected).max() <= 1e-4


def test_the_gear_shifts_in_the_middle_of_a_generation_and_back(tiny, ids):
    shift = (
        SPARSE.dense_len - 1
    )  # the token that makes the sequence dense_len long is the first sparse one
    expected = forward(tiny.config, tiny.weights, ids, [p >= shift for p in range(LENGTH)])
    with Engine(tiny.path, context=1024) as engine:
        rows = [engine.prefill(ids[:300]), *(engine.decode(token) for token in ids[300:])]
        assert np.abs(np.stack(rows) - expected[299:]).max() <= 1e-4
        engine.truncate(350)
        again = [engine.decode(token) for token in ids[350:450]]
        assert np.abs(np.stack(again) - expected[350:450]).max() <= 1e-4


def test_short_contexts_are_the_same_in_both_gears(tiny, ids):
    covered = (SPARSE.topk + SPARSE.window_size // 64) * 64
    with Engine(tiny.path, context=1024, attention="dense") as dense:
        expected = dense.logits(ids[:covered])
    with Engine(tiny.path, context=1024, attention="sparse") as sparse:
        assert np.abs(sparse.logits(ids[:covered]) - expected).max() <= 1e-5


def test_the_engine_says_which_gear_ran_and_what_it_read(tiny, ids):
    with Engine(tiny.path, context=1024) as engine:
        engine.generate(ids[:100], max_tokens=4, temperature=0)
        assert (engine.stats.attention, engine.stats.blocks_read, engine.stats.blocks) == (
            "dense",
            2,
            2,
        )
        engine.generate(ids, max_tokens=4, temperature=0)
        assert (engine.stats.attention, engine.stats.blocks_read, engine.stats.blocks) == (
            "sparse",
            6,
            10,
        )


def test_models_without_trained_sparsity_refuse_to_be_forced(tiny_bundle):
    with pytest.raises(EngineError, match="not trained for it"):
        Engine(tiny_bundle("MiniCPM5-1B").path, attention="sparse")
    with pytest.raises(EngineError, match="choose auto"):
        Engine(tiny_bundle("MiniCPM5-1B").path, attention="fast")
