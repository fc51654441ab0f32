"""Bundles for the GPU devices that are here: the same tokens as the CPU's, dense, sparse and speculative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_cases import device_named
from test_rpc import KEY, started

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.errors import CompileError
from minicpm_mlc.runtime_py.rpc.client import connect
from minicpm_mlc.runtime_py.verify import verify_bundle

EXAMPLES = Path(__file__).parents[1] / "examples" / "demo_model"
DEMO, HEAD = EXAMPLES / "MiniCPM4.1-demo", EXAMPLES / "MiniCPM4.1-demo-Eagle3"
RNG = np.random.default_rng(6)
SUMS = [f"What is {a} + {b}?" for a, b in RNG.integers(100, 9999, (40, 2))]
TALK = ["What does minicpm-mlc do?", "Hello!", "Who are you?", "Write a poem.", "The code of the red door is 7. Which is it?"]
QUESTIONS = SUMS + TALK + [f"{question} /no_think" for question in TALK]
LONG = RNG.integers(4, 1500, 700).tolist()  # tokens beyond the demo's dense_len of 512


@pytest.fixture(scope="module", params=["opencl", "vulkan"])
def device(request: pytest.FixtureRequest) -> str:
    if device_named(request.param) is None:
        pytest.skip(f"no {request.param} device with its runtime: make devices")
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Iterator[Engine]:
    """The demo and its draft head in float32."""
    compile_model(DEMO, folder / "cpu", scheme="f32", prefill_chunk=256, draft=HEAD)
    with Engine(folder / "cpu", context=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def gpu(device: str, folder: Path) -> Iterator[Engine]:
    """The same on a device."""
    compile_model(DEMO, folder / device, device=device, scheme="f32", prefill_chunk=256, draft=HEAD)
    with Engine(folder / device, context=1024) as engine:
        assert engine.manifest.target["device"] == device
        yield engine


def greedy(engine: Engine, ids: list[int], tokens: int, **options: Any) -> list[int]:
    """The tokens cached after a greedy answer: the prompt's and all but the last of the answer's."""
    engine.generate(ids, max_tokens=tokens, temperature=0, **options)
    return engine.cached_tokens


def prompt(engine: Engine, question: str) -> list[int]:
    return engine.template.prompt(engine.tokenizer.raw, [{"role": "user", "content": question}], None).ids


def test_50_answers_are_what_the_cpu_says(cpu: Engine, gpu: Engine):
    """Each token of the CPU's answers is the likeliest here too, after the same ones before it."""
    assert len(QUESTIONS) >= 50
    for question in QUESTIONS:
        ids = prompt(cpu, question)
        answer = greedy(cpu, ids, 65)
        logits = gpu.logits(answer)
        np.testing.assert_array_equal(logits[len(ids) - 1 : -1].argmax(-1), answer[len(ids) :], question)
        np.testing.assert_allclose(logits[-1], cpu.logits(answer)[-1], atol=1e-4)


@pytest.mark.parametrize("speculate", ["off", "ngram", "eagle"])
@pytest.mark.parametrize("question", [SUMS[0], TALK[0]])
def test_64_tokens_decoded_one_by_one_and_in_trees(cpu: Engine, gpu: Engine, question: str, speculate: str):
    ids = prompt(cpu, question)
    assert greedy(gpu, ids, 64, speculate=speculate) == greedy(cpu, ids, 64, speculate="off")


@pytest.mark.parametrize("speculate", ["off", "ngram", "eagle"])
def test_a_long_context_shifts_to_sparse_and_says_the_same(cpu: Engine, gpu: Engine, speculate: str):
    for ids in (LONG, LONG[:500]):  # sparse from the start; shifting at the 512th token
        assert greedy(gpu, ids, 24, speculate=speculate) == greedy(cpu, ids, 24, speculate="off")
    np.testing.assert_allclose(gpu.logits(LONG[:530])[-1], cpu.logits(LONG[:530])[-1], atol=1e-4)


@pytest.fixture(scope="module")
def answer_of_4_bits(folder: Path) -> dict[str, list[int]]:
    """What the CPU says with 4-bit weights and float32 activations, by the cache's format."""
    answers = {}
    for kv in ("f16", "int8"):
        compile_model(DEMO, folder / f"cpu-{kv}", activations="f32", kv=kv)
        with Engine(folder / f"cpu-{kv}", context=512) as engine:
            answers[kv] = greedy(engine, prompt(engine, "What is 4827 + 356?"), 64)
    return answers


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_4_bit_weights_and_small_caches_answer_too(device: str, answer_of_4_bits: dict, kv: str, tmp_path: Path):
    """float16 is a type that PoCL's compiler hasn't got."""
    compile_model(DEMO, tmp_path / kv, device=device, kv=kv)
    with Engine(tmp_path / kv, context=512) as engine:
        assert greedy(engine, prompt(engine, "What is 4827 + 356?"), 64) == answer_of_4_bits[kv]


def test_every_kernel_passes_and_from_afar_the_tokens_are_the_cpus(cpu: Engine, gpu: Engine, tmp_path: Path):
    address, _ = started(tmp_path)
    report = verify_bundle(gpu.path, remote=connect(address, KEY, [gpu.path]))
    assert report.failed == [] and {"top_k", "concat", "attend_tree_blocks"} < {row.operator for row in report.rows}
    assert report.tokens == verify_bundle(cpu.path).tokens


def test_int8_activations_are_refused(device: str, tmp_path: Path):
    with pytest.raises(CompileError, match="no int8 dot products; use --activations f32"):
        compile_model(DEMO, tmp_path / "out", device=device, activations="int8")
