"""How fast the processor multiplies and adds when nothing else holds it up: the limit that kernels are held against."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.ops import vector

STEPS = 2_000_000  # per thread: some hundredths of a second


def multiply_add_peak(vectors: int) -> Any:
    """PrimFunc (out f32[threads, 16]): each thread does STEPS rounds of `vectors` independent multiply-adds of 16 lanes.

    Every chain is a contraction towards 1, so that no value overflows and none can be left out.
    """

    def run(threads: Any, out: Any) -> None:
        with T.parallel(threads) as thread:
            held = vector.registers(vectors)
            for i in range(vectors):
                vector.store(held, vector.splat(float(i)), i * vector.LANES)
            with T.serial(STEPS):
                for i in range(vectors):
                    value = vector.load(held, i * vector.LANES) * vector.splat(0.5) + vector.splat(0.5)
                    vector.store(held, value, i * vector.LANES)
            total = vector.load(held, 0)
            for i in range(1, vectors):
                total = total + vector.load(held, i * vector.LANES)
            vector.store(out, total, thread, 0)

    @T.prim_func(private=True)
    def multiply_add_peak(out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        threads = T.int64()
        out = T.match_buffer(out_handle, (threads, vector.LANES), "float32")
        run(threads, out)

    return multiply_add_peak
