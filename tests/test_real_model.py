"""SmolLM2-135M-Instruct, trained weights and all: against transformers, in both gears, speculated,
stored in every way, and asked by several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import RealModel
from numpy_model import forward

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.model.registry import read_config_folder

LICENCE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
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


def test_sparse_logits_are_those_of_the_definition(
    exact: Path, real_model: RealModel, licence: list[int]
) -> None:
    """640 tokens are 10 blocks, of which a row reads 6."""
    config, ids = read_config_folder(real_model.minicpm), licence[:640]
    opened = open_checkpoint(real_model.minicpm, config)
    weights = {name: opened.rows(name) for name in opened.names()}
    expected = forward(config, weights, ids, [True] * len(ids))
    with Engine(exact, context=1024, attention="sparse") as engine:
        logits = engine.logits(ids)
    assert np.abs(logits - expected).max() <= 5e-4
