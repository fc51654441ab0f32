"""The operators that treat each row alone: embedding, RMSNorm, SwiGLU, rows picked, joined and
repeated.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    kernel,
    reduced,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.tir import Buffer

COLUMNS = 1024  # of a row, that one workgroup takes where columns don't meet


def embed(vocab: int, hidden: int, scheme: Scheme, *, scale: float = 1.0) -> Any:
    """PrimFunc (token_ids i32[n], the table's stored tensors) -> f32[n, hidden]."""
    stored = scheme.arguments(vocab, hidden)

    def emit(dims: Any, ids: Buffer, *rest: Buffer) -> None:
        *tensors, out = rest
        table = dict(zip(stored, tensors, strict=True))
        with workgroups(dims.n) as (row, thread):
            block, lane = T.Bind(ids[row] // 16), T.Bind(ids[row] % 16)
            with strided(hidden // 2, thread) as pair:
                g, j = T.Bind(pair // 16), T.Bind(pair % 16)
                for half, number in enumerate(scheme.pair(table, block, g, j, lane)):
                    value = scheme.terms(table, block, g, lane).weight(number)
                    T.buffer_store(out, constant(scale) * value, [row, g * GROUP + half * 16 + j])

    arguments = {"ids": ("int32", "n"), **stored, "out": ("float32", "n", hidden)}
    return kernel("embed", arguments, emit)


def rms_norm(hidden: int, eps: float, scale: float = 1.0) -> Any:
    """PrimFunc (x f32[n, hidden], weight f32[hidden]) -> f32[n, hidden]."""

    def emit(dims: Any, x: Any, weight: Any, out: Any) -> None:
        with workgroups(dims.n) as (row, thread):
            total = registers(1, value=0.0)
            with strided(hidden, thread) as i:
                value = T.Bind(x[row, i])
                accumulate(total, 0, value * value)
            square = reduced(lambda a, b: a + b, shared((THREADS,)), total[0], thread)
            factor = T.Bind(constant(scale) / T.sqrt(square / constant(hidden) + constant(eps)))
            with strided(hidden, thread) as i:
                T.buffer_store(out, x[row, i] * factor * weight[i], [row, i])

    arguments = {
        "x": ("float32", "n", hidden),
        "weight": ("float32", hidden),
        "out": ("float32", "n", hidden),
    }
    return kernel("rms_norm", arguments, emit)


def swiglu(intermediate: int) -> Any:
    """PrimFunc (gate_up f32[n, 2 * intermediate]) -> f32[n, intermediate]."""
    parts = -(-intermediate // COLUMNS)

    def emit(dims: Any, gate_up: Any, out: Any) -> None:
        with workgroups(dims.n * parts) as (group, thread):
            row, first = T.Bind(group // parts), T.Bind(group % parts * COLUMNS)
            with strided(T.min(intermediate - first, COLUMNS), thread) as i:
                gate = T.Bind(gate_up[row, first + i])
                up = gate_up[row, intermediate + first + i]
                T.buffer_store(out, gate / (T.float32(1) + T.exp(-gate)) * up, [row, first + i])

    return kernel(
        "swiglu",
        {"gate_up": ("float32", "n", 2 * intermediate), "out": ("float32", "n", intermediate)},
        emit,
    )


def gather_rows(hidden: int) -> Any:
    """PrimFunc (x f32[n, hidden], rows i32[m]) -> f32[m, hidden]."""

    def emit(dims: Any, x: Any, rows: Any, out: Any) -> None:
        with workgroups(dims.m) as (row, thread):
            source = T.Bind(T.Cast("int64", rows[row]))
            with strided(hidden, thread) as i:
                T.buffer_store(out, x[source, i], [row, i])

    arguments = {
        "x": ("float32", "n", hidden),
        "rows": ("int32", "m"),
        "out": ("float32", "m", hidden),
    }
    return kernel("gather_rows", arguments, emit)


def concat(width: int, parts: int) -> Any:
    """PrimFunc (2 or 3 parts f32[n, width]) -> f32[n, parts * width]."""

    def emit(dims: Any, *buffers: Any) -> None:
        *sources, out = buffers
        with workgroups(dims.n) as (row, thread), strided(width, thread) as i:
            for part, source in enumerate(sources):
                T.buffer_store(out, source[row, i], [row, part * width + i])

    arguments = {name: ("float32", "n", width) for name in "abc"[:parts]}
    return kernel("concat", arguments | {"out": ("float32", "n", parts * width)}, emit)


def repeat_row(width: int) -> Any:
    """PrimFunc (row f32[width]) -> f32[n, width]; n is the output's."""

    def emit(dims: Any, row: Any, out: Any) -> None:
        with workgroups(dims.n) as (r, thread), strided(width, thread) as i:
            T.buffer_store(out, row[i], [r, i])

    return kernel("repeat_row", {"row": ("float32", width), "out": ("float32", "n", width)}, emit)
