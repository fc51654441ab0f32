"""Cases for every kernel that a model asked its target for, by the operators' NumPy definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.compile.kernel_cases import cached, rows, weights
from minicpm_mlc.compile.kernel_cases.sample import Sample

_SAMPLES: dict[str, Callable[..., Iterator[Sample]]] = {
    "attend_blocks": cached.attend_blocks,
    "attend_decode": cached.attend_decode,
    "attend_prefill": cached.attend_prefill,
    "attend_tree": cached.attend_tree,
    "attend_tree_blocks": cached.attend_tree_blocks,
    "concat": rows.concat,
    "embed": weights.embed,
    "gather_rows": rows.gather_rows,
    "linear": weights.linear,
    "linear_int8": weights.linear_int8,
    "linear_swiglu_int8": weights.linear_swiglu_int8,
    "move_rows": cached.move_rows,
    "path_means": cached.path_means,
    "quantize_rows": rows.quantize_rows,
    "repeat_row": rows.repeat_row,
    "rms_norm": rows.rms_norm,
    "rms_norm_int8": rows.rms_norm_int8,
    "rope_angles": rows.rope_angles,
    "rope_append": cached.rope_append,
    "score_blocks": cached.score_blocks,
    "score_tree": cached.score_tree,
    "segment_means": cached.segment_means,
    "select_blocks": cached.select_blocks,
    "swiglu": rows.swiglu,
    "top_k": rows.top_k,
}


class RecordedKernels:
    """A target's kernels that remember how each PrimFunc was asked for."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._asked: list[tuple[Any, str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        def ask(*args: Any, **options: Any) -> Any:
            kernel = getattr(self._kernels, operator)(*args, **options)
            self._asked.append((kernel, operator, args, options))
            return kernel

        return ask

    def cases(self, module: Any) -> list[Case]:
        """Cases of the PrimFuncs in an IRModule, under the names they have there."""
        cases = []
        for variable, function in module.functions_items():
            asked = next((entry for entry in self._asked if function.same_as(entry[0])), None)
            if asked and asked[1] in _SAMPLES:
                _, operator, args, options = asked
                samples = _SAMPLES[operator](self._kernels, *args, **options)
                cases += [sample.of(variable.name_hint, operator) for sample in samples]
        return cases
