"""Text that comes in from people and files, text that goes out to terminals, tables and sizes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

MARK = "\N{REPLACEMENT CHARACTER}"
# What drives a terminal: control characters other than tab and line feed; and half characters.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), MARK)
_LINE_CONTROLS = _CONTROLS | {ord("\t"): MARK, ord("\n"): MARK}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LONGEST_NAME = 200  # characters of a name, or of one value, that are shown
LONGEST_MESSAGE = 2000  # of an error


def decode_text(data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file or pipe, its line ends as \\n. A byte order mark names the encoding and is
    left out; what can't be read becomes U+FFFD.
    """
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark))
    text = data.decode(next(marks, encoding), "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that is alone. Python keeps bytes that
    it can't decode as such halves, and JSON can hold them; two halves side by side are joined.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def harmless(text: str) -> str:
    """Text for a terminal: a mark for each control character other than tab and line feed."""
    return whole_characters(text).translate(_CONTROLS)


def shown(value: object, longest: int = LONGEST_NAME) -> str:
    """A name or value from outside as one line: without control characters, its middle left out
    where it has more than `longest` characters.
    """
    return cut(whole_characters(str(value)).translate(_LINE_CONTROLS), longest)


def quoted(value: object) -> str:
    """A refused value as Python writes it, for an error."""
    try:
        return cut(repr(value), LONGEST_NAME)
    except ValueError:  # an int of more digits than Python prints
        return "a number of thousands of digits"


def cut(text: str, longest: int) -> str:
    """At most `longest` characters: the beginning, and the end, which in errors says what to do."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces, the first to the left, the numbers after it to the right.

    `cells` are rows of equal length, the first one the head.
    """
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(form.format(*line).rstrip() for line in cells)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """The same cells as plain_table takes, as a Markdown table."""
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    rule = "|---" + "|--:" * (len(cells[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def any_of(names: Sequence[str]) -> str:
    """A name, or several as a choice: 'auto, int8 or f32'."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def human_bytes(count: float) -> str:
    """A number of bytes in binary units: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
