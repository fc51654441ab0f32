"""The special tokens that have a name, as `transformers` gives them to chat templates."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.bundle.small_files import TOKENIZER_CONFIG, SmallFiles

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ADDITIONAL = "additional_special_tokens"


def special_tokens(files: SmallFiles) -> dict[str, Any]:
    """Name -> text of every token that has a name in tokenizer_config.json, and the list
    `additional_special_tokens`. What has no token is not there: undefined in a template.

    Where the config lists no added tokens, special_tokens_map.json goes before it.

    Raises the files' error for a token that is neither a text, an object with one, nor null.
    """
    config = files.tokenizer_config
    if "added_tokens_decoder" not in config:
        config = config | files.object("special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    given = config | (extra if isinstance(extra, dict) else {})
    found: dict[str, Any] = {
        name: text
        for name, value in given.items()
        if (name in NAMED or (name.endswith("_token") and isinstance(value, str | dict)))
        and (text := _text(name, value, files)) is not None
    }
    more = config.get(ADDITIONAL)
    if isinstance(more, list):
        found[ADDITIONAL] = [_text(ADDITIONAL, token, files) for token in more]
    return found


def _text(name: str, token: Any, files: SmallFiles) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        wrong = f"{name} is {token!r:.60}, expected a text, an object with 'content', or null"
        raise files.refuse(TOKENIZER_CONFIG, wrong)
    return text
