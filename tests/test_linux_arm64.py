"""Bundles compiled here for Linux arm64, run by the arm64 Python and wheels that users install,
under qemu.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO

from minicpm_mlc import Engine
from minicpm_mlc.runtime_py.verify import verify_bundle

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "build" / "arm64"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
needs_arm64 = pytest.mark.skipif(
    not (QEMU and (ROOT / "site" / "tvm").is_dir()),
    reason="no qemu-aarch64 or no build/arm64: make devices",
)
pytestmark = needs_arm64
PROMPTS = [
    "What is 4827 + 356?",
    "What does minicpm-mlc do? /no_think",
    "Remember: the code of the red door is 7.",
]
PROGRAM = """
import json, sys
from minicpm_mlc import Engine
from minicpm_mlc.bundle.host import this_host
bundle, messages = sys.argv[1], json.loads(sys.argv[2])
with Engine(bundle, context=1024, threads=1) as engine:
    chats = [[{"role": "user", "content": message}] for message in messages]
    texts = [engine.chat(chat, max_tokens=64, temperature=0) for chat in chats]
    sparse = engine.generate(list(range(4, 600)), max_tokens=8, temperature=0)
with Engine(bundle, context=1024, threads=2) as engine:  # which wait long for each other under qemu
    logits = engine.logits(engine.tokenize(messages[0]))[-1].tolist()
print(json.dumps([this_host().machine, texts, logits, sparse]))
"""


def run_arm64(*args: str, cpu: str = "max") -> subprocess.CompletedProcess[str]:
    """Python on an arm64 processor."""
    command = [str(QEMU), "-cpu", cpu, "-L", str(ROOT), str(ROOT / "usr/bin/python3"), *args]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{ROOT / 'site'}",
        "PYTHONPYCACHEPREFIX": str(ROOT / "pycache"),
    }
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


F32: dict[str, str] = {"scheme": "f32"}
DOTS = {"scheme": "w4", "cpu": "cortex-a76"}
MATRICES = {"scheme": "w4", "cpu": "neoverse-n2"}


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        pytest.param(F32, PROMPTS, id="NEON alone"),
        pytest.param(DOTS, PROMPTS[:1], id="int8 dot products"),  # and verify, of every kernel
        pytest.param(MATRICES, PROMPTS[:1], id="int8 matrix products"),
        pytest.param(DOTS, PROMPTS, id="all, dot", marks=pytest.mark.campaign),
        pytest.param(MATRICES, PROMPTS, id="all, matrix", marks=pytest.mark.campaign),
    ],
)
def test_the_same_greedy_tokens_as_on_this_machine(
    options: dict[str, str],
    asked: list[str],
    compiled: Callable[..., Path],
    demo_on: Callable[..., Path],
):
    there = compiled(DEMO, device="linux-arm64", **options)
    here = demo_on("cpu", scheme=options["scheme"])
    result = run_arm64("-c", PROGRAM, str(there), json.dumps(asked))
    assert result.returncode == 0, result.stderr
    machine, texts, logits, sparse = json.loads(result.stdout)
    assert machine == "aarch64"
    with Engine(here, context=1024) as engine:
        chat = [
            engine.chat([{"role": "user", "content": m}], max_tokens=64, temperature=0)
            for m in asked
        ]
        assert texts == chat
        assert sparse == engine.generate(
            list(range(4, 600)), max_tokens=8, temperature=0
        )  # beyond dense_len
        expected = engine.logits(engine.tokenize(PROMPTS[0]))[-1]
    np.testing.assert_allclose(logits, expected, atol=1e-4 if options["scheme"] == "f32" else 1e-3)
    if options["scheme"] == "w4":
        report = run_arm64("-m", "minicpm_mlc", "verify", str(there), "--json", "--threads", "1")
        assert report.returncode == 0, report.stderr
        assert json.loads(report.stdout)["tokens"] == verify_bundle(here).tokens


def test_a_processor_without_the_instructions_is_refused(compiled: Callable[..., Path]):
    bundle = compiled(DEMO, device="linux-arm64", scheme="w4", cpu="cortex-a76")
    result = run_arm64("-m", "minicpm_mlc", "chat", str(bundle), "--prompt", "hi", cpu="cortex-a72")
    assert result.returncode == 1
    assert "this CPU lacks dotprod, fullfp16, lse, rdm" in result.stderr
