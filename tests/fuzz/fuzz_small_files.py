"""tokenizer_config.json and generation_config.json, in one input: what chat asks them."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import CHAT_TEMPLATE
from fake_library import manifest

from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.prompt.template import ChatTemplate
from minicpm_mlc.runtime_py.defaults import eos_token_ids

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
NAMES = ("tokenizer_config.json", "generation_config.json")


def seeds() -> list[bytes]:
    plain = TOKENIZER | {"chat_template": CHAT_TEMPLATE}
    pairs = [{NAMES[0]: one, NAMES[1]: GENERATION} for one in (TOKENIZER, plain)]
    return [*(json.dumps(pair).encode() for pair in pairs), b"[" * 30000]


def run(data: bytes, folder: Path) -> None:
    """Bytes that are no object of files are both files as they are."""
    for name in NAMES:
        try:
            content = json.dumps(json.loads(data)[name]).encode()
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            content = data
        (folder / name).write_bytes(content)
    files = SmallFiles(folder)
    default_sampling(files)
    eos_token_ids(manifest(), files)
    files.check()
    ChatTemplate.from_files(files).render([{"role": "user", "content": "a"}])
