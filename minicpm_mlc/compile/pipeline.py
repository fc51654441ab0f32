"""IRModule -> passes -> library. Every operator is a finished PrimFunc, so nothing is fused or scheduled here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform

from ..manifest import MAX_DECODE_SEQUENCES
from ..targets.cpu import CpuTarget
from .config import ModelConfig
from .model.minicpm import MiniCPM
from .parameters import Precision

PASSES = [
    transform.ToNonDataflow(),
    transform.RemovePurityChecking(),
    transform.CallTIRRewrite(),
    transform.StaticPlanBlockMemory(),
    transform.LowerAllocTensor(),
    transform.KillAfterLastUse(),
    transform.LowerRuntimeBuiltin(),
    transform.ComputePrimValue(),
    transform.VMShapeLower(),
    transform.AttachGlobalSymbol(),
]


def build_library(
    config: ModelConfig, precision: Precision, target: CpuTarget, prefill_chunk: int, path: Path
) -> list[str]:
    """Compile the model and write the library to `path`; returns the parameters' names in the order it takes them."""
    model = MiniCPM(target.kernels, config, precision)
    module, params, *_ = model.export_tvm(spec=model.call_specs())
    module = _bound(module, {"n": prefill_chunk, "m": prefill_chunk, "b": MAX_DECODE_SEQUENCES})
    executable = tvm.compile(module, target.tvm_target(), relax_pipeline=tvm.transform.Sequential(PASSES))
    executable.export_library(str(path), fcompile=target.link)
    return [name for name, _ in params]


def _bound(module: Any, limits: dict[str, int]) -> Any:
    """Tell the memory planner the largest value of each dynamic dimension."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module[name] = function.with_attr("tir_var_upper_bound", limits)
    return module
