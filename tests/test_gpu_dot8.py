"""`--arch dot8`: int8 products by the integer dot product of Vulkan and OpenCL devices."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from gpu_cases import compiled_together, device_named
from grid_cases import record_case
from tvm.script import tirx as T

from minicpm_mlc.compile.storage import choose_precision
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.gpu.intrinsics import dot
from minicpm_mlc.ops.gpu.kernel import kernel, workgroups
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.ops.samples import Draw
from minicpm_mlc.targets import get_target

DEVICES = ("opencl", "vulkan")
SAMPLES = 5  # of a record: one row, few and many
here = [
    pytest.param(
        device,
        marks=pytest.mark.skipif(
            device_named(device) is None, reason=f"no {device} device with its runtime"
        ),
    )
    for device in DEVICES
]


def records(traits: Any) -> dict[str, Operator]:
    """A matrix of each kind of values, and SwiGLU."""
    linears = [r for r in LinearInt8.variants() if r.residual and r.fits(traits)]
    swiglu = [r for r in LinearSwigluInt8.variants() if r.fits(traits)]
    chosen = [r for r in [*linears, *swiglu[:1]] if r.scheme.name in ("w4", "w4a", "w5k", "w8")]
    return {f"k{i}": record for i, record in enumerate(chosen)}


@pytest.mark.usefixtures("vulkan_silent")
@pytest.mark.parametrize("device", here)
def test_products_equal_their_definitions(device: str):
    target = get_target(device, arch="dot8")
    named = records(target.traits)
    assert len(named) == 5
    calls = compiled_together(
        {name: build(record, target.traits) for name, record in named.items()}, device, target
    )
    draw = Draw(whole=True)
    draw.random = np.random.default_rng(5)
    for name, record in named.items():
        for sample in islice(record.samples(draw), SAMPLES):
            case = record_case(record, sample)
            assert case.error(calls[name]) <= case.allowed, (record, len(case.arguments[0]))


@pytest.mark.parametrize("device", here)
def test_bytes_of_every_sign_are_multiplied_and_added(device: str):
    """The largest products, whose sums a saturating instruction would cut."""
    edges = np.array([-128, -127, -1, 0, 1, 127], np.int8)
    weights, values = (np.random.default_rng(i).choice(edges, (64, 4)) for i in range(2))
    arguments = {"w": ("uint32", 64), "x": ("int32", 64), "out": ("int32", 2, 64)}

    def emit(_: Any, w: Any, x: Any, out: Any) -> None:
        with workgroups(1, 64) as (_, thread):
            for row, unsigned in enumerate((True, False)):
                total = dot(unsigned, w[thread], x[thread], T.int32(7))
                T.buffer_store(out, total, [row, thread])

    target, out = get_target(device, arch="dot8"), np.zeros((2, 64), np.int32)
    call = compiled_together({"main": kernel("dots", arguments, emit)}, device, target)["main"]
    call(weights.view(np.uint32)[:, 0].copy(), values.view(np.int32)[:, 0].copy(), out)
    signed = values.astype(np.int32)
    for row, left in enumerate((weights.view(np.uint8), weights)):
        np.testing.assert_array_equal(out[row], 7 + (left.astype(np.int32) * signed).sum(1))


@pytest.mark.parametrize("device", DEVICES)
def test_it_makes_int8_activations_the_default_and_the_manifest_names_it(device: str):
    plain, dots = get_target(device), get_target(device, arch="dot8")
    chosen = [choose_precision("w4", None, "auto", None, t).activations for t in (plain, dots)]
    assert chosen == ["f32", "int8"]
    assert "archs" not in plain.describe()
    assert dots.describe()["archs"] == ["dot8"]
