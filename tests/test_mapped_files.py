"""A bundle that is written into while an engine has it open."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from odd_bundles import copy_of, rewrite_allowed

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.library import RECENT

CUT = """
import os, sys
from minicpm_mlc import Engine, MiniCPMError
engine = Engine(sys.argv[1], context=64, trust=True)
os.truncate(sys.argv[1] + "/params_shard_0.bin", 0)
try:
    engine.prefill([1, 2, 3])
except MiniCPMError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def bundle(tiny_bundle, tmp_path: Path) -> Path:
    return rewrite_allowed(copy_of(tiny_bundle("MiniCPM4-0.5B").path, tmp_path / "in-use"))


def test_rob_24_a_file_that_is_cut_short_ends_in_an_engine_error(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(bundle)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EngineError") and "params_shard_0.bin was changed" in done.stdout


@pytest.mark.parametrize("name", ["params_shard_0.bin", "model.so"])
def test_rob_24_a_file_that_is_written_into_is_noticed_by_each_call(
    bundle: Path, name: str
) -> None:
    engine = Engine(bundle, context=64)
    engine.prefill([1, 2, 3])
    os.utime(bundle / name, ns=(1, 1))
    time.sleep(1.2 * RECENT)
    for call in (lambda: engine.prefill([4]), lambda: engine.decode(4), lambda: engine.logits([4])):
        with pytest.raises(EngineError, match=f"{name} was changed while it is in use"):
            call()


def test_rob_24_a_bundle_that_is_replaced_by_renaming_does_no_harm(bundle: Path) -> None:
    engine = Engine(bundle, context=64)
    before = engine.logits([1, 2, 3])
    bundle.rename(bundle.with_name("old"))
    shutil.copytree(bundle.with_name("old"), bundle)
    (bundle / "params_shard_0.bin").write_bytes(b"another one")
    assert np.array_equal(engine.logits([1, 2, 3]), before)
    shutil.rmtree(bundle.with_name("old"))
    assert np.array_equal(engine.logits([1, 2, 3]), before)
