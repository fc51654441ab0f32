"""Checkpoints that store tensors in several forms: each linear has the scheme that suits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from packers import small_config, write_quantised

from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.checkpoint.mixed import own_schemes
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {}}}
DOWN, GATE, QKV = (
    f"model.layers.0.{name}_proj.weight" for name in ("mlp.down", "mlp.gate", "self_attn.q")
)
# by a matrix's shape: down is the only one of 192 columns, gate and up of 192 rows, k and v of 64
SHAPES = {"down": (128, 192), "gate and up": (192, 128), "k and v": (64, 128)}


def schemes(folder: Path, odd: str, pack: packers.Packer) -> dict[str, str]:
    """What is stored in other schemes than most, where `pack` made some matrices."""
    four = packers.gptq()

    def by_shape(w: np.ndarray) -> packers.Tensors:
        return pack(w) if w.shape == SHAPES[odd] else four(w)

    config = write_quantised(folder, by_shape, {"quantization_config": GPTQ})
    weights = open_checkpoint(folder, config)
    linear, _ = weights.schemes()
    assert linear is not None
    model = build_model(config, Precision(SCHEMES[linear], SCHEMES["w8"], F16))
    found = own_schemes(model.parameters(), weights, linear)
    return {name: scheme.name for name, scheme in found.items()}


CASES: dict[str, tuple[str, packers.Packer, dict[str, str]]] = {
    "all alike": ("down", packers.gptq(), {}),
    "more bits": ("down", packers.gptq(8), {DOWN: "w8"}),
    "zero points": ("down", packers.gptq(symmetric=False), {DOWN: "w4z"}),
    "floats": ("down", lambda w: {"weight": w.astype(np.float16)}, {DOWN: "w8"}),
    "activation order": ("gate and up", packers.gptq(order=True), {GATE: "w8"}),
    "some of those that are stacked": ("k and v", packers.gptq(8), {QKV: "w8"}),
    "floats among those": ("k and v", lambda w: {"weight": w.astype(np.float16)}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_linear_has_the_scheme_that_suits_it(tmp_path, case):
    odd, pack, expected = CASES[case]
    assert schemes(tmp_path, odd, pack) == expected


def test_floats_have_no_schemes_of_their_own(tmp_path):
    config = small_config()
    packers.write_checkpoint(tmp_path, config)
    weights = open_checkpoint(tmp_path, config)
    model = build_model(config, Precision(SCHEMES["w4"], SCHEMES["w8"], F16))
    assert own_schemes(model.parameters(), weights, "w4") == {}
