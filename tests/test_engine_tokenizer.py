"""native/engine's tokenizer against the `tokenizers` library: the same ids of the same texts."""

from __future__ import annotations

import random
import subprocess
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from engine_process import built
from tiny_tokenizers import byte_level, sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from minicpm_mlc.prompt.tokenizer import Tokenizer as OurTokenizer

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "examples/demo_model/MiniCPM4.1-demo"
PROGRAM = Path(__file__).with_name("engine_tokenizer.cc")
VOCAB = 1 << 20
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# what cutting and merging go by: white space of all kinds, digits, marks, contractions, tokens
INTERESTING = [
    *" \n\r\t\v\f\x85\xa0\u2003\u2028\u3000\x1c\u200b",
    *"0189٣²½Ⅷ一二",
    *"aZéß\u017f你好か한\u0627\u0301😀\U0001f1e6\U0001f3fd",
    *"'\"<>|/_▁Ġ.,-",
    "'s",
    "'LL",
    "<s>",
    "</s>",
    "<|im_end|>",
    "<0x0A>",
    "the ",
    " and",
    "<think>",
    "</think>",
    # normal forms: marks in and out of order, letters of syllables, what is never composed
    *"\u0323\u0327\u0345\u05bc\u0338\u1100\u1161\u11a8\u212b\ufb2c\u0344\U0001d15e각",
]


def random_text(draw: random.Random) -> str:
    """Up to 40 pieces: interesting ones, words, any character."""
    anything = [chr(draw.choice([draw.randrange(0x20, 0x3000), draw.randrange(0xE000, 0x110000)]))]
    kinds = [INTERESTING, INTERESTING, ["hello", "world", "compile", "page"], anything]
    return "".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(40)))


def trained(pattern: str | None, files: Iterable[Path]) -> Tokenizer:
    """A byte-level tokenizer of 1500 tokens that cuts words by this pattern, else as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    steps: list = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern:
        from tokenizers import Regex

        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((path.read_text() for path in files), trainer)
    return tokenizer


def normal(files: Iterable[Path]) -> Tokenizer:
    """As Qwen 2's: in normal form C."""
    tokenizer = trained(QWEN2, files)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def digits(files: Iterable[Path]) -> Tokenizer:
    """As SmolLM's: each digit alone, then GPT-2's words."""
    tokenizer = trained(None, files)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return tokenizer


DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
MADE: dict[str, Callable[[], Tokenizer]] = {
    "the demo's": lambda: Tokenizer.from_file(str(DEMO / "tokenizer.json")),
    "SentencePiece's kind": sentencepiece,
    "byte level": byte_level,
    "GPT-2's words": lambda: trained(None, DOCS[:4]),
    "Llama 3's words": lambda: trained(LLAMA3, DOCS[:4]),
    "Qwen 2's words": lambda: trained(QWEN2, DOCS[:4]),
    "Qwen 2's normal form": lambda: normal(DOCS[:4]),
    "SmolLM's digits": lambda: digits(DOCS[:4]),
}


def engine_ids(folder: Path, raw: Tokenizer, calls: list[tuple[str, str]]) -> list[list[int]]:
    """What the engine's tokenizer makes of (how, text) calls."""
    path = folder / "tokenizer.json"
    raw.save(str(path))
    lines = "\n".join(f"{how} {text.encode().hex() or '-'}" for how, text in calls)
    command = [str(built(PROGRAM)), str(path), str(VOCAB)]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [[int(word) for word in line.split()] for line in result.stdout.split("\n")[:-1]]


@pytest.mark.parametrize("name", MADE)
def test_the_same_ids_of_random_texts(name: str, tmp_path: Path) -> None:
    raw = MADE[name]()
    draw = random.Random(name)
    texts = ["", " ", "a", "  a  ", *(random_text(draw) for _ in range(1500))]
    found = engine_ids(tmp_path, raw, [("encode", text) for text in texts])
    for text, ids in zip(texts, found, strict=True):
        assert ids == raw.encode(text, add_special_tokens=False).ids, repr(text)


def test_every_character_in_normal_form_c(tmp_path: Path) -> None:
    """Alone, taken apart, and with marks that belong in another order."""
    raw = normal(DOCS[:1])
    apart = normalizers.NFD().normalize_str
    characters = [chr(code) for code in range(0x80, 0x30000) if not 0xD800 <= code < 0xE000]
    odd = [c for c in characters if apart(c) != c or unicodedata.combining(c)]
    forms = [f"{c} {apart(c)} a\u0327{c}\u0323 {c}\u0301\u0334{c}" for c in odd]
    texts = ["x".join(forms[i : i + 50]) for i in range(0, len(forms), 50)]
    found = engine_ids(tmp_path, raw, [("encode", text) for text in texts])
    for text, ids in zip(texts, found, strict=True):
        assert ids == raw.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize("name", MADE)
def test_control_tokens_as_text_and_middles_and_bytes(name: str, tmp_path: Path) -> None:
    raw = MADE[name]()
    ours = OurTokenizer(raw, None, False)
    plain = Tokenizer.from_str(raw.to_str())
    plain.encode_special_tokens = True
    draw = random.Random(name)
    texts = [random_text(draw) for _ in range(200)]
    middles = ["\n</think>\n\n", " and", "and", "\n", "你好", "1 2"]
    ids = range(raw.get_vocab_size())
    calls = [
        *(("plain", text) for text in texts),
        *(("middle", text) for text in middles),
        *(("bytes", str(i)) for i in ids),
    ]
    expected = [
        *(plain.encode(text, add_special_tokens=False).ids for text in texts),
        *(ours.encode_middle(text) for text in middles),
        *(list(ours.token_bytes(i)) for i in ids),
    ]
    for call, found, wanted in zip(calls, engine_ids(tmp_path, raw, calls), expected, strict=True):
        assert found == wanted, call


@pytest.mark.campaign
@pytest.mark.parametrize("name", MADE)
def test_the_same_ids_of_many_texts(name: str, tmp_path: Path) -> None:
    """5 MB of mixed text, and 10,000 random strings."""
    from mixed_text import mixed_text

    raw = MADE[name]()
    draw = random.Random(f"many {name}")
    texts = [*mixed_text(5 << 20), *(random_text(draw) for _ in range(10_000))]
    found = engine_ids(tmp_path, raw, [("encode", text) for text in texts])
    for text, ids in zip(texts, found, strict=True):
        assert ids == raw.encode(text, add_special_tokens=False).ids, repr(text)


def test_what_it_can_not_read_is_named(tmp_path: Path) -> None:
    raw = sentencepiece()
    raw.pre_tokenizer = pre_tokenizers.Punctuation()
    raw.save(str(tmp_path / "tokenizer.json"))
    command = [str(built(PROGRAM)), str(tmp_path / "tokenizer.json"), str(VOCAB)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pre_tokenizer" in result.stderr and "Punctuation" in result.stderr
