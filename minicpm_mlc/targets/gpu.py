"""What GPU targets share: their kernels, and the passes that lower kernels whose barriers are
written out.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

PIPELINE = "minicpm_gpu"  # TVM's name for gpu_pipeline, once it is registered


@dataclass(frozen=True)
class GpuKernels:
    """The operators as GPUs want them; equal calls share one PrimFunc. Layouts are the CPU's,
    activations float32.
    """

    bf16_dot: ClassVar[bool] = False

    def exact(self) -> GpuKernels:
        return self

    def attend_prefill(self, *shape: Any) -> Any:
        return _build("attend", "attend_prefill", *shape)

    def attend_decode(self, *shape: Any) -> Any:
        return _build("attend", "attend_decode", *shape)

    def attend_blocks(self, *shape: Any, **options: Any) -> Any:
        return _build("attend", "attend_blocks", *shape, **options)

    def attend_tree(self, *shape: Any) -> Any:
        return _build("attend", "attend_tree", *shape)

    def attend_tree_blocks(self, *shape: Any) -> Any:
        return _build("attend", "attend_tree_blocks", *shape)

    def score_blocks(self, *shape: Any, **options: Any) -> Any:
        return _build("score", "score_blocks", *shape, **options)

    def score_tree(self, *shape: Any) -> Any:
        return _build("score", "score_tree", *shape)

    def path_means(self, *shape: Any) -> Any:
        return _build("score", "path_means", *shape)

    def select_blocks(self, *shape: Any) -> Any:
        return _build("select", "select_blocks", *shape)

    def segment_means(self, *shape: Any, **options: Any) -> Any:
        return _build("rope", "segment_means", *shape, **options)

    def move_rows(self, *shape: Any) -> Any:
        return _build("rope", "move_rows", *shape)

    def rope_append(self, *shape: Any, **options: Any) -> Any:
        return _build("rope", "rope_append", *shape, **options)

    def read_peak(self) -> Any:
        return _build("peak", "read_peak")


@cache
def _build(module: str, operator: str, *shape: Any, **options: Any) -> Any:
    return getattr(importlib.import_module(f"minicpm_mlc.ops.gpu.{module}"), operator)(
        *shape, **options
    )


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
