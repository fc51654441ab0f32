"""tokenizer.json and tokenizer_config.json of a GGUF file's metadata."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile
from minicpm_mlc.compile.checkpoint.gguf.splitting import SPLITTING, Splitting
from minicpm_mlc.compile.checkpoint.gguf.spm_merges import LONGEST, merges_of

UNKNOWN, CONTROL, USER, UNUSED = 2, 3, 4, 5
SPACE = "\u2581"
COPY = "put the model's tokenizer.json beside it"


def tokenizer_json(file: GgufFile) -> dict[str, Any]:
    """tokenizer.json as `tokenizers` reads it. Raises CheckpointError for a tokenizer that can't
    be rebuilt.
    """
    model = file.metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        parts = _byte_level(file)
    elif model == "llama":
        parts = _sentencepiece(file)
    else:
        raise file.error(f"tokenizer.ggml.model is {model!r:.60}, expected llama or gpt2; {COPY}")
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(file)}
    return head | parts


def tokenizer_config_json(file: GgufFile) -> dict[str, Any]:
    """The special tokens by their texts, and the chat template."""
    tokens = _texts(file, "tokens")
    config: dict[str, Any] = {"add_bos_token": _adds_bos(file), "add_eos_token": False}
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for key, name in names.items():
        if (number := _special(file, name, len(tokens))) is not None:
            config[key] = tokens[number]
    if (template := file.metadata.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return config


def _byte_level(file: GgufFile) -> dict[str, Any]:
    splitting = _splitting(file)
    merges = _texts(file, "merges")
    if wrong := next((m for m in merges if m.count(" ") != 1), None):
        raise file.error(f"tokenizer.ggml.merges has {wrong!r:.60}, expected two tokens; {COPY}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "normalizer": {"type": "NFC"} if splitting.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitting.steps},
        "post_processor": _post_processor(file),
        "decoder": byte_level | {"use_regex": True},
        "model": _bpe(
            file,
            [merge.split(" ") for merge in merges],
            ignore_merges=splitting.ignore_merges,
        ),
    }


def _sentencepiece(file: GgufFile) -> dict[str, Any]:
    tokens, scores = _texts(file, "tokens"), _numbers(file, "scores")
    kinds = _numbers(file, "token_type")
    if (longest := max(map(len, tokens))) > LONGEST:
        raise file.error(f"a token has {longest:,} characters, expected {LONGEST} or fewer")
    normal = scores[kinds == 1]
    if not len(normal) or (normal == normal[0]).all():
        raise file.error(f"its tokens have no scores, so their merges are lost; {COPY}")
    prefix = [{"type": "Prepend", "prepend": SPACE}]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    add_prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    number = _special(file, "unknown", len(tokens))
    unknown = tokens[number or 0]
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_prefix else []
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*(prefix if add_prefix else []), spaces],
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(file),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(file, merges_of(tokens, scores), unk_token=unknown, byte_fallback=True),
    }


def _bpe(file: GgufFile, merges: list[list[str]], **options: Any) -> dict[str, Any]:
    tokens = _texts(file, "tokens")
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise file.error(f"tokenizer.ggml.tokens has a token twice; {COPY}")
    for left, right in merges:
        if not (left in vocab and right in vocab and left + right in vocab):
            raise file.error(f"merges {left!r:.40} and {right!r:.40}, which are no tokens; {COPY}")
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": "unk_token" in options}
    model |= {"byte_fallback": False, "ignore_merges": False}
    return model | options | {"vocab": vocab, "merges": merges}


def _added(file: GgufFile) -> list[dict[str, Any]]:
    """Control tokens are special, user tokens are not; [PAD...] of unused ids are left out."""
    tokens, kinds = _texts(file, "tokens"), _numbers(file, "token_type")
    if len(kinds) != len(tokens):
        raise file.error(f"has {len(tokens)} tokens and {len(kinds)} token types; {COPY}")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": tokens[number], **flags, "special": bool(kind != USER)}
        for number, kind in enumerate(kinds.tolist())
        if kind in (UNKNOWN, CONTROL, USER) and tokens[number]
    ]


def _post_processor(file: GgufFile) -> dict[str, Any] | None:
    tokens = _texts(file, "tokens")
    first = _special(file, "bos", len(tokens))
    if not _adds_bos(file) or first is None:
        return None
    text = tokens[first]
    begin, rest = (
        {"SpecialToken": {"id": text, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, rest],
        "pair": [begin, rest, {"SpecialToken": {"id": text, "type_id": 1}}, other],
        "special_tokens": {text: {"id": text, "ids": [first], "tokens": [text]}},
    }


def _adds_bos(file: GgufFile) -> bool:
    found = file.metadata.get("tokenizer.ggml.add_bos_token")
    if found is None:
        splitting = SPLITTING.get(str(file.metadata.get("tokenizer.ggml.pre")))
        named = file.metadata.get("tokenizer.ggml.model")
        return named == "llama" or bool(splitting and splitting.adds_bos)
    return bool(found)


def _splitting(file: GgufFile) -> Splitting:
    name = file.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in SPLITTING:
        raise file.error(
            f"tokenizer.ggml.pre is {name!r:.60}, expected {', '.join(SPLITTING)}; {COPY}"
        )
    return SPLITTING[name]


def _special(file: GgufFile, name: str, size: int) -> int | None:
    """The id of a special token. Raises CheckpointError for one that is no token's."""
    number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < size:
        raise file.error(f"tokenizer.ggml.{name}_token_id is {number!r:.40}, of {size} tokens")
    return number


def _texts(file: GgufFile, name: str) -> list[str]:
    found = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found:
        raise file.error(f"has no list tokenizer.ggml.{name}; {COPY}")
    return found


def _numbers(file: GgufFile, name: str) -> np.ndarray:
    found = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, np.ndarray) or len(found) != len(_texts(file, "tokens")):
        raise file.error(f"has no tokenizer.ggml.{name} for each token; {COPY}")
    return found
