"""What a JSON value must look like, put together from checks; a wrong value is told with the keys
that lead to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Check = Callable[[Any], None]  # raises Damaged

MOST = (1 << 63) - 1
SHOWN = 80  # characters of a wrong value, or of the keys to it, that are shown
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of characters


class Damaged(ValueError):
    """A value that isn't what was expected. `place`: the keys that lead to it, from the outside."""

    def __init__(self, value: Any, expected: str, *place: str) -> None:
        super().__init__(value, expected, *place)
        self.value, self.expected, self.place = value, expected, place

    def __str__(self) -> str:
        return f"{': '.join(self.place)!r:.{SHOWN}}: {_shown(self.value)}, expected {self.expected}"

    def inside(self, key: str) -> Damaged:
        """The same, of a value that is in another one under this key."""
        return Damaged(self.value, self.expected, key, *self.place)


def whole(low: int = 0, high: int = MOST) -> Check:
    """A whole number in these bounds, and no truth value."""
    bounds = f"a whole number from {low}" + (f" to {high}" if high < MOST else "")
    return _of(lambda value: type(value) is int and low <= value <= high, bounds)


def one_of(*values: Any) -> Check:
    """One of these values, of the same type."""
    kinds = [(type(value), value) for value in values]
    expected = " or ".join(json.dumps(value) for value in values)
    return _of(lambda value: (type(value), value) in kinds, expected)


def optional(check: Check) -> Check:
    """null, or what another check takes."""
    return lambda value: None if value is None else check(value)


def list_of(check: Check, least: int = 0) -> Check:
    """A list of at least so many values that a check takes."""

    def checked(value: Any) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise Damaged(value, f"a list of {least} or more")
        for place, item in enumerate(value):
            _inside(str(place), check, item)

    return checked


def row_of(*checks: Check) -> Check:
    """A list of one value for each of these checks."""

    def checked(value: Any) -> None:
        if not isinstance(value, list) or len(value) != len(checks):
            raise Damaged(value, f"a list of {len(checks)}")
        for place, (check, item) in enumerate(zip(checks, value, strict=True)):
            _inside(str(place), check, item)

    return checked


def fields(
    checks: Mapping[str, Check],
    others: Check | None = None,
    maybe: Mapping[str, Check] = MappingProxyType({}),
) -> Check:
    """An object that has all of these keys, and `maybe` those; more only if `others` takes their
    values.
    """
    known = {**maybe, **checks}

    def checked(value: Any) -> None:
        an_object(value)
        for name in checks.keys() - value.keys():
            raise Damaged(None, "a value", name)
        for name, item in value.items():
            _inside(name, known.get(name) or others or _unknown, item)

    return checked


def by_name(named: Check, check: Check) -> Check:
    """An object whose keys and values these checks take."""

    def checked(value: Any) -> None:
        an_object(value)
        for name, item in value.items():
            _inside(name, named, name)
            _inside(name, check, item)

    return checked


def _of(good: Callable[[Any], bool], expected: str) -> Check:
    def checked(value: Any) -> None:
        if not good(value):
            raise Damaged(value, expected)

    return checked


def _inside(key: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except Damaged as damaged:
        raise damaged.inside(key) from None


text = _of(
    lambda value: isinstance(value, str) and not CONTROL.search(value),
    "text without control characters",
)
boolean = _of(lambda value: isinstance(value, bool), "true or false")
number = _of(lambda value: type(value) in (int, float) and _is_finite(value), "a number")
an_object = _of(lambda value: isinstance(value, dict), "an object")
a_list = _of(lambda value: isinstance(value, list), "a list")
_unknown = _of(lambda value: False, "no such field")


def _shown(value: Any) -> str:
    """A value in JSON, cut; of one that holds others what it is, as those may be nested deeply."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return f"{json.dumps(value):.{SHOWN}}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
