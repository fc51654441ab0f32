"""engine.json: what native/engine can't read from a checkpoint's own files."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.small_files import TOKENIZER, SmallFiles
from minicpm_mlc.compile.chat_rules import chat_rules, text_beginning
from minicpm_mlc.prompt.library_tokenizer import library_errors, read_tokenizer
from minicpm_mlc.prompt.template import ChatTemplate

ENGINE_JSON = "engine.json"
FORMAT = 1


def engine_json(files: SmallFiles, bos_token_id: int | None) -> dict[str, Any]:
    """Its content: how a chat is rendered, and what comes before a text."""
    if files.content(TOKENIZER) is None:
        return _content([], {"refused": "the model has no tokenizer.json"})
    tokenizer = read_tokenizer(files)
    template = ChatTemplate.from_files(files)
    try:
        with library_errors():
            beginning = text_beginning(tokenizer, bos_token_id)
            return _content(beginning, chat_rules(template, tokenizer))
    except BundleError as error:  # a tokenizer that fails whatever it is given
        return _content([], {"refused": str(error)})


def _content(beginning: list[int], chat: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "beginning": beginning, "chat": chat}
