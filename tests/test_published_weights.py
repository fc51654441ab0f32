"""The published MiniCPM4-0.5B against its authors' numbers. Needs the weights:
MINICPM_WEIGHTS=FOLDER.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from minicpm_mlc import Engine

FOLDER = os.environ.get("MINICPM_WEIGHTS")
PROMPT = "The capital of France is"
LOGITS = [
    -5.375,
    1.6328125,
    5.78125,
    -6.5625,
    -6.0,
    9.875,
    1.4296875,
    -5.6875,
    -6.0625,
    -5.5625,
]  # of bf16 arithmetic
CONTINUATION = " Paris. Which of the following statements about Paris is true?\n[A]. Paris is the"


@pytest.mark.skipif(not FOLDER, reason="MINICPM_WEIGHTS does not name a folder with MiniCPM4-0.5B")
def test_golden_logits_and_greedy_continuation(tmp_path):
    from minicpm_mlc.compile import compile_model

    compile_model(str(FOLDER), tmp_path / "bundle", scheme="bf16")
    with Engine(tmp_path / "bundle", context=256) as engine:
        ids = engine.tokenize(PROMPT)
        assert np.abs(engine.logits(ids)[-1, :10] - LOGITS).max() < 0.1
        text = engine.generate(ids, max_tokens=24, temperature=0)
    assert text.strip().startswith(CONTINUATION.strip())
