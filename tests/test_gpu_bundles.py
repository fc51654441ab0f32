"""Bundles for the GPU devices that are here: the same tokens as the CPU's, dense, sparse and
speculative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from conftest import DEMO
from test_rpc import KEY, started

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.ops.candidates import Candidates
from minicpm_mlc.runtime_py.device_rows import DeviceRow
from minicpm_mlc.runtime_py.rpc.client import connect
from minicpm_mlc.runtime_py.sampler import likeliest
from minicpm_mlc.runtime_py.verify import verify_bundle

RNG = np.random.default_rng(6)
SUMS = [f"What is {a} + {b}?" for a, b in RNG.integers(100, 9999, (40, 2))]
TALK = [
    "What does minicpm-mlc do?",
    "Hello!",
    "Who are you?",
    "Write a poem.",
    "The code of the red door is 7. Which is it?",
]
QUESTIONS = SUMS + TALK + [f"{question} /no_think" for question in TALK]
asked = pytest.mark.parametrize(  # of both kinds; all of them on each device take minutes
    "questions", [QUESTIONS[::5], pytest.param(QUESTIONS, marks=pytest.mark.campaign)], ids=len
)
LONG = RNG.integers(4, 1500, 700).tolist()  # tokens beyond the demo's dense_len of 512
TOKENS, TREES = 16, 6  # of each answer: decoded one by one; in trees, and sparsely
SHORT: dict[str, Any] = {"attention": "dense", "prefill_chunk": 64}  # of the compilation
pytestmark = pytest.mark.usefixtures("vulkan_silent")


@pytest.fixture(scope="module")
def cpu(demo_on: Callable[..., Path]) -> Iterator[Engine]:
    """The demo and its draft head in float32."""
    with Engine(demo_on("cpu", scheme="f32"), context=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def gpu(device: str, demo_on: Callable[..., Path]) -> Iterator[Engine]:
    """The same on a device."""
    with Engine(demo_on(device, scheme="f32"), context=1024) as engine:
        assert engine.manifest.target["device"] == device
        yield engine


def greedy(engine: Engine, ids: list[int], tokens: int, **options: Any) -> list[int]:
    """The tokens cached after a greedy answer: the prompt's and all but the last of the
    answer's.
    """
    engine.generate(ids, max_tokens=tokens, temperature=0, **options)
    return engine.cached_tokens


def prompt(engine: Engine, question: str) -> list[int]:
    return engine.template.prompt(
        engine.tokenizer.raw, [{"role": "user", "content": question}], None
    ).ids


@pytest.fixture(scope="module")
def answered(cpu: Engine) -> Callable[[str], tuple[list[int], list[int]]]:
    """answered(question) -> the prompt, and the CPU's first 64 greedy tokens after it."""

    @cache
    def answer(question: str) -> tuple[list[int], list[int]]:
        ids = prompt(cpu, question)
        return ids, greedy(cpu, ids, 65, speculate="off")[len(ids) :]

    return answer


@asked
def test_each_token_of_the_answers_is_the_likeliest_after_those_before_it(
    cpu: Engine, gpu: Engine, answered: Callable, questions: list[str]
):
    """Of all 64, where the next test decodes but the first."""
    for question in questions:
        ids, answer = answered(question)
        logits = gpu.logits(ids + answer)
        np.testing.assert_array_equal(logits[len(ids) - 1 : -1].argmax(-1), answer, question)
        np.testing.assert_allclose(logits[-1], cpu.logits(ids + answer)[-1], atol=1e-4)


@asked
def test_answers_are_decoded_one_by_one_and_in_trees_as_on_the_cpu(
    gpu: Engine, answered: Callable, questions: list[str]
):
    for question in questions:
        ids, answer = answered(question)
        for speculate, count in (("off", TOKENS), ("ngram", TREES), ("eagle", TREES)):
            tokens = greedy(gpu, ids, count + 1, speculate=speculate)[len(ids) :]
            assert tokens == answer[:count], (question, speculate)


@pytest.mark.parametrize("speculate", ["off", "ngram", "eagle"])
def test_64_tokens_decoded_one_by_one_and_in_trees(gpu: Engine, answered: Callable, speculate: str):
    ids, answer = answered(SUMS[0])
    assert greedy(gpu, ids, 65, speculate=speculate)[len(ids) :] == answer


@asked
def test_answers_after_a_long_text_are_sparse_and_the_cpus(
    cpu: Engine, gpu: Engine, questions: list[str]
):
    """The text, of more blocks than are read, is computed once."""
    for question in questions:
        ids = LONG[:600] + prompt(cpu, question)
        expected = greedy(cpu, ids, TREES + 1, speculate="off")
        assert greedy(gpu, ids, TREES + 1, speculate="off") == expected, question
        assert gpu.stats.attention == "sparse" and gpu.stats.blocks_read < gpu.stats.blocks
        assert gpu.stats.cached_tokens >= 600 or question == questions[0]


@pytest.mark.parametrize("speculate", ["off", "ngram", "eagle"])
def test_a_long_context_shifts_to_sparse_and_says_the_same(
    cpu: Engine, gpu: Engine, speculate: str
):
    for ids in (LONG, LONG[:500]):  # sparse from the start; shifting at the 512th token
        assert greedy(gpu, ids, 24, speculate=speculate) == greedy(cpu, ids, 24, speculate="off")
    np.testing.assert_allclose(gpu.logits(LONG[:530])[-1], cpu.logits(LONG[:530])[-1], atol=1e-4)


@pytest.mark.parametrize("kv", ["f16", pytest.param("int8", marks=pytest.mark.campaign)])
def test_4_bit_weights_and_small_caches_answer_too(
    device: str, kv: str, compiled: Callable[..., Path]
):
    """float16 is a type that PoCL's compiler hasn't got."""
    said = []
    for options in ({"activations": "f32"}, {"device": device}):
        with Engine(compiled(DEMO, kv=kv, **options, **SHORT), context=512) as engine:
            said.append(greedy(engine, prompt(engine, "What is 4827 + 356?"), 64))
    assert said[0] == said[1]


def test_a_greedy_step_leaves_its_logits_on_the_device_and_sampling_reads_them(gpu: Engine):
    ids = prompt(gpu, TALK[0])
    gpu.truncate(0)
    gpu.prefill(ids)
    rows = gpu.model.step(5)
    assert isinstance(rows, DeviceRow) and rows._rows._fetch
    token = likeliest(rows)
    few = rows.few(0.8)
    assert few and rows._rows._fetch, "nothing was copied"
    logits = np.asarray(rows)
    tokens, values, totals = Candidates.of(len(logits)).define(logits[None], np.array([0.8]))
    np.testing.assert_array_equal(few.ids, tokens[0])
    np.testing.assert_array_equal(few.values, values[0])
    assert few.total == pytest.approx(totals[0], rel=1e-5)
    assert token == np.asarray(rows).argmax() and rows[token] == np.asarray(rows)[token]
    assert not rows._rows._fetch
    gpu.truncate(len(ids))
    assert gpu.greedy(5) == token
    options: Any = {
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 6,
        "speculate": "off",
    }
    drawn = [gpu.generate(ids, **options) and gpu.cached_tokens for _ in range(2)]
    assert drawn[0] == drawn[1]
    found = gpu.roofline()
    assert found and 0 < found.share and set(found.parts) == {"kernels", "launches", "host"}
    assert sum(found.parts.values()) == pytest.approx(1)


@pytest.mark.parametrize("device", ["vulkan"], indirect=True)
def test_a_decode_step_is_one_submission(gpu: Engine):
    counters = tvm_ffi.get_global_func("minicpm.vulkan.counters")
    gpu.truncate(0)
    gpu.prefill(LONG[:100])
    before = dict(counters(0))
    for token in LONG[100:105]:
        gpu.decode(token)
    after = dict(counters(0))
    assert (
        after["submissions"] - before["submissions"] == 5
        and after["launches"] - before["launches"] > 100
    )


def test_every_kernel_passes_and_from_afar_the_tokens_are_the_cpus(
    cpu: Engine, gpu: Engine, tmp_path: Path
):
    address, _ = started(tmp_path)
    report = verify_bundle(gpu.path, remote=connect(address, KEY, [gpu.path]))
    assert report.failed == [] and {"top_k", "concat", "attend_tree_blocks"} < {
        row.operator for row in report.rows
    }
    assert report.tokens == verify_bundle(cpu.path).tokens


def test_int8_activations_are_refused(device: str, tmp_path: Path):
    with pytest.raises(
        CompileError, match="dot products without --arch dot8; use --activations f32"
    ):
        compile_model(DEMO, tmp_path / "out", device=device, activations="int8")
