"""Changes of an input: in the value, where it is JSON or holds a length and JSON, else in bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    2**31,
    2**40,
    2**63,
    2**64,
    10**30,
    1e308,
    1e-320,
    float("nan"),
    "",
    "a",
    "\x1b[31m",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[]],
    [0] * 300,
    {"": {}},
]
BYTES = [b"\0", b"\xff", b"{", b"}", b"[", b'"', b"9" * 30, b"\xed\xa0\x80", b"{%", b"{{", b"}}"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes."""
    head, body = split(data)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict | list) and rng.random() < 0.8:
        for _ in range(rng.randint(1, 4)):
            value = changed(value, rng)
        body = json.dumps(value).encode()
        return struct.pack("<Q", len(body)) + body + data[8 + head :] if head else body
    for _ in range(rng.randint(1, 4)):
        data = changed_bytes(data, rng)
    return data


def split(data: bytes) -> tuple[int, bytes]:
    """The length of JSON behind 8 bytes that tell it (0: there are none), and the JSON."""
    length = int.from_bytes(data[:8], "little")
    if 2 <= length <= len(data) - 8:
        return length, data[8 : 8 + length]
    return 0, data


def changed(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value is another one: odd, gone, doubled or moved."""
    if not isinstance(value, dict | list) or not value:
        return copy.deepcopy(rng.choice(ODD))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.6 and isinstance(value[key], dict | list):
        value[key] = changed(value[key], rng)
        return value
    match rng.randrange(5):
        case 0:
            del value[key]
        case 1:
            value[key] = copy.deepcopy(value[rng.choice(keys)])
        case 2 if isinstance(value[key], int | float) and not isinstance(value[key], bool):
            value[key] += rng.choice([-1, 1, 64, -value[key]])
        case 3:
            value[key] = [value[key]]
        case _:
            value[key] = copy.deepcopy(rng.choice(ODD))
    return value


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """One place is flipped, cut out, doubled or replaced."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice([1, 1, 4, 16, 100]))
    match rng.randrange(4):
        case 0:
            return (
                data[:start]
                + bytes(b ^ 1 << rng.randrange(8) for b in data[start:stop])
                + data[stop:]
            )
        case 1:
            return data[:start] + data[stop:]
        case 2:
            return data[:stop] + data[start:stop] * rng.choice([1, 2, 50]) + data[stop:]
        case _:
            return data[:start] + rng.choice(BYTES) + data[stop:]
