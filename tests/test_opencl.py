"""Bundles for OpenCL on the device that is here: the same tokens as the CPU's, dense, sparse and speculative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu_cases import needs_opencl

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.errors import CompileError

pytestmark = needs_opencl
DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo"
RNG = np.random.default_rng(6)
SUMS = [f"What is {a} + {b}?" for a, b in RNG.integers(100, 9999, (40, 2))]
TALK = ["What does minicpm-mlc do?", "Hello!", "Who are you?", "Write a poem.", "The code of the red door is 7. Which is it?"]
QUESTIONS = SUMS + TALK + [f"{question} /no_think" for question in TALK]
LONG = RNG.integers(4, 1500, 700).tolist()  # tokens beyond the demo's dense_len of 512


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """The demo in float32: on the CPU and on OpenCL."""
    folder = tmp_path_factory.mktemp("demo")
    for device in ("cpu", "opencl"):
        compile_model(DEMO, folder / device, device=device, scheme="f32", prefill_chunk=256)
    with Engine(folder / "cpu", context=1024) as cpu, Engine(folder / "opencl", context=1024) as opencl:
        assert opencl.manifest.target["device"] == "opencl"
        yield cpu, opencl


def greedy(engine: Engine, ids: list[int], tokens: int, **options: str) -> list[int]:
    """The tokens cached after a greedy answer: the prompt's and all but the last of the answer's."""
    engine.generate(ids, max_tokens=tokens, temperature=0, **options)
    return engine.cached_tokens


def prompt(engine: Engine, question: str) -> list[int]:
    return engine.template.prompt(engine.tokenizer.raw, [{"role": "user", "content": question}], None).ids


def test_50_answers_are_what_the_cpu_says(engines: tuple[Engine, Engine]):
    """Each token of the CPU's answers is the likeliest here too, after the same ones before it."""
    cpu, opencl = engines
    assert len(QUESTIONS) >= 50
    for question in QUESTIONS:
        ids = prompt(cpu, question)
        answer = greedy(cpu, ids, 65)
        logits = opencl.logits(answer)
        np.testing.assert_array_equal(logits[len(ids) - 1 : -1].argmax(-1), answer[len(ids) :], question)
        np.testing.assert_allclose(logits[-1], cpu.logits(answer)[-1], atol=1e-4)


@pytest.mark.parametrize("speculate", ["off", "ngram"])
@pytest.mark.parametrize("question", [SUMS[0], TALK[0]])
def test_64_tokens_decoded_one_by_one_and_in_trees(engines: tuple[Engine, Engine], question: str, speculate: str):
    cpu, opencl = engines
    ids = prompt(cpu, question)
    assert greedy(opencl, ids, 64, speculate=speculate) == greedy(cpu, ids, 64, speculate="off")


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_a_long_context_shifts_to_sparse_and_says_the_same(engines: tuple[Engine, Engine], speculate: str):
    cpu, opencl = engines
    for ids in (LONG, LONG[:500]):  # sparse from the start; shifting at the 512th token
        assert greedy(opencl, ids, 24, speculate=speculate) == greedy(cpu, ids, 24, speculate="off")
    np.testing.assert_allclose(opencl.logits(LONG[:530])[-1], cpu.logits(LONG[:530])[-1], atol=1e-4)


def test_the_default_format_answers_too(tmp_path: Path):
    """4-bit weights and a float16 cache, which PoCL's compiler has no type for."""
    compile_model(DEMO, tmp_path / "w4", device="opencl")
    compile_model(DEMO, tmp_path / "cpu", activations="f32")
    with Engine(tmp_path / "w4", context=512) as opencl, Engine(tmp_path / "cpu", context=512) as cpu:
        ids = prompt(cpu, "What is 4827 + 356?")
        assert greedy(opencl, ids, 64) == greedy(cpu, ids, 64)


def test_int8_activations_are_refused(tmp_path: Path):
    with pytest.raises(CompileError, match="no int8 dot products; use --activations f32"):
        compile_model(DEMO, tmp_path / "out", device="opencl", activations="int8")
