"""A whole model on every storage format of keys and values, in both gears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import SPARSE

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile import compile_model
from minicpm_mlc.ops.operator import from_json
from minicpm_mlc.ops.paged import PagedOperator
from minicpm_mlc.targets.cpu import CpuTarget

BOUNDS = {
    "f32": 0.0,
    "f16": 1e-6,
    "bf16": 1e-4,
    "int8": 1e-3,
}  # mean squared error of the logits over their square
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}


@pytest.fixture(scope="module")
def exact(tiny_bundle):
    return tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE)


@pytest.fixture(scope="module", params=BOUNDS)
def stored(request, tiny_bundle) -> tuple[str, Path]:
    """(format, bundle) with float32 weights."""
    return request.param, tiny_bundle("MiniCPM4.1-8B", kv=request.param, sparse=SPARSE).path


def prompt(exact, length: int) -> list[int]:
    return np.random.default_rng(0).integers(3, exact.config.vocab_size, length).tolist()


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_logits_stay_near_those_of_exact_keys_and_values(exact, stored, attention):
    kv, path = stored
    ids = prompt(exact, 300)  # of 5 blocks, all are read, so that no selection can differ
    with Engine(exact.path, context=512, attention=attention) as engine:
        expected = engine.logits(ids)
    with Engine(path, context=512, attention=attention) as engine:
        got = engine.logits(ids)
    assert ((got - expected) ** 2).mean() / (expected**2).mean() <= BOUNDS[kv]


def test_chunks_decode_and_a_cut_context_agree(exact, stored):
    ids = prompt(exact, 450)  # crosses dense_len
    with Engine(stored[1], context=512, attention="sparse") as engine:
        whole = engine.logits(ids)
        engine.prefill_chunk = 7
        assert np.abs(engine.logits(ids) - whole).max() <= 1e-4
        engine.truncate(300)  # in the middle of a segment and of a page
        rows = [engine.decode(token) for token in ids[300:]]
    assert np.abs(np.stack(rows) - whole[300:]).max() <= 1e-4


def test_a_token_takes_the_bytes_that_the_manifest_says(exact, stored):
    kv, path = stored
    c, manifest = exact.config, Manifest.load(path)
    scales = 2 * 4 * c.num_kv_heads if kv == "int8" else 0
    means = 4 * c.num_kv_heads * c.head_dim // 16
    per_layer = 2 * BYTES[kv] * c.num_kv_heads * c.head_dim + scales + means
    assert manifest.memory["kv_per_token"] == c.num_layers * per_layer


@pytest.mark.skipif(not CpuTarget.of("native").int8_dot, reason="this CPU multiplies no int8")
def test_a_cache_multiplied_as_integers_gives_the_same_in_chunks_steps_and_trees(
    exact, tiny_bundle
):
    path = tiny_bundle("MiniCPM4.1-8B", "w8", kv="int8", sparse=SPARSE).path
    ids = prompt(exact, 300)
    with Engine(exact.path, context=512, threads=1, attention="dense") as engine:
        expected = engine.logits(ids)
    with Engine(path, context=512, threads=1) as engine:
        assert all(each.kv.words for each in paged_operators(path))
        whole = engine.logits(ids)
        assert error(whole, expected) < 1e-2
        engine.prefill_chunk = 50
        assert error(engine.logits(ids), whole) < 1e-4
        engine.truncate(280)
        rows = np.stack([engine.decode(token) for token in ids[280:]])
        assert error(rows, whole[280:]) < 1e-4
        again = (ids[:40] * 4)[:150]  # which prompt lookup can guess
        answers = [
            engine.generate(again, max_tokens=20, temperature=0, speculate=drafter)
            for drafter in ("off", "ngram")
        ]
        assert answers[0] == answers[1] and engine.stats.speculation.rounds


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(((got - expected) ** 2).mean() / (expected**2).mean())


def paged_operators(path: Path) -> list[PagedOperator]:
    """The operators of a bundle that read or write its cache."""
    found = (from_json(case.record) for case in load_cases(path))
    return [record for record in found if isinstance(record, PagedOperator)]


def test_unknown_formats_are_refused(exact, tmp_path):
    with pytest.raises(CompileError, match="--kv int4: choose f32, f16, bf16, int8"):
        compile_model(exact.checkpoint, tmp_path / "out", kv="int4")
