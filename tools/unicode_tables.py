"""Writes native/engine/src/unicode_tables.inc and nfc_tables.inc: which characters the regular
expressions of the `tokenizers` library take for letters, numbers and white space, and how it writes
characters in normal form C. Asked of the library itself, so that the engine does as it does.

Run again when the library's Unicode version changes: python tools/unicode_tables.py
"""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

KINDS = {"kLetters": r"\p{L}", "kNumbers": r"\p{N}", "kWhite": r"\s"}
OUT = Path(__file__).parents[1] / "native/engine/src"
HEAD = "// Written by tools/unicode_tables.py.\n"
SURROGATES = range(0xD800, 0xE000)
SYLLABLES = range(0xAC00, 0xAC00 + 11172)  # Hangul, composed by counting
ALL = [code for code in range(0x110000) if code not in SURROGATES]
decomposed = normalizers.NFD().normalize_str
composed = normalizers.NFC().normalize_str


def characters(kind: str) -> list[int]:
    """The code points that this regular expression matches."""
    split = pre_tokenizers.Split(Regex(f"(?:{kind})+"), "removed", invert=True)
    text = "".join(map(chr, ALL))
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


def table(kind: str, name: str, rows: Iterable[tuple[int, ...]]) -> str:
    """A C++ array."""
    cells = ["{" + ", ".join(f"0x{number:X}" for number in row) + "}" for row in rows]
    lines = [", ".join(cells[i : i + 5]) for i in range(0, len(cells), 5)]
    return f"constexpr {kind} {name}[] = {{\n    " + ",\n    ".join(lines) + "};\n"


def decompositions() -> Iterator[tuple[int, int, int]]:
    """Each character that means the same as one or two others, and these; 0: there is no second."""
    whole = {c: decomposed(c) for c in map(chr, ALL) if ord(c) not in SYLLABLES}
    whole = {c: parts for c, parts in whole.items() if parts != c}
    by_parts = {parts: c for c, parts in sorted(whole.items(), reverse=True) if len(parts) > 1}
    for c, parts in whole.items():
        first = parts[:-1] if len(parts) < 3 else by_parts[parts[:-1]]
        yield (ord(c), ord(first), ord(parts[-1])) if first else (ord(c), ord(parts), 0)


def marks() -> list[tuple[int, int, int]]:
    """Runs of marks that are put in order, with their combining class."""
    # of each class its first character, which every version of Unicode has
    known = {unicodedata.combining(chr(code)): chr(code) for code in reversed(ALL)}
    classes = sorted(known.keys() - {0})

    def swapped(first: str, second: str) -> bool:
        return decomposed(first + second) != decomposed(first) + decomposed(second)

    def combining(mark: str) -> int:
        # it goes before a mark of any class above its own
        behind = bisect.bisect_left(classes, True, key=lambda c: swapped(known[c], mark))
        return classes[behind - 1]

    lowest, highest = known[classes[0]], known[classes[-1]]
    found = (c for c in map(chr, ALL) if decomposed(c) == c)
    ordered = [c for c in found if swapped(c, lowest) or swapped(highest, c)]
    rows: list[tuple[int, int, int]] = []
    for value, group in groupby(ordered, combining):
        rows += [(first, last, value) for first, last in ranges(map(ord, group))]
    return rows


def main() -> None:
    kinds = (table("Range", name, ranges(characters(kind))) for name, kind in KINDS.items())
    (OUT / "unicode_tables.inc").write_text(HEAD + "".join(kinds))
    parts = sorted(decompositions())
    kept = [row for row in parts if composed(chr(row[0])) == chr(row[0])]
    tables = [
        table("Composed", "kComposed", kept),
        table("Composed", "kNeverComposed", [row for row in parts if row not in set(kept)]),
        table("MarkRange", "kMarks", marks()),
    ]
    (OUT / "nfc_tables.inc").write_text(HEAD + "".join(tables))


if __name__ == "__main__":
    main()
