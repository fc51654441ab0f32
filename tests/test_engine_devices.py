"""native/engine on OpenCL and Vulkan devices: Python's tokens; another bundle where there is no
device; and the check that a device computes right.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_process import EngineProcess, Refused, built

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


@pytest.fixture
def elsewhere(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle for a device that the engine was not built for."""
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "elsewhere"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["target"]["device"] = "vulkan"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_another_bundle_answers_where_there_is_no_device(
    demo_bundle: Path, elsewhere: Path
) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
    with pytest.raises(Refused, match=r"for vulkan, .* without it; .*--device cpu"):
        EngineProcess(elsewhere, context=64)
    with EngineProcess(demo_bundle, context=64) as native:
        expected = native.tokens([5, 6, 7], **asked)
        assert native.info()["device"] == "cpu" and native.info()["fell_back"] is None
    with EngineProcess(elsewhere, context=64, fallback=str(demo_bundle)) as native:
        assert native.tokens([5, 6, 7], **asked) == expected
        assert "for vulkan" in native.info()["fell_back"]
    command = [built(), elsewhere, "--context=64", "--ids=5,6,7", "--max-tokens=6"]
    command += ["--temperature=0", "--fallback", demo_bundle]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert done.stdout == ",".join(map(str, expected)) + "\n"
    assert done.stderr.startswith("Warning: the bundle was compiled for vulkan")


def test_a_damaged_bundle_has_no_fallback(demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not there"):
        EngineProcess(tmp_path / "nothing", fallback=str(demo_bundle))


def test_the_same_greedy_tokens_on_a_device(
    device: str, demo_on: Callable[..., Path], tmp_path: Path
) -> None:
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
        with pytest.raises(Refused, match="saved states are for CPUs"):
            native.save(tmp_path / "state")


def test_a_devices_kernels_pass(device: str, demo_on: Callable[..., Path]) -> None:
    found = checked(demo_on(device, scheme="f32"), DEVICES)
    assert found and all(nmse <= limit for nmse, limit in found.values()), found
