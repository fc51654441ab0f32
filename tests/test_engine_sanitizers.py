"""native/engine's tests with AddressSanitizer and UndefinedBehaviorSanitizer in it: prompts, both
gears, sessions, trees, cancelled answers, damaged bundles, thousands of hostile files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake"),
]
TESTS = Path(__file__).parent
FILES = ("run", "speculation", "prefix", "policy", "tokenizer", "sampler", "fuzz")


@pytest.mark.parametrize("file", FILES)
def test_sanitizers_find_nothing(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", TESTS / f"test_engine_{file}.py"]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"MINICPM_SANITIZED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
