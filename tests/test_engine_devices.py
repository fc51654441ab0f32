"""native/engine on OpenCL and Vulkan devices: Python's tokens, saved sessions, and the check that a
device computes right.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_process import EngineProcess, built

from minicpm_mlc import Engine
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.compile.engine_devices import APIS
from minicpm_mlc.runtime_py.device_check import smallest
from minicpm_mlc.runtime_py.library import LocalLibrary

DEVICES = tuple(APIS)
KERNELS = Path(__file__).with_name("engine_kernels.cc")
TREE = {"tree_size": 12, "draft_depth": 3}


def checked(bundle: Path, devices: tuple[str, ...] = ()) -> dict[str, tuple[float, float]]:
    """The engine's NMSE and limit of each operator."""
    command = [str(built(KERNELS, devices=devices)), str(bundle)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in said.splitlines())
    return {name: (float(nmse), float(limit)) for name, nmse, limit in rows}


def test_kernels_are_off_by_what_python_finds(demo_bundle: Path) -> None:
    library = LocalLibrary(read_bundle(demo_bundle), threads=1)
    results = [library.check(case, timed=False) for case in smallest(load_cases(demo_bundle))]
    expected = {each.operator: each for each in results}
    found = checked(demo_bundle)
    assert found.keys() == expected.keys()
    for name, (nmse, limit) in found.items():
        assert limit == expected[name].limit
        assert nmse == pytest.approx(expected[name].nmse, rel=1e-3, abs=1e-15), name


def test_the_same_greedy_tokens_on_a_device(device: str, demo_on: Callable[..., Path]) -> None:
    bundle = demo_on(device, scheme="f32")
    with (
        Engine(demo_on("cpu", scheme="f32"), context=1024) as engine,
        EngineProcess(bundle, DEVICES, context=1024) as native,
    ):
        assert native.info()["device"] == device
        for length, speculate in ((30, "ngram"), (508, "off"), (600, "eagle")):  # dense to sparse
            ids = [4 + i % 1000 for i in range(length)]
            found = native.tokens(ids, temperature=0, max_tokens=8, speculate=speculate, **TREE)
            with engine.steps(ids, speculate="off") as (steps, logits):
                for token in found:
                    assert token == int(logits.argmax()), (length, found)
                    logits = steps.next(token)


@pytest.mark.campaign
def test_a_session_goes_on_on_a_device(
    device: str, demo_on: Callable[..., Path], tmp_path: Path
) -> None:
    """The engine's file in the engine and in Python, and Python's in the engine."""
    bundle = demo_on(device, scheme="f32")
    ids = list(range(10, 700))  # sparse, and the last page not full
    asked = {"temperature": 0, "max_tokens": 5, "speculate": "off"}
    with EngineProcess(bundle, DEVICES, context=1024) as native:
        longer = [*ids, *native.tokens(ids, **asked), 77]
        native.save(tmp_path / "state")
        expected = native.tokens(longer, **asked)
        cached = native.stats()["cached_tokens"]
    with EngineProcess(bundle, DEVICES, context=1024, resume=str(tmp_path / "state")) as native:
        assert native.tokens(longer, **asked) == expected
        assert native.stats()["cached_tokens"] == cached
    with Engine(bundle, context=1024, resume=tmp_path / "state") as engine:
        with engine.steps(longer, speculate="off") as (steps, logits):
            for token in expected:
                assert token == int(logits.argmax())
                logits = steps.next(token)
        assert engine.stats.cached_tokens == cached
        engine.save(tmp_path / "again")
    with EngineProcess(bundle, DEVICES, context=1024, resume=str(tmp_path / "again")) as native:
        assert native.tokens(longer, **asked) == expected


def test_a_devices_kernels_pass(device: str, demo_on: Callable[..., Path]) -> None:
    found = checked(demo_on(device, scheme="f32"), DEVICES)
    assert found and all(nmse <= limit for nmse, limit in found.values()), found
