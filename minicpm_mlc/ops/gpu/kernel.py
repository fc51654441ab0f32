"""How a GPU kernel is written: its arguments, workgroups of threads, shared memory and barriers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager

from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer, from_float, opened
from minicpm_mlc.ops.tir import Buffer, Described, Expr, PrimFunc, T, prim_func

THREADS = 128  # of a workgroup: what every GPU takes


def kernel(name: str, arguments: Mapping[str, Described], emit: Callable[..., None]) -> PrimFunc:
    """The PrimFunc of a kernel that is no operator's, as `prim_func` makes it. The elements of
    float16 buffers are read as float32, and written with `store`.
    """
    return prim_func(name, arguments, emit, opened)


@contextmanager
def workgroups(count: Expr, threads: int = THREADS):
    """`with workgroups(n) as (group, thread)`: the body is run by every thread of n workgroups.

    Both are int32, as GPUs reckon slowly with more; only what lies in the pools may need int64 to
    be found.
    """
    with (
        T.launch_thread("blockIdx.x", count) as group,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        yield T.Bind(T.Cast("int32", group)), thread


@contextmanager
def strided(extent: Expr, thread: Expr, threads: int = THREADS):
    """`with strided(n, thread) as i`: the threads share the i < n; neighbours take neighbouring
    ones.
    """
    with T.serial((extent - thread + threads - 1) // threads) as step:
        yield T.Bind(step * threads + thread)


def shared(shape: tuple[int, ...], dtype: str = "float32") -> Buffer:
    """Memory of a workgroup."""
    return T.alloc_buffer(shape, dtype, scope="shared")


def registers(count: int, dtype: str = "float32", value: float | None = None) -> Buffer:
    """Variables of one thread; `value` is what they start with."""
    buffer = T.alloc_buffer((count,), dtype, scope="local")
    if value is not None:
        for i in range(count):
            T.buffer_store(
                buffer, T.Cast(dtype, value) if dtype != "float32" else T.float32(value), [i]
            )
    return buffer


def barrier() -> None:
    """All threads of the workgroup have come here, and see what the others wrote to shared
    memory.
    """
    T.evaluate(T.tvm_storage_sync("shared"))


def reduced(combine: Callable[[Expr, Expr], Expr], part: Buffer, value: Expr, thread: Expr) -> Expr:
    """All threads' values combined, for every thread. `part`: shared memory for one value each, a
    power of two.
    """
    threads = int(part.shape[0])
    T.buffer_store(part, value, [thread])
    barrier()
    while threads > 1:
        threads //= 2
        with T.If(thread < threads), T.Then():
            T.buffer_store(part, combine(part[thread], part[thread + threads]), [thread])
        barrier()
    result = registers(1, str(part.dtype))
    T.buffer_store(result, part[0], [0])
    barrier()  # before `part` is used again
    return T.Bind(result[0])


def store(buffer: Buffer, value: Expr, index: list[Expr]) -> None:
    """buffer[index] = a float32 value, rounded if the buffer is float16."""
    half = isinstance(buffer, HalfBuffer)
    T.buffer_store(
        buffer.bits if half else buffer, from_float(T.Bind(value)) if half else value, index
    )


def store_run(buffer: Buffer, values: Buffer, index: list[Expr], first: Expr) -> None:
    """buffer[index, first ..] = all of the registers `values`, by one store."""
    count = int(values.shape[0])
    value, last = (
        (values[0], first) if count == 1 else (values[T.ramp(0, 1, count)], T.ramp(first, 1, count))
    )
    T.buffer_store(buffer, value, [*index, last])


def accumulate(buffer: Buffer, at: Expr, value: Expr) -> None:
    """buffer[at] += value."""
    T.buffer_store(buffer, buffer[at] + value, [at])
