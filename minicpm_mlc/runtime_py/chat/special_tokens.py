"""tokenizer_config.json, and the special tokens that it gives names, as `transformers` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.base.files import read_json_object

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json as a dict; empty when there is no such file."""
    if not path.is_file():
        return {}
    return read_json_object(path, TemplateError, "copy it again from the checkpoint")


def special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Name -> text of every token that has a name in tokenizer_config.json (`config`), and the list
    `additional_special_tokens`. What has no token is not there: undefined in a template.

    Where `config` lists no added tokens, special_tokens_map.json goes before it.

    Raises:
        TemplateError: a token that is neither a text, an object with a text, nor null.
    """
    older = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and older.is_file():
        config = config | read_json_object(
            older, TemplateError, "copy it again from the checkpoint"
        )
    extra = config.get("extra_special_tokens")
    given = config | (extra if isinstance(extra, dict) else {})
    found: dict[str, Any] = {
        name: text
        for name, value in given.items()
        if (name in NAMED or (name.endswith("_token") and isinstance(value, str | dict)))
        and (text := _text(name, value, folder)) is not None
    }
    more = config.get("additional_special_tokens")
    if isinstance(more, list):
        found["additional_special_tokens"] = [
            _text("additional_special_tokens", token, folder) for token in more
        ]
    return found


def _text(name: str, token: Any, folder: Path) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise TemplateError(
            f"{name} in {folder / 'tokenizer_config.json'} is {token!r:.80}, expected a text, an "
            "object with 'content', or null"
        )
    return text
