"""Text of all kinds that a tokenizer may split wrongly, the same at every run."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = (
    4096  # characters that are tokenized at a time, so that a difference is found near its cause
)
ROOT = Path(__file__).parents[1]
MARKS = "\uff0c\u3002\uff01\uff1f\uff1b\uff1a\u300c\u300d\u3001\u2026\u2014\u300a\u300b\uff08\uff09"
# with a skin tone, joined to a family, a flag of two letters, a key cap, a flag of tags
EMOJI = [
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e8\U0001f1f3",
    "\u2764\ufe0f",
    "1\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
]
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\n\n\n",
    "   \n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x0b",
    "\x85",
]
ENGLISH = [
    "don't",
    "WE'LL",
    "it's",
    "I'Ve",
    "naïve",
    "x_1",
    "3.14159",
    "1234567",
    "²³",
    "٣٤",
    "Ⅻ",
    "http://a.b/c?d=e",
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<s>", "</think>", "<0x0A>"]


def mixed_text(size: int, seed: int = 0) -> Iterator[str]:
    """Pieces of text, `size` bytes of UTF-8 together: source code, prose, Chinese, emoji, control
    characters, any code point.
    """
    draw, sources = random.Random(seed), _sources()
    kinds: list[Callable[[random.Random], str]] = [_chinese, _words, _control, _any_code_point]
    while size > 0:
        written = draw.random() < 0.5
        piece = next(sources) if written else draw.choice(kinds)(draw)
        size -= len(piece.encode())
        yield piece


def _sources() -> Iterator[str]:
    """Python's own library and this repository's prose, again and again."""
    code = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files = [ROOT / "LICENSE", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *code]
    while True:
        for file in files:
            text = file.read_text("utf-8", errors="replace")
            yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def _chinese(draw: random.Random) -> str:
    def sentence() -> str:
        return "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(draw.randint(1, 20)))

    return "".join(sentence() + draw.choice(MARKS) for _ in range(100))


def _words(draw: random.Random) -> str:
    parts = [*EMOJI, *ENGLISH, *SPECIAL]
    return "".join(draw.choice(parts) + draw.choice(["", *SPACES]) for _ in range(400))


def _control(draw: random.Random) -> str:
    return "".join(chr(draw.randint(0, 0x9F)) for _ in range(1000))


def _any_code_point(draw: random.Random) -> str:
    points = (
        draw.choice([draw.randint(1, 0x2FFF), draw.randint(1, 0x10FFFF)]) for _ in range(1000)
    )
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
