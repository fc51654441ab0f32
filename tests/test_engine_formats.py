"""The engine with every format of keys and values, and under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine_process import EngineProcess

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.engine_build import native_folder

pytestmark = pytest.mark.campaign
DEMO = Path(__file__).parents[1] / "examples/demo_model/MiniCPM4.1-demo"
SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"


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


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_sanitizers_find_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    configure = ["cmake", "-S", native_folder() / "engine", "-B", build]
    configure += ["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={SANITIZERS}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*map(str, configure)], check=True, capture_output=True)
    making = ["cmake", "--build", str(build), "-j2", "--target", "minicpm-run"]
    subprocess.run(making, check=True, capture_output=True)
    program = [str(build / "minicpm-run"), str(demo_bundle), "--context=1024", "--max-tokens=40"]
    good = (
        ["--prompt", "What is 4827 + 356?", "--speculate", "eagle", "--tree-size", "24"],
        ["--prompt", "What is 4827 + 356?", "--speculate", "ngram"],
        ["--prompt", "你好 😀 <|im_end|>", "--stop", "e", "--seed", "3", "--top-k", "50"],
        ["--prompt", "Tell me about pages.", "--think", "--max-think-tokens", "3"],
        ["--ids", ",".join(map(str, range(4, 700))), "--temperature", "0"],
        ["--tokenize", "--prompt", "\x01\x7f \ufdfa \ufffd\u0301"],
    )
    for options in good:
        done = subprocess.run(
            [*program, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "copy"))
    for name in ("manifest.json", "tensor-cache.json", "tokenizer.json", "engine.json"):
        whole = (copy / name).read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 12)):
            (copy / name).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            bad = [program[0], str(copy), "--prompt", "Hi", "--max-tokens=2"]
            done = subprocess.run(bad, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert done.returncode in (0, 1) and "ERROR" not in done.stderr, done.stderr
        (copy / name).write_bytes(whole)
