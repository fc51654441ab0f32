"""tokenizer_config.json and generation_config.json, in one input: what a chat takes from them."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import CHAT_TEMPLATE
from fake_library import manifest

from minicpm_mlc.bundle.manifest import Bundle
from minicpm_mlc.runtime_py.chat.template import ChatTemplate
from minicpm_mlc.runtime_py.defaults import default_sampling, eos_token_ids

TOKENIZER = {
    "bos_token": {"content": "<s>", "special": True},
    "eos_token": "<|im_end|>",
    "pad_token": None,
    "add_bos_token": True,
    "additional_special_tokens": ["<think>"],
    "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
    "chat_template": [{"name": "default", "template": CHAT_TEMPLATE}],
}
GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "eos_token_id": [2, 4],
}


def seeds() -> list[bytes]:
    deep = b'{"tokenizer_config.json": ' + b"[" * 30000
    return [
        json.dumps({"tokenizer_config.json": TOKENIZER, "generation_config.json": GENERATION}).encode(),
        json.dumps({"tokenizer_config.json": TOKENIZER | {"chat_template": CHAT_TEMPLATE}}).encode(),
        deep,
    ]


def run(data: bytes, folder: Path) -> None:
    """Bytes that are no object of files are both files as they are."""
    for name in ("tokenizer_config.json", "generation_config.json"):
        try:
            content = json.dumps(json.loads(data)[name]).encode()
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            content = data
        (folder / name).write_bytes(content)
    errors = []
    bundle = Bundle(folder, manifest())
    for read in (
        lambda: ChatTemplate.from_folder(folder).render([{"role": "user", "content": "a"}]),
        lambda: default_sampling(folder),
        lambda: eos_token_ids(bundle),
    ):
        try:
            read()
        except Exception as error:
            errors.append(error)
    for error in errors:
        raise error
