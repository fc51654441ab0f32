"""Messages: named values as JSON, and arrays behind them as they lie in memory, little-endian."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

PROTOCOL = 3  # raised when a message's meaning changes
LAST_PORT = 65535
CALL = "minicpm_mlc.rpc.call"  # the server's one function: bytes -> bytes


def pack(values: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """The bytes of a message: length of the JSON, the JSON, the arrays."""
    parts = [np.asarray(array, order="C") for array in arrays]
    head = json.dumps([values, [[part.dtype.str, part.shape] for part in parts]]).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *(part.tobytes() for part in parts)])


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The values, and the arrays, which can be written to."""
    start = 8 + int.from_bytes(data[:8], "little")
    values, described = json.loads(data[8:start])
    arrays = []
    for dtype, shape in described:
        count = int(np.prod(shape))
        array = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += array.nbytes
        arrays.append(array)
    return values, arrays
