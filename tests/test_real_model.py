"""SmolLM2-135M-Instruct, trained weights and all: against transformers, in both gears, speculated,
stored in every way, and asked by several threads.
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RealModel
from numpy_model import forward
from real_model import SPARSE

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.model.registry import read_config_folder

LICENCE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.95, "seed": 3},
]
long = pytest.mark.campaign


@pytest.fixture(scope="module")
def exact(real_bundle) -> Path:
    return real_bundle("f32")


@pytest.fixture(scope="module")
def small(real_bundle) -> Path:
    return real_bundle("w4")


@pytest.fixture(scope="module")
def licence(exact: Path) -> list[int]:
    with Engine(exact, context=64) as engine:
        return engine.tokenize(LICENCE, bos=False)


@pytest.mark.parametrize("length", [512, pytest.param(2048, marks=long)])
def test_dense_logits_are_those_of_transformers(
    exact: Path, real_model: RealModel, licence: list[int], length: int
) -> None:
    ids = licence[:length]
    with Engine(exact, context=2048, attention="dense") as engine:
        logits = engine.logits(ids)
    expected = transformers_logits(real_model.llama, ids)
    assert np.abs(logits - expected).max() <= 5e-4
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


def transformers_logits(checkpoint: Path, ids: list[int]) -> np.ndarray:
    """float32 [n, vocab]. RoPE's frequencies are ours, rounded once to float32: transformers has
    some an ulp away, from powers in float32, and their angles are 1e-4 apart after 2,000 tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours = torch.from_numpy(read_config_folder(checkpoint).inv_freq)
    assert torch.allclose(model.model.rotary_emb.inv_freq, ours, rtol=2e-7, atol=0)
    model.model.rotary_emb.inv_freq = ours
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_token_ids_are_those_of_transformers(exact: Path, real_model: RealModel) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(real_model.llama)
    talk = [*QUESTION, {"role": "assistant", "content": "Paris."}, *QUESTION]
    with Engine(exact, context=64) as engine:
        for messages in (QUESTION, talk, [{"role": "system", "content": "Be brief."}, *QUESTION]):
            expected = theirs.apply_chat_template(messages, add_generation_prompt=True)
            assert engine.template.prompt(engine.tokenizer.raw, messages).ids == expected.input_ids
        for text in (LICENCE, "12 + 3,456 = \t\n\n你好 <|im_start|>"):
            assert engine.tokenize(text, bos=False) == theirs(text).input_ids


@pytest.mark.parametrize("length", [448, pytest.param(640, marks=long)])
def test_sparse_logits_are_those_of_the_definition(
    exact: Path, real_model: RealModel, licence: list[int], length: int
) -> None:
    """A row reads 6 blocks, of the 7 or 10 that there are in the end."""
    config, ids = read_config_folder(real_model.minicpm), licence[:length]
    opened = open_checkpoint(real_model.minicpm, config)
    weights = {name: opened.rows(name) for name in opened.names()}
    expected = forward(config, weights, ids, [True] * len(ids))
    with Engine(exact, context=1024, attention="sparse") as engine:
        logits = engine.logits(ids)
    assert np.abs(logits - expected).max() <= 5e-4


def test_it_answers(small: Path) -> None:
    with Engine(small, context=512) as engine:
        assert "Paris" in engine.chat(QUESTION, temperature=0, max_tokens=12)
        assert engine.stats.finish_reason == "stop"


@pytest.mark.parametrize("attention", ["dense", "sparse", "auto"])
def test_speculation_changes_no_token(small: Path, licence: list[int], attention: str) -> None:
    """It drafts for itself; with "auto" the answer crosses into the sparse gear."""
    ids = licence[: SPARSE["dense_len"] - 8 if attention == "auto" else 150]
    with Engine(small, context=1024, attention=attention, draft=small) as engine:
        if engine.manifest.activations != "int8":
            pytest.skip("exact activations round in another order in trees")
        for sampling in SAMPLINGS:
            plain = engine.generate(ids, max_tokens=32, speculate="off", **sampling)
            for drafter in ("ngram", "draft"):
                assert engine.generate(ids, max_tokens=32, speculate=drafter, **sampling) == plain
            assert engine.stats.speculation.accepted > 8


def test_four_bits_keep_what_it_knows(exact: Path, small: Path, licence: list[int]) -> None:
    """Rounded to the nearest, 135 million weights lose more than billions do: 22.0 for 16.0."""
    assert perplexity(small, licence) <= 1.5 * perplexity(exact, licence)


@long
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_keys_in_few_bits_change_the_perplexity_little(
    small: Path, real_bundle, licence: list[int], kv: str
) -> None:
    assert perplexity(real_bundle("w4", kv), licence) <= 1.02 * perplexity(small, licence)


def perplexity(bundle: Path, licence: list[int]) -> float:
    """Of the licence's first 400 tokens."""
    ids = licence[:400]
    with Engine(bundle, context=512, attention="dense") as engine:
        logits = engine.logits(ids)[:-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    said = logits[np.arange(len(logits)), ids[1:]] - np.log(np.exp(logits).sum(-1))
    return float(np.exp(-said.mean()))


def test_sequences_side_by_side_are_as_alone(small: Path, licence: list[int]) -> None:
    parts, more = [licence[:100], licence[300:370]], licence[500:508]
    with Engine(small, context=1024) as engine:
        models = [engine.open_sequence() for _ in parts]
        for model, part in zip(models, parts, strict=True):
            deque(model.prefill(part, engine.prefill_chunk), maxlen=0)
        beside = [[model.decode(token).copy() for model in models] for token in more]
        for number, part in enumerate(parts):
            engine.truncate(0)
            engine.prefill(part)
            for token, rows in zip(more, beside, strict=True):
                np.testing.assert_array_equal(engine.decode(token), rows[number])


def test_threads_get_their_own_answer_or_none(small: Path) -> None:
    questions = ["Say one word.", "What is 2 + 2?", "Who wrote Hamlet?"]
    got: list[tuple[str, str]] = []
    with Engine(small, context=512) as engine:

        def ask(question: str) -> str:
            message = [{"role": "user", "content": question}]
            return engine.chat(message, temperature=0, max_tokens=16)

        def ask_often(question: str) -> None:
            for _ in range(6):
                try:
                    got.append((question, ask(question)))
                except EngineError as busy:
                    assert "busy" in str(busy) or "ended" in str(busy)

        alone = {question: ask(question) for question in questions}
        threads = [threading.Thread(target=ask_often, args=[question]) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got
    assert [text for _, text in got] == [alone[question] for question, _ in got]
