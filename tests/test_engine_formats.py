"""The engine with every format of keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_process import EngineProcess

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model

pytestmark = pytest.mark.campaign
DEMO = Path(__file__).parents[1] / "examples/demo_model/MiniCPM4.1-demo"


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_the_same_greedy_tokens(kv: str, tmp_path: Path) -> None:
    bundle = tmp_path / kv
    compile_model(DEMO, bundle, kv=kv, prefill_chunk=256)
    with EngineProcess(bundle, context=1024) as native, Engine(bundle, context=1024) as engine:
        for length in (30, 505, 700):  # dense, shifting, sparse
            ids = [4 + i % 1000 for i in range(length)]
            found = native.tokens(ids, temperature=0, max_tokens=16)
            with engine.steps(ids, speculate="off") as (steps, logits):
                for token in found:
                    assert token == int(logits.argmax()), (length, found)
                    logits = steps.next(token)
