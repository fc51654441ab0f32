"""How fast the processor multiplies and adds when nothing else holds it up: the limit that kernels
are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from minicpm_mlc.ops.cpu import bf16_dot, vector
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.tir import Buffer, Dims, Expr, PrimFunc, T, prim_func

INT8_CHAINS = 10  # independent int8 products that hide their latency and fit 16 registers
STEPS = 2_000_000  # per thread: some hundredths of a second
READ_STREAMS = 2  # read at once by a thread: memory delivers a sixth more than to one


def multiply_add_peak(vectors: int) -> PrimFunc:
    """PrimFunc (out f32[threads, 16]): each thread does STEPS rounds of `vectors` independent
    multiply-adds of 16 lanes.

    Every chain is a contraction towards 1, so that no value overflows and none can be left out.
    """
    return _chains(vectors, lambda value: value * vector.splat(0.5) + vector.splat(0.5))


def bf16_peak(vectors: int) -> PrimFunc:
    """The same of bfloat16 pairs, two multiply-adds a lane: every step adds 2."""
    ones = T.broadcast(T.uint16(0x3F80), 2 * vector.LANES)
    return _chains(vectors, lambda value: bf16_dot.dot(value, ones, ones), bf16_dot.functions)


def _chains(
    vectors: int,
    step: Callable[[Expr], Expr],
    functions: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PrimFunc:
    def run(dims: Dims, out: Buffer) -> None:
        with functions(), T.parallel(dims.threads) as thread:
            held = vector.registers(vectors)
            for i in range(vectors):
                vector.store(held, vector.splat(float(i)), i * vector.LANES)
            with T.serial(STEPS):
                for i in range(vectors):
                    vector.store(held, step(vector.load(held, i * vector.LANES)), i * vector.LANES)
            total = vector.load(held, 0)
            for i in range(1, vectors):
                total = total + vector.load(held, i * vector.LANES)
            vector.store(out, total, thread, 0)

    return prim_func("float_peak", {"out": ("float32", "threads", vector.LANES)}, run)


def int8_operations(dot: str) -> int:
    """Multiplications and additions of int8 that one step of one vector makes."""
    return 2 * DOTS[dot].products()


def int8_peak(vectors: int, dot: str) -> PrimFunc:
    """PrimFunc (out i32[threads, 16]): each thread does STEPS rounds of `vectors` independent int8
    dot products.
    """
    kind = DOTS[dot]
    width = kind.rows

    def run(dims: Dims, out: Buffer) -> None:
        with T.parallel(dims.threads) as thread:
            held = T.alloc_buffer((vectors * width,), "int32", scope="local")
            places = [T.ramp(i * width, 1, width) for i in range(vectors)]
            for i, place in enumerate(places):
                T.buffer_store(held, T.broadcast(i, width), [place])
            with T.serial(STEPS):
                for place in places:
                    T.buffer_store(held, kind.peak_step(held[place]), [place])
            total = held[places[0]]
            for place in places[1:]:
                total = total + held[place]
            T.buffer_store(out, total, [thread, T.ramp(0, 1, width)])

    return prim_func("int8_peak", {"out": ("int32", "threads", vector.LANES)}, run)


def read_peak() -> PrimFunc:
    """PrimFunc (x i32[n, 16], out i32[tasks, 16]): sums x's columns. n is a multiple of tasks *
    READ_STREAMS.
    """
    lanes = [T.ramp(s * vector.LANES, 1, vector.LANES) for s in range(READ_STREAMS)]

    def run(dims: Dims, x: Buffer, out: Buffer) -> None:
        with T.parallel(dims.tasks) as task:
            totals = T.alloc_buffer((READ_STREAMS * vector.LANES,), "int32", scope="local")
            rows = T.Bind(dims.n // (dims.tasks * READ_STREAMS))
            for place in lanes:
                T.buffer_store(totals, T.broadcast(0, vector.LANES), [place])
            with T.serial(rows) as i:
                for s, place in enumerate(lanes):
                    row = T.Bind((task * READ_STREAMS + s) * rows + i)
                    T.buffer_store(totals, totals[place] + x[row, lanes[0]], [place])
            total = totals[lanes[0]]
            for place in lanes[1:]:
                total = total + totals[place]
            T.buffer_store(out, total, [task, lanes[0]])

    arguments = {"x": ("int32", "n", vector.LANES), "out": ("int32", "tasks", vector.LANES)}
    return prim_func("read_peak", arguments, run)
