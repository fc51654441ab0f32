"""What a GPU is asked to do in a decode step: a layer's operators, and what they ask for beside
their tensors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from checkpoints import NARROW, tiny_config
from tvm import relax

from minicpm_mlc.compile.make_manifest import make_manifest
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.pipeline import Program, build_program
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.targets import get_target

CONFIG = tiny_config("MiniCPM4.1-8B", sparse=NARROW)
PRECISION = Precision(SCHEMES["w4"], SCHEMES["w8"], F16, "int8")
# at one row: block scores are cut into tiles, whose parts a second launch puts together
LAUNCHES = {"score_blocks": 2}
DENSE = [
    "norm_linear_int8",
    "rope_append_means",
    "attend_decode",
    "linear_int8",
    "norm_linear_swiglu_int8",
    "linear_int8",
]
SPARSE = [*DENSE[:2], "score_blocks", "select_blocks", "attend_blocks", *DENSE[3:]]


@cache
def program() -> Program:
    return build_program(CONFIG, PRECISION, get_target("cuda"), 64)


def called_by(function: str) -> list[str]:
    """The operators that a function of the library calls, in order."""
    module: Any = program().module
    values = [binding.value for binding in module[function].body.blocks[0].bindings]
    calls: list[Any] = [value for value in values if isinstance(value, relax.Call)]
    kernels = [module[c.args[0]] for c in calls if c.op.name.startswith("relax.call_tir")]
    operators = [program().kernels.operator_of(kernel) for kernel in kernels]
    return [operator.name for operator in operators if operator]


@pytest.mark.parametrize(
    "function, layer, launches", [("decode", DENSE, 6), ("decode_sparse", SPARSE, 9)]
)
def test_a_layers_launches(function: str, layer: list[str], launches: int):
    called = called_by(function)
    first, count = called.index(layer[0]), CONFIG.num_layers
    assert called[first : first + count * len(layer)] == layer * count
    assert sum(LAUNCHES.get(name, 1) for name in layer) == launches


@pytest.mark.parametrize("device, grows", [("cpu", False), ("cuda", True)])
def test_the_manifest_counts_what_a_trees_scores_ask_for(device: str, grows: bool):
    """The logits of 128K tokens' segments for 64 rows of 32 heads, and of each tile a sum."""
    target = get_target(device)
    short, long = (
        make_manifest(CONFIG, PRECISION, target, [], tokens, 64, None).memory["activations"]
        for tokens in (1024, 1 << 17)
    )
    assert (long > short) == grows
    assert not grows or long - 4 * 64 * (320 + 2 * 256) == 4 * 64 * 32 * (8192 + 137)
