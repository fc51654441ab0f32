"""Arrays in NumPy's .npy form as `np.save` writes them, read without parsing Python.

NumPy's own reader evaluates the header as Python, allocates what it says, and raises whatever comes
of damaged bytes.
"""

from __future__ import annotations

import re
from math import prod

import numpy as np

_START = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|][fiu][1248])', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}, )*(?:[0-9]{1,18},?)?)\), \} *\n"
)


def from_npy(data: bytes) -> np.ndarray:
    """The array of a file's bytes, which it shares. Raises ValueError for anything else than
    numbers in rows.
    """
    size = len(_START) + 2
    end = size + int.from_bytes(data[len(_START) : size], "little")
    header = _HEADER.fullmatch(data[size:end])
    if not data.startswith(_START) or not header:
        raise ValueError("it is no array as NumPy stores one")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(part) for part in header[2].split(b",") if part.strip())
    if prod(shape) * dtype.itemsize != len(data) - end:
        raise ValueError(f"{len(data) - end} bytes are no array {dtype}{list(shape)}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)
