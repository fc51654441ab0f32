"""GPTQ: integers of 2, 4 or 8 bits along the inputs, a scale and a zero point for groups of them.

Of a linear P with K inputs, N outputs, b bits and G groups:

    P.qweight int32 [K * b / 32, N]    value (n, k): bits k * b and up of column n
    P.qzeros  int32 [G, N * b / 32]    zero points; a file of version 1 holds one less
    P.scales  f16   [G, N]
    P.g_idx   int32 [K]                the group of each input; absent: equally many neighbours
    w[n, k] = scales[g, n] * (value - zero[g, n]),   g = g_idx[k]
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.forms.marlin import marlin_gptq
from minicpm_mlc.compile.checkpoint.packed import (
    Linear,
    QuantisedLinear,
    column_groups,
    unpack,
    unpack_columns,
)
from minicpm_mlc.compile.checkpoint.tensor import Integers, Tensor

METHODS = ("gptq",)
BITS = (2, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 0, "gptq_p": 0}  # how much less than its zero point is stored
UNTRUSTED = (
    "GPTQModel before 0.9.0 wrote wrong zero points into asymmetric GPTQ files of version 1: if "
    "it made this one, compare its answers with those of the unquantised model"
)


def reader(stated: Stated, found: Found) -> Reader:
    """The reader of a checkpoint with these settings."""
    stated.require("pack_dtype", "int32")
    stated.require("rotation")
    key = "checkpoint_format" if stated.values.get("checkpoint_format") else "format"
    version = stated.values.get(key) or "gptq"
    if version == "marlin" or stated.values.get("is_marlin_format"):
        return marlin_gptq(stated, found)
    if not isinstance(version, str) or version not in VERSIONS:
        raise stated.refuse(key, f"{', '.join(VERSIONS)} or marlin")
    symmetric = bool(stated.values.get("sym", not stated.values.get("zero_point", False)))
    less = VERSIONS[version]
    remarks = [] if symmetric or not less else [UNTRUSTED]
    return Reader(partial(_tensor, stated, found, less, symmetric), remarks)


def _tensor(
    stated: Stated, found: Found, less: int, symmetric: bool, name: str, shapes: Shapes
) -> Tensor | None:
    linear = Linear(name.removesuffix(".weight"), found)
    if not linear.has("qweight"):
        return None
    uniform = not stated.values.get(
        "dynamic"
    )  # else modules have bits and zero points of their own
    tensor = GptqTensor(linear, shapes[name], less, symmetric and uniform)
    named = (stated.values[key] for key in ("bits", "w_bit", "wbits") if key in stated.values)
    bits = next(named, tensor.bits)
    if uniform and bits != tensor.bits:
        wrong = f"has {tensor.bits} bits, and {stated.where} says {bits}; download both again"
        raise linear.error("qweight", wrong)
    return tensor


class GptqTensor(QuantisedLinear):
    """The weight of a linear. Raises CheckpointError for one whose zero points can't be."""

    def __init__(self, linear: Linear, shape: tuple[int, ...], less: int, symmetric: bool) -> None:
        n, k = shape
        packed = [(k * bits // 32, n) for bits in BITS if k * bits % 32 == 0]
        self._qweight = linear.array("qweight", ("I32",), *packed)
        self.bits = 32 * len(self._qweight) // k
        count = linear.rows_of("scales")
        self._scales = linear.numbers("scales", (max(1, min(count, k)), n))
        self._groups = column_groups(linear, "g_idx", k, count)
        self._qzeros = linear.array("qzeros", ("I32",), (count, -(-n * self.bits // 32)))
        self._less = less
        self._check_zeros(linear, n, symmetric)
        order = "" if (np.diff(self._groups) >= 0).all() else ", in activation order"
        super().__init__(linear, shape, f"GPTQ ({self.bits} bits{order})")

    def integers(self, start: int, stop: int) -> Integers:
        values = unpack(self._qweight[:, start:stop].T, self.bits, self.shape[1])
        scale = self._scales[:, start:stop].T
        return Integers(values, scale, self._groups, self._zeros(start, stop).T)

    def _zeros(self, start: int, stop: int) -> np.ndarray:
        """int16 [groups, rows]."""
        return unpack_columns(self._qzeros, self.bits, start, stop).astype(np.int16) + self._less

    def _check_zeros(self, linear: Linear, n: int, symmetric: bool) -> None:
        zeros, middle = self._zeros(0, n), 1 << (self.bits - 1)
        if symmetric and (zeros != middle).any():
            wrong = f"a zero point of {zeros[zeros != middle][0]}, expected {middle} everywhere"
            raise linear.error("qzeros", f"has {wrong}, as the config says sym; check its format")
        if zeros.max() >= 1 << self.bits:
            # readers disagree: some carry into the neighbouring number, others take 16
            wrong = f"stores {zeros.max() - 1} in a file of version 1"
            raise linear.error("qzeros", f"{wrong}, for which no zero point is defined")
