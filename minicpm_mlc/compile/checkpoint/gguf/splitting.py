"""How byte-level tokenizers split text before they merge, by the name that GGUF has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT = LLAMA3.replace("{1,3}", "")


@dataclass(frozen=True)
class Splitting:
    """The steps before ByteLevel's mapping, as tokenizer.json has them."""

    steps: list[dict[str, Any]]
    ignore_merges: bool = False
    adds_bos: bool = False  # where the file doesn't say
    nfc: bool = False


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _byte_level(use_regex: bool) -> dict[str, Any]:
    common = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return common | {"use_regex": use_regex}


DIGITS = {"type": "Digits", "individual_digits": True}
SPLITTING = {
    "smollm": Splitting([DIGITS, _byte_level(True)]),
    "gpt-2": Splitting([_byte_level(True)]),
    "llama-bpe": Splitting([_split(LLAMA3), _byte_level(False)], ignore_merges=True, adds_bos=True),
    "minicpm5": Splitting(
        [_split(r"\p{N}{1,3}"), _split(LLAMA3), _byte_level(False)], ignore_merges=True
    ),
    "qwen2": Splitting([_split(ONE_DIGIT), _byte_level(False)], nfc=True),
}
