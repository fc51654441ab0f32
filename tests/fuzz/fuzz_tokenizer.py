"""tokenizer.json, and what a tokenizer that was taken makes of a text."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_tokenizers

from minicpm_mlc.prompt.tokenizer import Tokenizer

TEXT = "hello world\n 12 <s><|im_end|> 你é\u0301"


def seeds() -> list[bytes]:
    made = [tiny_tokenizers.sentencepiece(), tiny_tokenizers.byte_level()]
    return [tokenizer.to_str().encode() for tokenizer in made]


def run(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_folder(folder, 1, 1000)
    ids = tokenizer.encode(TEXT)
    tokenizer.encode_middle(TEXT)
    tokenizer.decode(ids)
    for token in ids:
        tokenizer.token_bytes(token)
