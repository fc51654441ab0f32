"""How much a method, filter or operator would make, or how long it would take, before it's done.

What is left out makes at most a few times what it's given, in time that grows with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2.exceptions import SecurityError
from markupsafe import Markup

from minicpm_mlc.prompt.render_budget import (
    budget,
    check_bits,
    check_items,
    check_size,
    weigh,
)

Check = Callable[..., object]  # takes what the method or filter takes

SLOW_TEXT = 1 << 16  # characters for what is written in Python, or takes a text's length squared
LONGEST_PATH = 1000
PAIRS = 1 << 28  # comparisons of characters in one operation
PLAIN_CODECS = ("utf8", "utf16", "utf32", "ascii", "latin1")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raises SecurityError for an operation whose result would be too large."""
    texts = (str, bytes, list, tuple)
    if operator == "+" and isinstance(left, texts) and isinstance(right, texts):
        escaped = 6 if isinstance(left, Markup) or isinstance(right, Markup) else 1
        check_size((len(left) + len(right)) * escaped)
    if operator == "%" and isinstance(left, str | bytes):
        check_percent(left, right)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * right)
    if operator == "*":
        for text, times in ((left, right), (right, left)):
            if isinstance(text, texts) and isinstance(times, int):
                (check_size if isinstance(text, str | bytes) else check_items)(len(text) * times)


def check_percent(form: str | bytes, values: Any) -> None:
    """Raises SecurityError for `form % values` that may be too large."""
    text = form if isinstance(form, str) else form.decode("latin-1")
    conversions = re.findall(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", text)
    if any("*" in flags for flags in conversions):
        raise SecurityError("a width of * in a format")
    numbers = [number for flags in conversions for number in re.findall(r"\d+", flags)]
    check_size(len(text) + len(conversions) * weigh(values, {}) + _total(numbers))


def check_spec(spec: str) -> None:
    """Raises SecurityError for a format specification with a large width or precision."""
    check_size(_total(re.findall(r"\d+", spec)))


def checked_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments that a built-in method is to be called with.

    Raises SecurityError if it would make or take too much; TypeError for arguments that it doesn't
    take.
    """
    if name in ("maketrans", "fromkeys"):  # of a type: the owner may be no text
        for text in args:
            check_iterated(text)
    if not isinstance(owner, str | bytes | int):
        return args
    if name in ("format", "format_map"):  # those that a template gets are wrapped
        raise SecurityError(f"{name} outside the sandbox")
    if name == "join" and len(args) == 1:
        return (checked_items(owner, *args),)  # type: ignore[arg-type]
    if check := METHODS.get(name):
        check(owner, *args, **kwargs)
    return args


def checked_items(separator: str | bytes, items: Iterable[Any]) -> list[Any]:
    """The items as a list. Raises SecurityError if they're too much to be joined."""
    check_iterated(items)
    found = list(items)
    escaped = 6 if isinstance(separator, Markup) else 1
    check_size((weigh(found, {}) - 8 * len(found) + len(separator) * len(found)) * escaped)
    return found


def check_iterated(value: object, *_: object, **__: object) -> None:
    """Raises SecurityError for a text of which a list of characters would be too long."""
    if isinstance(value, str | bytes):
        check_items(len(value))


def check_path(path: object) -> None:
    """Raises SecurityError for a long text that names an attribute, and its attribute."""
    if isinstance(path, str) and len(path) > LONGEST_PATH:
        raise SecurityError(f"an attribute's name of more than {LONGEST_PATH} characters")


def whole(value: object) -> int:
    """A whole number. Raises TypeError for another value: a text times a number is a text."""
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, not {type(value).__name__}")
    return value


def _total(numbers: Iterable[str]) -> float:
    return sum(float(number) for number in numbers)


def _width(_: object, width: int, *__: object) -> None:
    check_size(width)


def _expandtabs(text: Any, tabsize: int = 8) -> None:
    check_size(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * whole(tabsize))


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> None:
    found = text.count(old) if count < 0 else min(whole(count), text.count(old))
    escaped = 6 if isinstance(text, Markup) else 1
    check_size((len(text) + found * max(0, len(new) - len(old))) * escaped)


def _translate(_text: Any, table: Any, *_: object) -> None:
    values = table.values() if isinstance(table, dict) else table
    longest = max((len(v) for v in values or () if isinstance(v, str)), default=1)
    check_size(len(_text) * longest)


def _split(text: Any, sep: Any = None, maxsplit: int = -1) -> None:
    _search(text, sep)
    pieces = text.count(sep) if sep else len(text) // 2
    check_items(pieces if maxsplit < 0 else min(pieces, maxsplit))
    budget().charge(4 * len(text))


def _splitlines(text: Any, keepends: bool = False) -> None:
    _split(text)


def _search(text: Any, wanted: Any = None, *_: object) -> None:
    if wanted and len(text) * len(wanted) > PAIRS:
        raise SecurityError(f"a search for {len(wanted):,} characters in {len(text):,}")


def _codec(text: Any, encoding: str = "utf-8", errors: str = "strict") -> None:
    plain = re.sub(r"[-_ ]", "", str(encoding)).lower() in PLAIN_CODECS
    check_size(len(text) * (4 if plain else 256))  # IDNA takes a text's length squared


def _to_bytes(_: int, length: int = 1, *__: object, **___: object) -> None:
    check_size(length)


def _by_attribute(value: object, *args: object, **kwargs: object) -> None:
    """Of a filter whose texts name attributes."""
    check_iterated(value)
    for path in (*args, *kwargs.values()):
        check_path(path)


def _map(value: object, *args: object, attribute: object = None, **kwargs: object) -> None:
    _by_attribute(value, *args[:1], attribute)


def _slow(value: object, *args: object, **kwargs: object) -> None:
    size = weigh(value, {})
    if size > SLOW_TEXT:
        raise SecurityError(f"more than {SLOW_TEXT:,} characters for a slow filter")
    longest = max((len(a) for a in (*args, *kwargs.values()) if isinstance(a, str)), default=0)
    check_size(size * (1 + longest))  # a text that is written into every line or link


METHODS: dict[str, Check] = {
    "center": _width,
    "ljust": _width,
    "rjust": _width,
    "zfill": _width,
    "expandtabs": _expandtabs,
    "replace": _replace,
    "translate": _translate,
    "split": _split,
    "rsplit": _split,
    "splitlines": _splitlines,
    "rfind": _search,
    "rindex": _search,
    "rpartition": _search,
    "strip": _search,
    "lstrip": _search,
    "rstrip": _search,
    "encode": _codec,
    "decode": _codec,
    "to_bytes": _to_bytes,
    "striptags": _slow,
    "unescape": _slow,
}


def _indent(text: Any, width: int | str = 4, *_: object, **__: object) -> None:
    size = len(width) if isinstance(width, str) else whole(width)
    check_size(len(str(text)) + (str(text).count("\n") + 1) * size)


def _filter_center(value: object, width: int = 80) -> None:
    check_size(width)


def _filter_replace(value: Any, old: Any, new: Any, count: int | None = None) -> None:
    _replace(str(value), str(old), str(new), -1 if count is None else count)


def _filter_format(value: Any, *args: object, **kwargs: object) -> None:
    check_percent(str(value), kwargs or args)


def _round(value: object, precision: int = 0, method: str = "common") -> None:
    check_bits(abs(whole(precision)) * 64)


def _batch(value: object, linecount: int, fill_with: object = None) -> None:
    check_iterated(value)
    check_items(linecount)


def _slice(value: object, slices: int, fill_with: object = None) -> None:
    check_iterated(value)
    check_items(slices)


def _trim(value: object, chars: str | None = None) -> None:
    _search(str(value), chars)


def _escape(value: Any) -> None:
    check_size(6 * len(value) if isinstance(value, str) else weigh(value, {}))


def _json(value: object, **options: Any) -> None:
    check_size(6 * weigh(value, {}))


def _words(value: Any) -> None:
    check_items(len(str(value)))


def _sum(value: Any, attribute: object = None, start: object = 0) -> None:
    _by_attribute(value, attribute)
    if not isinstance(start, int | float):
        _slow(value)


# Filters of jinja2 by name; a filter that reads a text one character at a time makes a list of them
FILTERS: dict[str, Check] = {
    **dict.fromkeys(("list", "select", "reject", "random", "dictsort"), check_iterated),
    **dict.fromkeys(("sort", "unique", "groupby", "min", "max"), _by_attribute),
    **dict.fromkeys(("map", "selectattr", "rejectattr"), _map),
    **dict.fromkeys(("urlize", "striptags", "pprint", "xmlattr", "wordwrap", "title"), _slow),
    **dict.fromkeys(("escape", "e", "forceescape"), _escape),
    "batch": _batch,
    "slice": _slice,
    "center": _filter_center,
    "format": _filter_format,
    "indent": _indent,
    "replace": _filter_replace,
    "round": _round,
    "sum": _sum,
    "tojson": _json,
    "trim": _trim,
    "urlencode": _json,
    "wordcount": _words,
}
