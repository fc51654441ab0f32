"""How fast a GPU reads its memory, and multiplies and adds, when nothing else holds it up: what
decoding and a prefill are held against. And numbers to measure with, made where they are read.
"""

from __future__ import annotations

from minicpm_mlc.ops.gpu.intrinsics import dot
from minicpm_mlc.ops.gpu.kernel import THREADS, accumulate, kernel, registers, strided, workgroups
from minicpm_mlc.ops.tir import Buffer, Dims, PrimFunc, T

STREAMS = 4  # words that a thread asks for at once
CHAINS, STEPS = 8, 4096  # independent sums of a thread, and how often each is added to
FILLED = 1 << 12  # words that a workgroup writes


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


def multiply_add_peak() -> PrimFunc:
    """PrimFunc (out f32[g, 128]): each thread does STEPS rounds of CHAINS multiply-adds of float32,
    all towards 1, so that no value overflows and none can be left out.
    """

    def emit(dims: Dims, out: Buffer) -> None:
        with workgroups(dims.g) as (group, thread):
            sums = registers(CHAINS)
            for i in range(CHAINS):
                T.buffer_store(sums, T.Cast("float32", thread + i), [i])
            with T.serial(STEPS):
                for i in range(CHAINS):
                    T.buffer_store(sums, sums[i] * T.float32(0.5) + T.float32(0.5), [i])
            total = sums[0]
            for i in range(1, CHAINS):
                total = total + sums[i]
            T.buffer_store(out, total, [group, thread])

    return kernel("multiply_add_peak", {"out": ("float32", "g", THREADS)}, emit)


def int8_peak() -> PrimFunc:
    """PrimFunc (x i32[1], out i32[g, 128]): the same of dot products of four int8, of GPUs that
    multiply them.
    """

    def emit(dims: Dims, x: Buffer, out: Buffer) -> None:
        with workgroups(dims.g) as (group, thread):
            sums = registers(CHAINS, "int32", 0)
            with T.serial(STEPS):
                for i in range(CHAINS):
                    word = T.reinterpret(sums[i], dtype="uint32")
                    T.buffer_store(sums, dot(False, word, x[0] + thread, sums[i]), [i])
            total = sums[0]
            for i in range(1, CHAINS):
                total = total + sums[i]
            T.buffer_store(out, total, [group, thread])

    return kernel("int8_peak", {"x": ("int32", 1), "out": ("int32", "g", THREADS)}, emit)


def fill() -> PrimFunc:
    """PrimFunc (bits u32[2], out u32[n]): words of bits[0] + any of the bits in bits[1], the same
    each time.
    """

    def emit(dims: Dims, bits: Buffer, out: Buffer) -> None:
        groups = T.Bind((dims.n + FILLED - 1) // FILLED)
        with workgroups(groups) as (group, thread), strided(FILLED, thread) as i:
            at = T.Bind(group * FILLED + i)
            with T.If(at < dims.n), T.Then():
                word = T.Bind(T.Cast("uint32", at) * T.uint32(0x9E3779B1))
                word = T.Bind(T.bitwise_xor(word, T.shift_right(word, T.uint32(15))))
                word = T.Bind(word * T.uint32(0x85EBCA77))
                word = T.bitwise_xor(word, T.shift_right(word, T.uint32(13)))
                T.buffer_store(out, bits[0] + T.bitwise_and(word, bits[1]), [at])

    return kernel("fill", {"bits": ("uint32", 2), "out": ("uint32", "n")}, emit)
