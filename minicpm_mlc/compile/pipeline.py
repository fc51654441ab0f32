"""A model -> IRModule -> passes -> libraries. Every operator is a finished PrimFunc, so nothing is
fused or scheduled here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir import BaseFunc
from tvm.relax import transform
from tvm.relax.frontend import nn
from tvm.tirx import PrimFunc

from minicpm_mlc.bundle.facts import FACTS, Facts
from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.bundle.manifest import MAX_DECODE_SEQUENCES, MAX_TREE_NODES, READ_KERNEL
from minicpm_mlc.compile.code_progress import CODE, code_progress
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.kernel_cases import kernel_cases
from minicpm_mlc.compile.kernels import Kernels
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.shape_functions import order_shape_functions
from minicpm_mlc.compile.signatures import functions
from minicpm_mlc.compile.system_library import prefixed
from minicpm_mlc.targets import Target
from minicpm_mlc.targets.link import is_static
from minicpm_mlc.targets.tuning import Tuning

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


@dataclass(frozen=True)
class Program:
    """A model's functions and kernels, not yet lowered. `params`: the names of the parameters that
    they take, in their order.
    """

    module: tvm.IRModule
    params: list[str]
    target: Target
    kernels: Kernels

    @property
    def steps(self) -> int:
        """How often `cases` and `write` call what they report to."""
        return self._kernels * (1 + (1 + CODE) * len(self.target.libraries))

    @property
    def _kernels(self) -> int:
        return sum(isinstance(each, PrimFunc) for _, each in self.module.functions_items())

    def cases(self, report: Callable[[int], object] = lambda steps: None) -> list[Case]:
        """Calls to check each kernel with, and what comes out."""
        return kernel_cases(self.kernels, self.module, report)

    def write(
        self,
        folder: Path,
        prefix: str,
        facts: Facts,
        report: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Lower it, and write the target's libraries into `folder`, which give the `facts`.

        In a static library the symbols begin with `prefix`, by which an app finds them.
        """
        module = self.module.clone()
        module[FACTS] = _constant(facts.to_text())
        for library in self.target.libraries:
            naming = [prefixed(prefix)] if is_static(library) else []
            with code_progress(self._kernels, report):
                lowered = _compiled(module, self.target, [*PASSES, *naming])
                self.target.export(lowered, str(folder / library))


def build_program(
    config: ModelConfig,
    precision: Precision,
    target: Target,
    prefill_chunk: int,
    draft: tuple[DraftConfig, Precision] | None = None,
    tuning: Tuning | None = None,
) -> Program:
    """The model's functions for a target, with a draft head or without, planned for prefills of up
    to `prefill_chunk` rows. `tuning`: the kernels' parameters; None: the usual ones.
    """
    rounding = precision.activations == "int8"
    traits = target.traits if rounding else target.traits.exact()
    kernels = Kernels(traits, tuning)
    module, params = export(build_model(config, precision, draft, kernels))
    module[READ_KERNEL] = target.read_kernel().with_attr("global_symbol", READ_KERNEL)
    limits = {"n": prefill_chunk, "m": prefill_chunk, "b": MAX_DECODE_SEQUENCES}
    return Program(_bound(module, limits | {"t": MAX_TREE_NODES}), params, target, kernels)


def export(model: Decoder) -> tuple[tvm.IRModule, list[str]]:
    """The model's functions with the kernels that they call, and their parameters' names in order.

    The tree of parts is no nn.Module, so its parameters and functions are hung into one.
    """
    root = nn.Module()
    for name, tensor in model.tensors().items():
        setattr(root, name, tensor)
    exported = functions(model)
    for name, (function, _) in exported.items():
        setattr(root, name, function)
    arguments: Any = {name: dict(spec) for name, (_, spec) in exported.items()}
    module, params, *_ = root.export_tvm(spec=arguments)
    return module, [name for name, _ in params]


def _constant(text: str) -> BaseFunc:
    """A function of no arguments that returns a text."""
    body = relax.SeqExpr([], tvm.ir.StringImm(text))
    return relax.Function([], body, relax.ObjectType()).with_attr("global_symbol", FACTS)


def _compiled(module: tvm.IRModule, target: Target, passes: list[Any]) -> Any:
    lowering = tvm.transform.Sequential(passes)
    return tvm.compile(
        module, target.tvm_target(), relax_pipeline=lowering, tir_pipeline=target.tir_pipeline()
    )


def _bound(module: tvm.IRModule, limits: dict[str, int]) -> tvm.IRModule:
    """Tell the memory planner the largest value of each dynamic dimension."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module[name] = function.with_attr("tir_var_upper_bound", limits)
    return module
