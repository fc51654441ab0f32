"""Cases for every kernel that a model asked its target for, by the operators' NumPy definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tvm.tirx import PrimFunc

from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.compile.kernel_cases import cached
from minicpm_mlc.compile.kernel_cases.records import cases_of
from minicpm_mlc.compile.kernel_cases.sample import Sample

_SAMPLES: dict[str, Callable[..., Iterator[Sample]]] = {
    "attend_blocks": cached.attend_blocks,
    "attend_decode": cached.attend_decode,
    "attend_prefill": cached.attend_prefill,
    "attend_tree": cached.attend_tree,
    "attend_tree_blocks": cached.attend_tree_blocks,
    "move_rows": cached.move_rows,
    "path_means": cached.path_means,
    "rope_append": cached.rope_append,
    "score_blocks": cached.score_blocks,
    "score_tree": cached.score_tree,
    "segment_means": cached.segment_means,
    "select_blocks": cached.select_blocks,
}


def kernel_cases(kernels: Any, module: Any) -> list[Case]:
    """Cases of the PrimFuncs in an IRModule, under the names they have there."""
    cases: list[Case] = []
    for variable, function in module.functions_items():
        name = variable.name_hint
        if record := kernels.operator_of(function) if isinstance(function, PrimFunc) else None:
            cases += cases_of(name, record, kernels.traits)
        asked = next((entry for entry in kernels.built if function.same_as(entry[0])), None)
        if asked and asked[1] in _SAMPLES:
            _, operator, args, options = asked
            samples = _SAMPLES[operator](kernels.builders, *args, **options)
            cases += [sample.of(name, operator) for sample in samples]
    return cases
