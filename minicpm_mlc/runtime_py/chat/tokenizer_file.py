"""tokenizer.json read and checked before the `tokenizers` library sees it, and the library's
errors.

The library ends the process (abort) or panics on some files. What would make it is refused here;
what it throws becomes a BundleError.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import read_json_object

ADVICE = "download the checkpoint again and compile it"
MOST_GROWTH = 100  # times a text may grow before it's cut into tokens, or when they're joined
NORMAL_FORMS = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "ByteLevel": 4, "Lowercase": 3}


def read_tokenizer(path: Path) -> HFTokenizer:
    """The library's tokenizer of a tokenizer.json, without padding and truncation.

    Raises BundleError for a file that can't be read, is no tokenizer, or would make the library
    end the process or fill the memory.
    """
    spec = read_json_object(path, BundleError, ADVICE)
    _check(spec, path)
    # the library gets what was checked: of two keys of one name it might take the other
    text = json.dumps(spec | {"padding": None, "truncation": None})
    with library_errors(str(path)):
        return HFTokenizer.from_str(text)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns what the library throws into BundleError: plain Exceptions, and Rust's panics."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{what}: the tokenizer fails ({error!s:.200}); {ADVICE}") from None


def token_ids(tokenizer: HFTokenizer, text: str) -> list[int]:
    """Ids of a text, special tokens in it recognised, none added.

    Raises BundleError for a tokenizer that fails.
    """
    with library_errors("tokenizer.json"):
        return tokenizer.encode(text, add_special_tokens=False).ids


def _check(spec: dict[str, Any], path: Path) -> None:
    model = spec.get("model")
    if not isinstance(model, dict):
        raise BundleError(f"{path} has no model, so it can't be read as a tokenizer; {ADVICE}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise BundleError(
                f"{path}: {key} is {model[key]!r:.80}, expected null, as in the tokenizers of all "
                "models here"
            )
    for key in ("normalizer", "decoder"):
        try:
            growth = math.prod(_growth(step) for step in steps(spec.get(key)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path}: its {key} can't be read ({error!r:.80}); {ADVICE}"
            ) from None
        if growth > MOST_GROWTH:
            raise BundleError(
                f"{path}: its {key} can make a text {growth:.3g} times as long, expected at most "
                f"{MOST_GROWTH}; {ADVICE}"
            )


def steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or decoder, without the sequences that they're in."""
    if part is None:
        return
    inner = part.get("normalizers", part.get("decoders"))
    if inner is None:
        yield part
    for step in inner or ():
        yield from steps(step)


def _growth(step: dict[str, Any]) -> float:
    """How many times as long a step can make a text."""
    if step["type"] == "Replace":
        pattern = step["pattern"]
        content = len(step["content"])
        replaced = len(pattern["String"]) if "String" in pattern else 0
        return max(1, content / replaced) if replaced else 1 + content
    if step["type"] == "Precompiled":
        return _longest_mapped(base64.b64decode(step["precompiled_charsmap"]))
    return NORMAL_FORMS.get(step["type"], 1)


def _longest_mapped(charsmap: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table: its trie, behind the trie's size, then
    texts that end with a zero.
    """
    trie = int.from_bytes(charsmap[:4], "little")
    return max(1, *map(len, charsmap[4 + trie :].split(b"\0")))
