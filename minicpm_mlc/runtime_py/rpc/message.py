"""Messages: named values as JSON, and arrays behind them as they lie in memory, little-endian."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import EngineError

PROTOCOL = 4  # raised when a message's meaning changes
LAST_PORT = 65535
UPDATE = "install the same version of minicpm-mlc on both machines"
CALL = "minicpm_mlc.rpc.call"  # the server's one function: bytes -> bytes
DTYPES = {  # of arrays: those of tokens, rows, logits, weights and files
    np.dtype(kind).str: np.dtype(kind)
    for kind in ("u1", "i1", "<u2", "<i2", "<f2", "<i4", "<u4", "<f4", "<i8", "<u8", "<f8")
}


def pack(values: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """The bytes of a message: length of the JSON, the JSON, the arrays."""
    parts = [np.asarray(array, order="C") for array in arrays]
    head = json.dumps([values, [[part.dtype.str, part.shape] for part in parts]]).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *(part.tobytes() for part in parts)])


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The values, and the arrays, which can be written to. Raises EngineError for bytes that are no
    message; what they announce is held against their number before memory is taken for it.
    """
    try:
        return _parsed(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise EngineError(f"no message ({type(error).__name__}: {error}); {UPDATE}") from None


def _parsed(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    start = 8 + int.from_bytes(data[:8], "little")
    values, described = json.loads(data[8:start])
    places = [(DTYPES[dtype], [_length(size) for size in shape]) for dtype, shape in described]
    need = start + sum(prod(shape) * dtype.itemsize for dtype, shape in places)
    if not isinstance(values, dict) or need != len(data):
        raise ValueError(f"{len(data)} bytes, and {need} are announced")
    arrays = []
    for dtype, shape in places:
        count = prod(shape)
        arrays.append(np.frombuffer(data, dtype, count, start).reshape(shape).copy())
        start += count * dtype.itemsize
    return values, arrays


def _length(size: Any) -> int:
    """Of an array's axis. Raises ValueError for what is none."""
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is no length")
    return size
