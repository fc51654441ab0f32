"""bench/runtime_slice.py: what it makes is enough to load TVM's runtime, in a Python that has
nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import runtime_slice

LOOKS = """
import importlib.metadata, importlib.util, pathlib
import installed
lib = pathlib.Path(list(importlib.util.find_spec("tvm").submodule_search_locations)[0]) / "lib"
print(importlib.metadata.version("apache-tvm"), *sorted(p.name for p in lib.iterdir()))
print(pathlib.Path(importlib.util.find_spec("minicpm_mlc").origin).parent.parent.name)
"""


def test_a_python_finds_the_runtime_its_version_and_the_wheels_in_a_slice(tmp_path: Path):
    asked = []

    def download(folder: Path, python: str, requirements: list[str]) -> None:
        asked.append((python, requirements))
        with zipfile.ZipFile(folder / "installed-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("installed.py", "")

    runtime_slice.make(tmp_path / "slice", "3.12", download)
    [(python, requirements)] = asked
    assert python == "3.12" and f"apache-tvm-ffi=={version('apache-tvm-ffi')}" in requirements
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "slice")}
    command = [sys.executable, "-S", "-c", LOOKS]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [
        version("apache-tvm"),
        "libtvm_runtime.so",
        "libtvm_runtime_cuda.so",
        "slice",
    ], done.stderr


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    with pytest.raises(SystemExit, match="is there already; give another folder"):
        runtime_slice.make(tmp_path, "3.12", lambda *_: None)
