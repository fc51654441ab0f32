"""Metal: every kernel's MSL on this processor through the shim, the demo chat on it, and what the
Apple libraries are.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO
from gpu_cases import compiled_together
from mach_o import DYLIB, IOS, MACOS, OBJECT, read_archive, read_mach_o
from shim_cases import Grid
from tvm.script import tirx as T

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.ops.gpu.kernel import barrier, kernel, shared, workgroups
from minicpm_mlc.targets import DEVICE_OPTIONS
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.metal import MetalTarget

pytestmark = pytest.mark.skipif(platform.system() == "Darwin", reason="Metal itself is here")
TARGET = MetalTarget(CpuTarget.of("native"))
GRID = Grid(TARGET)
RNG = np.random.default_rng(7)


@pytest.mark.parametrize("operator", GRID.operators)
def test_kernels_equal_their_definitions(operator: str):
    GRID.check(operator)


def test_a_missing_barrier_gives_wrong_numbers_and_an_uneven_one_an_error():
    """The shim sees what it is there for."""

    def neighbours(uneven: bool, meet: bool):
        def emit(_, x, out):
            with workgroups(1, 64) as (_, thread):
                cells = shared((64,))
                T.buffer_store(cells, x[thread], [thread])
                with T.If(thread < (32 if uneven else 64)), T.Then():
                    barrier() if meet else None
                    T.buffer_store(out, cells[63 - thread], [thread])

        return kernel("neighbours", {"x": ("float32", 64), "out": ("float32", 64)}, emit)

    funcs = {
        "right": neighbours(False, True),
        "without": neighbours(False, False),
        "uneven": neighbours(True, True),
    }
    run = compiled_together(funcs, "metal", TARGET)
    x, right, without = np.arange(64, dtype=np.float32), *np.zeros((2, 64), np.float32)
    run["right"](x, right)
    run["without"](x, without)
    assert (right == x[::-1]).all() and not (without == x[::-1]).all()
    with pytest.raises(
        RuntimeError, match="uneven_kernel: threads wait at a barrier that others don't reach"
    ):
        run["uneven"](x, right)


@pytest.fixture(scope="module")
def engines(
    tmp_path_factory: pytest.TempPathFactory, demo_on: Callable[..., Path]
) -> Iterator[tuple[Engine, Engine]]:
    """The demo in float32: on the CPU, and for Metal beside this machine's processor instead of
    Apple's.
    """
    here = tmp_path_factory.mktemp("demo") / "metal"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            DEVICE_OPTIONS, "metal", replace(DEVICE_OPTIONS["metal"], platform=None, cpu="native")
        )
        compile_model(DEMO, here, device="metal", scheme="f32", prefill_chunk=256)
    with (
        Engine(demo_on("cpu", scheme="f32"), context=1024) as cpu,
        Engine(here, context=1024) as metal,
    ):
        yield cpu, metal


def greedy(engine: Engine, ids: list[int], **options: Any) -> list[int]:
    """The tokens cached after a greedy answer."""
    engine.generate(ids, max_tokens=16, temperature=0, **options)
    return engine.cached_tokens


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_the_demo_says_what_the_cpu_says(engines: tuple[Engine, Engine], speculate: str):
    cpu, metal = engines
    question = [{"role": "user", "content": "What is 4827 + 356?"}]
    ids = cpu.template.prompt(cpu.tokenizer.raw, question, None).ids
    long = RNG.integers(4, 1500, 506).tolist()  # shifts to sparse attention at the 512th token
    for prompt in (ids, long):
        assert greedy(metal, prompt, speculate=speculate) == greedy(cpu, prompt, speculate="off")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo as it is compiled for macOS and iOS."""
    folder = tmp_path_factory.mktemp("apple")
    for device in ("metal", "ios"):
        compile_model(DEMO, folder / device, device=device)
    return {device: folder / device for device in ("metal", "ios")}


def test_the_macos_library_needs_only_the_process_that_loads_it(bundles: dict[str, Path]):
    library = read_mach_o((bundles["metal"] / "model.dylib").read_bytes())
    assert (library.kind, library.platform, library.minimum) == (
        DYLIB,
        MACOS,
        (13, 0),
    ) and library.signed
    assert library.name == "@rpath/model.dylib" and not set(library.needed) - {
        "/usr/lib/libSystem.B.dylib"
    }
    unused = {"__extendhfsf2", "__truncsfhf2"}  # zig lists them, and binds nothing to them
    outside = {name for name in library.undefined if not name.startswith(("TVM", "__TVM"))}
    assert outside <= {"memcpy", "memset", "dyld_stub_binder"} | unused
    assert "__tvm_ffi__library_bin" in library.exported


def test_the_ios_archive_registers_itself_under_its_prefix(bundles: dict[str, Path]):
    members = {
        name: read_mach_o(data) for name, data in read_archive(bundles["ios"] / "model.a").items()
    }
    assert all((m.kind, m.platform, m.minimum) == (OBJECT, IOS, (16, 0)) for m in members.values())
    exported = set[str]().union(*(m.exported for m in members.values()))
    undefined = set[str]().union(*(m.undefined for m in members.values())) - exported
    assert "MiniCPM4_1_demo_w4a___tvm_ffi__library_bin" in exported
    assert all("MiniCPM4_1_demo_w4a_" in name for name in exported if name.startswith("__tvm_ffi"))
    assert "TVMFFIEnvModRegisterSystemLibSymbol" in undefined
    assert {name for name in undefined if not name.startswith(("TVM", "__TVM"))} <= {
        "memcpy",
        "memset",
        "bzero",
    }


def test_metal_shading_language_uses_functions_that_stay_precise(bundles: dict[str, Path]):
    source = (bundles["metal"] / "model.dylib").read_bytes().decode(errors="ignore")
    assert "precise::cos(" in source and "precise::exp(" in source
    assert not re.findall(
        r"(?<!precise::)\b(?:exp|log|sin|cos|tan|tanh|sqrt|rsqrt|pow|erf)\(", source
    )


@pytest.mark.parametrize("device, system", [("metal", "darwin"), ("ios", "ios")])
def test_bundles_for_apple_are_refused_elsewhere(
    device: str, system: str, bundles: dict[str, Path]
):
    with pytest.raises(BundleError, match=f"compiled for aarch64 {system}, and this machine is"):
        Engine(bundles[device])
