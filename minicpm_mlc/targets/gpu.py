"""The passes that lower GPU kernels, whose barriers are written out."""

from __future__ import annotations

from functools import cache
from typing import Any

PIPELINE = "minicpm_gpu"  # TVM's name for gpu_pipeline, once it is registered


@cache
def gpu_pipeline() -> str:
    """Registers the pipeline with TVM; returns the name that tvm.compile takes.

    TVM's own puts barriers wherever it can't prove that there is no conflict, even into loops that
    not all threads go through, and lets arrays share memory. Kernels here have the barriers they
    need.
    """
    import tvm
    from tvm.tirx import compilation_pipeline as stock
    from tvm.tirx import transform

    @tvm.transform.module_pass(opt_level=0)
    def lower(module: Any, _: Any) -> Any:
        passes = [
            transform.FlattenBuffer(),
            transform.NarrowDataType(32),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            transform.RemoveNoOp(),
            transform.CommonSubexprElim(),
            transform.VerifyMemory(),
            transform.AnnotateEntryFunc(),
            transform.SplitHostDevice(),
            transform.MakePackedAPI(),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    stock.register_tir_pipeline(
        PIPELINE, lambda: (lower, stock.finalize_host_passes, stock.finalize_device_passes)
    )
    return PIPELINE
