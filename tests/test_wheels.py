"""The projects that a release's wheels are built from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("tools/wheels.py reads TOML, which came with Python 3.11", allow_module_level=True)

import tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture
def wheels() -> Any:
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "tools" / "wheels.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"] | {"version": "1.2"}


def names(needs: list[str]) -> set[str]:
    return {need.partition("==")[0].partition(">=")[0] for need in needs}


def test_the_full_distribution_is_the_runtime_the_compiler_and_the_linker(
    wheels: Any, project: dict[str, Any], tmp_path: Path
) -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheels._full(tmp_path / "full", project, told["targets"]["wheel"]["force-include"])
    package = tmp_path / "full" / "minicpm_mlc"
    assert (package / "native" / "engine" / "sources.txt").is_file()  # package --engine
    demo = tmp_path / "full" / "minicpm_mlc" / "demo_model" / "MiniCPM4.1-demo"
    assert (demo / "model.safetensors").exists()
    made = tomllib.loads((tmp_path / "full" / "pyproject.toml").read_text())["project"]
    assert names(made["dependencies"]) == {"minicpm-mlc-runtime", "apache-tvm", "ziglang"}
    assert made["dependencies"][0] == "minicpm-mlc-runtime==1.2"
    assert made["name"] == "minicpm-mlc" and made["scripts"] == {}


def test_the_runtime_takes_no_compiler_and_carries_tvms_library(
    wheels: Any, project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_carry_runtime", lambda place, *_: place.mkdir() or "manylinux_1")
    monkeypatch.setattr(wheels, "_carry_tokenizers", lambda place, *_: place.mkdir())
    wheels._runtime(tmp_path / "runtime", project, "manylinux_1")
    made = tomllib.loads((tmp_path / "runtime" / "pyproject.toml").read_text())["project"]
    assert not names(made["dependencies"]) & {"apache-tvm", "ziglang", "tokenizers"}
    assert "apache-tvm-ffi" in names(made["dependencies"])
    assert made["scripts"] == {"minicpm-mlc": "minicpm_mlc.cli:main"}
    assert "minicpm-mlc-runtime[serve]" in made["optional-dependencies"]["ray"]
    assert "hub" in made["optional-dependencies"] and "dev" not in made["optional-dependencies"]
    package = tmp_path / "runtime" / "minicpm_mlc"
    assert (package / "py.typed").exists()
    assert {"carried", "tvm_runtime"} <= {folder.name for folder in package.iterdir()}
    assert "py3-none-manylinux_1" in (tmp_path / "runtime" / "hook.py").read_text()


def test_what_is_carried_is_found_where_there_is_no_tvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minicpm_mlc.bundle import tvm_runtime
    from minicpm_mlc.runtime_py import tvm_files

    def absent(name: str) -> str:
        raise tvm_runtime.importlib.metadata.PackageNotFoundError(name)

    assert tvm_files.tvm_library("tvm_runtime") is not None
    monkeypatch.setattr(tvm_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tvm_runtime.importlib.metadata, "version", absent)
    for module in (tvm_files, tvm_runtime):
        monkeypatch.setattr(module, "CARRIED", tmp_path)
    assert tvm_files.tvm_library("tvm_runtime") is None and tvm_runtime.tvm_version() is None
    (tmp_path / "VERSION").write_text("0.27.0.post1\n")
    for name in ("libtvm_runtime.so", "tvm_runtime.lib"):
        (tmp_path / name).touch()
    assert tvm_files.tvm_library("tvm_runtime") == tmp_path / "libtvm_runtime.so"
    assert tvm_runtime.tvm_version() == "0.27.0.post1"
