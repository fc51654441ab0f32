"""The passes that lower kernels, which are written as loops over threads and vectors already.

TVM's own pipeline takes schedules, blocks and thread bindings apart, which no kernel here has: half
of the time that compiling takes. It shrinks scratch arrays to the part that is provably used, and
moves conditions out of loops, which LLVM does better; on a GPU it puts barriers wherever it can't
prove that there is no conflict, even into loops that not all threads go through, and lets arrays
share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from minicpm_mlc.targets.float16_bits import widened_by_bits

_kernel_lowered: ContextVar[Callable[[], object]] = ContextVar("kernel", default=lambda: None)


@contextmanager
def each_kernel(report: Callable[[], object]) -> Iterator[None]:
    """Has `report` called after each kernel that is lowered within the block."""
    token = _kernel_lowered.set(report)
    try:
        yield
    finally:
        _kernel_lowered.reset(token)


@cache
def cpu_pipeline() -> str:
    """Registers the passes of CPU kernels with TVM; returns the name that tvm.compile takes."""
    from tvm.s_tir.transform import RewriteUnsafeSelect
    from tvm.tirx.transform import StorageRewrite

    return _registered("minicpm_cpu", [StorageRewrite], [RewriteUnsafeSelect])


@cache
def web_pipeline() -> str:
    """Registers the passes of WebAssembly's kernels with TVM; returns the name that tvm.compile
    takes.
    """
    from tvm.s_tir.transform import RewriteUnsafeSelect
    from tvm.tirx.transform import StorageRewrite

    return _registered("minicpm_web", [StorageRewrite], [RewriteUnsafeSelect, widened_by_bits])


@cache
def gpu_pipeline() -> str:
    """Registers the passes of GPU kernels with TVM; returns the name that tvm.compile takes."""
    from tvm.tirx.transform import RemoveNoOp

    return _registered("minicpm_gpu", [], [RemoveNoOp])


def _registered(name: str, before: list[Callable[[], Any]], after: list[Callable[[], Any]]) -> str:
    """A pipeline that also runs the passes `before` and `after` the loops are unrolled and
    expressions simplified.
    """
    import tvm
    from tvm.tirx import compilation_pipeline as stock
    from tvm.tirx import transform

    @tvm.transform.module_pass(opt_level=0)
    def lower(module: Any, _: Any) -> Any:
        passes = [
            transform.FlattenBuffer(),
            transform.NarrowDataType(32),
            *(each() for each in before),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            *(each() for each in after),
            transform.CommonSubexprElim(),
            transform.VerifyMemory(),
            transform.SplitHostDevice(),
            transform.MakePackedAPI(),
        ]
        lower_one = tvm.ir.transform.Sequential(passes)
        lowered: dict[Any, Any] = {}
        for variable, function in module.functions_items():
            alone = tvm.IRModule({variable: function}, attrs=module.attrs)
            lowered |= dict(lower_one(alone).functions_items())
            _kernel_lowered.get()()
        return tvm.IRModule(lowered, attrs=module.attrs)

    stock.register_tir_pipeline(
        name, lambda: (lower, stock.finalize_host_passes, stock.finalize_device_passes)
    )
    return name
