"""IRModule -> passes -> library. Every operator is a finished PrimFunc, so nothing is fused or
scheduled here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform

from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.bundle.manifest import MAX_DECODE_SEQUENCES, MAX_TREE_NODES, READ_KERNEL
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.kernel_cases import kernel_cases
from minicpm_mlc.compile.model.drafting import DraftingMiniCPM
from minicpm_mlc.compile.model.kernels import Kernels
from minicpm_mlc.compile.model.minicpm import MiniCPM
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.shape_functions import order_shape_functions
from minicpm_mlc.compile.system_library import prefixed
from minicpm_mlc.targets import Target
from minicpm_mlc.targets.link import is_static

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
    order_shape_functions,
    transform.AttachGlobalSymbol(),
]


def build_library(
    config: ModelConfig,
    precision: Precision,
    target: Target,
    prefill_chunk: int,
    folder: Path,
    prefix: str,
    draft: tuple[DraftConfig, Precision] | None = None,
) -> tuple[list[str], list[Case]]:
    """Compile the model, with a draft head or without, and write the target's libraries into
    `folder`.

    In a static library the modules' symbols begin with `prefix`, by which an app finds them.

    Returns the parameters' names in the order it takes them, and cases to check its kernels with.
    """
    rounding = precision.activations == "int8"
    traits = target.traits if rounding else target.traits.exact()
    builders = target.kernels if rounding else target.kernels.exact()
    kernels: Any = Kernels(traits, builders)
    base = (kernels, config, precision)
    model = DraftingMiniCPM(*base, *draft) if draft else MiniCPM(*base)
    module, params, *_ = model.export_tvm(spec=model.call_specs())
    if target.has_read_kernel:
        module[READ_KERNEL] = target.kernels.read_peak().with_attr("global_symbol", READ_KERNEL)
    module = _bound(
        module,
        {"n": prefill_chunk, "m": prefill_chunk, "b": MAX_DECODE_SEQUENCES, "t": MAX_TREE_NODES},
    )
    for library in target.libraries:
        naming = [prefixed(prefix)] if is_static(library) else []
        target.export(_compiled(module, target, [*PASSES, *naming]), str(folder / library))
    return [name for name, _ in params], kernel_cases(kernels, module)


def _compiled(module: Any, target: Target, passes: list[Any]) -> Any:
    lowering = tvm.transform.Sequential(passes)
    return tvm.compile(
        module, target.tvm_target(), relax_pipeline=lowering, tir_pipeline=target.tir_pipeline()
    )


def _bound(module: Any, limits: dict[str, int]) -> Any:
    """Tell the memory planner the largest value of each dynamic dimension."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module[name] = function.with_attr("tir_var_upper_bound", limits)
    return module
