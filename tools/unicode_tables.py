"""Writes native/engine/src/unicode_tables.inc: which characters the regular expressions of the
`tokenizers` library take for letters, numbers and white space. Asked of the library itself, so
that the engine cuts texts as it does.

Run again when the library's Unicode version changes: python tools/unicode_tables.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

KINDS = {"kLetters": r"\p{L}", "kNumbers": r"\p{N}", "kWhite": r"\s"}
OUT = Path(__file__).parents[1] / "native/engine/src/unicode_tables.inc"
SURROGATES = range(0xD800, 0xE000)


def characters(kind: str) -> list[int]:
    """The code points that this regular expression matches."""
    split = pre_tokenizers.Split(Regex(f"(?:{kind})+"), "removed", invert=True)
    text = "".join(chr(code) for code in range(0x110000) if code not in SURROGATES)
    return [ord(c) for piece, _ in split.pre_tokenize_str(text) for c in piece]


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """The same as (first, last) of each run."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def table(name: str, kind: str) -> str:
    """A C++ array of the runs."""
    rows = [f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges(characters(kind))]
    lines = [", ".join(rows[i : i + 5]) for i in range(0, len(rows), 5)]
    return f"constexpr Range {name}[] = {{\n    " + ",\n    ".join(lines) + "};\n"


if __name__ == "__main__":
    head = "// Written by tools/unicode_tables.py.\n"
    OUT.write_text(head + "".join(table(name, kind) for name, kind in KINDS.items()))
