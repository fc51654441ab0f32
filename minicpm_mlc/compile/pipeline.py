"""IRModule -> passes -> library. Every operator is a finished PrimFunc, so nothing is fused or scheduled here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform

from ..manifest import MAX_DECODE_SEQUENCES, MAX_TREE_NODES
from ..targets import Target
from .config import ModelConfig
from .draft_config import DraftConfig
from .model.drafting import DraftingMiniCPM
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
    config: ModelConfig,
    precision: Precision,
    target: Target,
    prefill_chunk: int,
    path: Path,
    draft: tuple[DraftConfig, Precision] | None = None,
) -> list[str]:
    """Compile the model, with a draft head or without, and write the library to `path`.

    Returns the parameters' names in the order it takes them.
    """
    base = (target.kernels, config, precision)
    model = DraftingMiniCPM(*base, *draft) if draft else MiniCPM(*base)
    module, params, *_ = model.export_tvm(spec=model.call_specs())
    module = _bound(module, {"n": prefill_chunk, "m": prefill_chunk, "b": MAX_DECODE_SEQUENCES, "t": MAX_TREE_NODES})
    passes = tvm.transform.Sequential(PASSES)
    executable = tvm.compile(module, target.tvm_target(), relax_pipeline=passes, tir_pipeline=target.tir_pipeline())
    executable.export_library(str(path), fcompile=target.link)
    return [name for name, _ in params]


def _bound(module: Any, limits: dict[str, int]) -> Any:
    """Tell the memory planner the largest value of each dynamic dimension."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module[name] = function.with_attr("tir_var_upper_bound", limits)
    return module
