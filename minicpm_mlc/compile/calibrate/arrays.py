"""Runs a model's layers on NumPy arrays: all tokens of all sequences at once, linear by linear.

The parts of a model call their operators through `Plan.kernels`; here these are the operators'
NumPy definitions, and a few of our own that are as right and quick enough for thousands of tokens.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from minicpm_mlc.ops.attend import AttendPrefill
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.ops.repeat_row import RepeatRow
from minicpm_mlc.ops.rope_append import RopeAppend, rotate_definition
from minicpm_mlc.ops.segment_means import SegmentMeans

ROWS = 512  # rows of an operator's definition at a time: its float64 temporaries stay small


class Multiply(Protocol):
    """What ArrayKernels calls for a linear's product."""

    def __call__(
        self, linear: Linear, x: np.ndarray, matrix: np.ndarray, residual: np.ndarray | None
    ) -> np.ndarray:
        """x [n, columns] @ matrix^T, or what stands for it; `residual` [n, rows] is what the
        linear's output is added to, None where it isn't.
        """
        ...


class ArrayKernels:
    """What models call in place of compiled kernels (compile/kernels.py).

    A sequence begins where `slots` is 0. Keys and values are arrays float32 [n, kv_heads,
    head_dim], not pools. A matrix is the float32 array [rows, columns] itself, and `multiply` is
    called for its products. `received` [n] says, of the last attention, how much each token gave to
    the others: the sum over all queries of the squared weights, a mean over heads.
    """

    traits: Any = None  # no device

    def __init__(self, multiply: Multiply) -> None:
        self.multiply = multiply
        self.received: np.ndarray | None = None

    def __call__(self, operator: Operator, *inputs: Any, **dims: int) -> Any:
        """The operator's states as updated and its outputs; alone if that is one array."""
        match operator:
            case RepeatRow():
                return np.tile(inputs[0], (dims["n"], 1))
            case Linear():
                return self._linear(operator, *inputs)
            case RopeAppend():
                return _turned(operator, *inputs)
            case AttendPrefill():
                return self._attend(operator, *inputs)
            case SegmentMeans():
                return inputs[-1]  # of the sparse gear alone
            case _:
                return _by_rows(operator, *inputs)

    def laid_out(self, kv: KVFormat) -> KVFormat:
        """How keys and values of a format lie: as they are."""
        return kv

    def _linear(
        self, operator: Linear, x: np.ndarray, matrix: np.ndarray, *residual: np.ndarray
    ) -> np.ndarray:
        out = self.multiply(operator, x, matrix, *(residual or (None,)))
        if operator.scale != 1:
            out *= np.float32(operator.scale)
        if residual:
            out += residual[0]
        missing = -out.shape[1] % LANES
        return np.pad(out, ((0, 0), (0, missing))) if missing else out

    def _attend(
        self, operator: AttendPrefill, q: np.ndarray, keys: np.ndarray, values: np.ndarray, *place
    ) -> np.ndarray:
        slots = place[-1]
        starts = np.flatnonzero(slots == 0)
        out, received = np.empty_like(q), np.empty(len(q), np.float32)
        for rows in map(slice, starts, [*starts[1:], len(q)]):
            out[rows], received[rows] = _attended(q[rows], keys[rows], values[rows])
        self.received = received
        return out.reshape(len(q), -1)


def _attended(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention of one sequence, q [n, heads, d], keys and values [n, kv_heads, d] ->
    [n, heads, d], and the sum over queries of each token's squared weights, a mean over heads, [n].
    """
    n, heads, head_dim = q.shape
    group = heads // keys.shape[1]
    hidden = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    out, received = np.empty_like(q), np.zeros(n, np.float32)
    for head in range(heads):
        scores = q[:, head] @ keys[:, head // group].T
        scores *= np.float32(head_dim**-0.5)
        scores += hidden
        scores -= scores.max(1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(1, keepdims=True)
        received += np.einsum("qk,qk->k", scores, scores)
        out[:, head] = scores @ values[:, head // group]
    return out, received / heads


def _turned(
    operator: RopeAppend, qkv: np.ndarray, cos_sin: np.ndarray, *_: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, values and queries of all rows."""
    heads = qkv.reshape(len(qkv), -1, operator.head_dim)
    first, last = operator.num_heads, operator.num_heads + operator.num_kv_heads
    q, k = np.empty_like(heads[:, :first]), np.empty_like(heads[:, first:last])
    for start in range(0, len(heads), ROWS):
        rows = slice(start, start + ROWS)
        q[rows] = rotate_definition(heads[rows, :first], cos_sin[rows])
        k[rows] = rotate_definition(heads[rows, first:last], cos_sin[rows])
    return k, heads[:, last:].copy(), q


def _by_rows(operator: Operator, *inputs: np.ndarray) -> Any:
    """An operator that treats every row alone, by its definition."""
    arguments = operator.inputs()
    states = [inputs[i] for i in operator.states()]
    by_row = [argument.shape[0] == "n" for argument in arguments]
    n = next(len(array) for array, sliced in zip(inputs, by_row, strict=True) if sliced)
    out: np.ndarray | None = None
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        given = [a[rows] if cut else a for a, cut in zip(inputs, by_row, strict=True)]
        made = cast("np.ndarray | None", operator.define(*given))
        if made is not None:
            out = np.empty((n, *made.shape[1:]), np.float32) if out is None else out
            out[rows] = made
    results = [*states, *([] if out is None else [out])]
    return results[0] if len(results) == 1 else results
