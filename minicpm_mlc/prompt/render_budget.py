"""What rendering a chat template may take: time, bytes made, and the size of one value.

A template is a program by somebody else. It runs in this process, so everything it does is counted:
`step` before each operation, `made` after each one that makes a value (sandbox.py, growth.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from types import GeneratorType
from typing import TypeVar
from weakref import WeakKeyDictionary

from jinja2.exceptions import SecurityError

SECONDS = 1.5  # a render of a long conversation takes milliseconds
TOTAL_BYTES = 64 << 20  # of all values made, kept or not: so what is kept is less
TEXT_LIMIT = 4 << 20  # characters of one text; no context holds more
ITEM_LIMIT = TEXT_LIMIT // 8  # items of one list: an item counts as 8 characters at least
ITEM_BYTES = 64  # what a small object and the reference to it take
MANY_ARGUMENTS = 16  # fewer are not counted
KEYWORD_BYTES = 512  # of a keyword argument, in all the calls that hand it on
OBJECT_BYTES = 512  # what a namespace or generator takes
MOST_CHAINED = 100
BITS_LIMIT = 1 << 16  # of a whole number

Value = TypeVar("Value")


class Budget:
    """Time and bytes that are left to one render, or to compiling one template."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS
        self._bytes = TOTAL_BYTES
        self._depths: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def step(self) -> None:
        """Called before each operation. Raises SecurityError when time is up."""
        if time.monotonic() > self._end:
            raise SecurityError(f"it runs for more than {SECONDS} seconds; check its loops")

    def made(self, value: Value) -> Value:
        """The value, paid for. Raises SecurityError if it's too large or too much was made."""
        if isinstance(value, str | bytes):
            check_size(len(value))
            self.charge(sys.getsizeof(value))
        elif isinstance(value, int):
            check_bits(value.bit_length())
            self.charge(value.bit_length() // 8)
        elif isinstance(value, list | tuple | dict | AbstractSet):
            weigh(value, {})
            self.charge((len(value) + 1) * ITEM_BYTES)
        elif value is not None and not isinstance(value, float):
            self.charge(OBJECT_BYTES)
        return value

    def given(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Pays for the arguments of a call, which may be a list's items."""
        if len(args) + len(kwargs) > MANY_ARGUMENTS:
            self.charge(len(args) * ITEM_BYTES + len(kwargs) * KEYWORD_BYTES)

    def chained(self, result: object, sources: Iterable[object]) -> None:
        """Called with every generator and what it was made of. Raises SecurityError for a long
        chain: to read or free it, Python calls itself once per link, and ends the process.
        """
        generators = [source for source in sources if isinstance(source, GeneratorType)]
        depth = 1 + max((self._depths.get(source, 0) for source in generators), default=0)
        if depth > MOST_CHAINED:
            raise SecurityError(f"more than {MOST_CHAINED} filters in a row that were not read")
        self._depths[result] = depth

    def charge(self, size: int) -> None:
        """Pays for `size` bytes. Raises SecurityError when there are none left."""
        self._bytes -= size
        if self._bytes < 0:
            raise SecurityError(
                f"it makes more than {TOTAL_BYTES >> 20} MB of values; shorten the messages, or "
                "check its loops"
            )


_current: ContextVar[Budget] = ContextVar("render budget")


@contextmanager
def new_budget() -> Iterator[None]:
    """What this thread renders inside is counted on one new budget."""
    token = _current.set(Budget())
    try:
        yield
    finally:
        _current.reset(token)


def budget() -> Budget:
    """The budget that this thread renders on."""
    return _current.get()


def check_size(size: float) -> None:
    """Raises SecurityError for a text of more than TEXT_LIMIT characters."""
    if size > TEXT_LIMIT:
        raise SecurityError(f"a text or list of more than {TEXT_LIMIT:,} characters")


def check_items(count: float) -> None:
    """Raises SecurityError for a list of more than ITEM_LIMIT items."""
    if count > ITEM_LIMIT:
        raise SecurityError(f"a list of more than {ITEM_LIMIT:,} items")


def check_bits(bits: float) -> None:
    """Raises SecurityError for a whole number of more than BITS_LIMIT bits."""
    if bits > BITS_LIMIT:
        raise SecurityError(f"a number of more than {BITS_LIMIT:,} bits")


def weigh(value: object, known: dict[int, tuple[object, int]]) -> int:
    """About as many characters as the value has in print, at least 8: what two lists share counts
    twice, as it does there.

    Args:
        known: id -> (value, weight) of the collections that were weighed before.

    Raises:
        SecurityError: it's more than TEXT_LIMIT.
    """
    if isinstance(value, str | bytes):
        return len(value) + 8
    if isinstance(value, int):
        return 8 + value.bit_length() // 3
    if not isinstance(value, Collection) or isinstance(value, range):
        return 8
    if id(value) not in known:
        items = chain(value, value.values()) if isinstance(value, dict) else list(value)
        total = 8
        for item in items:
            total += weigh(item, known)
            check_size(total)
        known[id(value)] = value, total
        # a view's items are made while it's read: kept, so that no other value gets their id
        known[id(items)] = items, 0
    return known[id(value)][1]
