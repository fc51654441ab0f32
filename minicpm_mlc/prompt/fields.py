"""Reads the fields of a JSON body, and says which one is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.base.text import quoted


class Fields:
    """A JSON object. null is as good as absent. Every reader raises FieldError for a value of
    another kind, with the field's name as `param`.
    """

    def __init__(self, values: object, at: str = "") -> None:
        """`at`: where the object stands in the body."""
        if not isinstance(values, Mapping):
            raise FieldError(
                f"{at or 'the body'} is {_kind(values)}; expected an object", at or None
            )
        self.values: Mapping[str, Any] = values
        self._at = f"{at}." if at else ""
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """A value of any kind."""
        self._read.add(name)
        return self.values.get(name)

    def unread(self, ignored: Collection[str] = ()) -> list[str]:
        """Fields that nobody asked for."""
        given = {name for name, value in self.values.items() if value is not None}
        return sorted(given - self._read - set(ignored))

    def text(self, name: str) -> str | None:
        """A text."""
        return self._typed(name, str, "a text")

    def flag(self, name: str) -> bool | None:
        """true or false."""
        return self._typed(name, bool, "true or false")

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A number from low to high."""
        value = self.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, low: int, high: int | None = None) -> int | None:
        """A whole number, `low` or more and at most `high`."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and low <= value and (high is None or value <= high):
            return int(value)
        upper = "" if high is None else f", at most {high}"
        raise self.wrong(name, f"a whole number, {low} or more{upper}")

    def items(self, name: str) -> list[Any] | None:
        """A list."""
        return self._typed(name, list, "a list")

    def object(self, name: str) -> Fields | None:
        """An object."""
        value = self.get(name)
        return None if value is None else Fields(value, self._at + name)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty where it is absent."""
        found = self.items(name) or []
        return [Fields(item, f"{self._at}{name}[{i}]") for i, item in enumerate(found)]

    def choice(self, name: str, values: Collection[str]) -> str | None:
        """One of these texts."""
        value = self.get(name)
        if value is not None and value not in tuple(values):  # it may be of any kind, a list too
            raise self.wrong(name, "one of " + ", ".join(values))
        return value

    def texts(self, name: str) -> list[str]:
        """A text, or a list of texts; empty where it is absent."""
        value = self.get(name)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
            raise self.wrong(name, "a text or a list of texts")
        return found

    def refuse(self, *names: str, why: str) -> None:
        """Raises FieldError where one of these fields is given."""
        for name in names:
            if self.get(name) not in (None, False, "", [], {}):
                raise FieldError(f"{self._at}{name} can't be used: {why}", self._at + name)

    def need(self, name: str) -> Any:
        """A value that has to be there."""
        value = self.get(name)
        if value is None:
            raise FieldError(f"{self._at}{name} is missing", self._at + name)
        return value

    def wrong(self, name: str, expected: str) -> FieldError:
        """The error for a field's value."""
        value = self.values.get(name)
        shown = _kind(value) if isinstance(value, dict | list) else quoted(value)
        return FieldError(f"{self._at}{name} is {shown}; expected {expected}", self._at + name)

    def _typed(self, name: str, kind: type, expected: str) -> Any:
        value = self.get(name)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(name, expected)
        return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a bool", type(None): "null"}
    return kinds.get(type(value), "a number")
