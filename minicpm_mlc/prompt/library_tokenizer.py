"""tokenizer.json read and checked before the `tokenizers` library sees it, and the library's
errors.

The library ends the process (abort) or panics on some files. What would make it is refused here;
what it throws becomes a BundleError.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from minicpm_mlc.base.errors import BundleError, MiniCPMError
from minicpm_mlc.bundle.small_files import TOKENIZER, SmallFiles

MOST_GROWTH = 100  # times a text may grow before it's cut into tokens, or when they're joined
NORMAL_FORMS = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "ByteLevel": 4, "Lowercase": 3}


def read_tokenizer(files: SmallFiles) -> HFTokenizer:
    """The library's tokenizer of a folder that has a tokenizer.json; it neither pads nor cuts.

    Raises the files' error where it's no tokenizer, or would make the library end the process or
    fill the memory.
    """
    _check(files.parsed(TOKENIZER), files)
    with library_errors(lambda wrong: files.refuse(TOKENIZER, wrong)):
        tokenizer = HFTokenizer.from_str((files.content(TOKENIZER) or b"").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()  # to a length that the file gives: the memory for it may not be there
    return tokenizer


def _refuse(wrong: str) -> BundleError:
    return BundleError(f"tokenizer.json: {wrong}; download the checkpoint again and compile it")


@contextmanager
def library_errors(refuse: Callable[[str], MiniCPMError] = _refuse) -> Iterator[None]:
    """Turns what the library throws, plain Exceptions and Rust's panics, into what `refuse`
    makes of its message.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise refuse(f"the tokenizer can't be read or fails ({error!s:.200})") from None


def token_ids(tokenizer: HFTokenizer, text: str) -> list[int]:
    """Ids of a text, special tokens in it recognised, none added.

    Raises BundleError for a tokenizer that fails.
    """
    with library_errors():
        return tokenizer.encode(text, add_special_tokens=False).ids


def _check(spec: dict[str, Any], files: SmallFiles) -> None:
    model = spec.get("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(key):
            wrong = f"{key} is {model[key]!r:.60}, expected null, as in every model's here"
            raise files.refuse(TOKENIZER, wrong)
    for key in ("normalizer", "decoder"):
        try:
            growth = math.prod(map(_growth, steps(spec.get(key))))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise files.refuse(TOKENIZER, f"its {key} can't be read ({error!r:.60})") from None
        if growth > MOST_GROWTH:
            wrong = f"its {key} can make a text {growth:.3g} times as long, expected at most"
            raise files.refuse(TOKENIZER, f"{wrong} {MOST_GROWTH}")


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
