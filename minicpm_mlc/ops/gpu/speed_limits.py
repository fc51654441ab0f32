"""How fast a GPU reads its memory when nothing else holds it up: the limit that decoding is held
against.
"""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.gpu.kernel import THREADS, accumulate, kernel, registers, workgroups
from minicpm_mlc.ops.tir import Buffer, Dims, PrimFunc

STREAMS = 4  # words that a thread asks for at once


def read_peak() -> PrimFunc:
    """PrimFunc (x i32[n], out i32[g, 128]): each of g workgroups sums its share of x. n is a
    multiple of 512 g.
    """

    def emit(dims: Dims, x: Buffer, out: Buffer) -> None:
        with workgroups(dims.g) as (group, thread):
            sums = registers(STREAMS, "int32", 0)
            with T.serial(dims.n // (dims.g * THREADS * STREAMS)) as step:
                for i in range(STREAMS):
                    accumulate(
                        sums, i, x[((step * STREAMS + i) * dims.g + group) * THREADS + thread]
                    )
            T.buffer_store(out, sums[0] + sums[1] + sums[2] + sums[3], [group, thread])

    return kernel("read_peak", {"x": ("int32", "n"), "out": ("int32", "g", THREADS)}, emit)
