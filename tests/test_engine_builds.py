"""native/engine in three builds, this machine's, a static one for arm64 under qemu and WebAssembly
in Node.js, beside the Python runtime: 50 prompts, both gears, speculation, every format of keys and
values.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_process import DRIVER, EngineProcess
from test_engine_run import _python_tokens, python_texts, texts, user
from test_gpu_bundles import QUESTIONS
from web_process import WebProcess

from minicpm_mlc import Engine
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_android import STATIC_TARGET
from minicpm_mlc.compile.engine_build import EngineBuild
from minicpm_mlc.compile.engine_sources import static_model

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(not QEMU, reason="no qemu-aarch64")]
CONTEXT = 1024
FORMATS = ("f32", "f16", "bf16", "int8")


class Arm64Process(EngineProcess):
    """An open engine in a static program that has the model's code in it."""

    def __init__(self, bundle: Path, **options: Any) -> None:
        model = static_model(bundle, Manifest.load(bundle))
        program = EngineBuild(STATIC_TARGET, model).program(DRIVER)
        given = json.dumps({"linked": model.prefix, **options})
        self._start([str(QEMU), "-cpu", "max", program, bundle, given])


BUILDS: dict[str, tuple[type[EngineProcess], dict[str, Any]]] = {
    "host": (EngineProcess, {"device": "cpu"}),
    "arm64": (Arm64Process, {"device": "android", "gpu": "none"}),
    "web": (WebProcess, {"device": "web"}),
}
Pair = tuple[EngineProcess, Engine, str]


@pytest.fixture(scope="module", params=[(kv, build) for kv in FORMATS for build in BUILDS], ids=str)
def pair(request: pytest.FixtureRequest, demo_on: Callable[..., Path]) -> Iterator[Pair]:
    """A build and Python's engine, of one model in float32, and the format of keys and values."""
    kv, name = request.param
    opened, options = BUILDS[name]
    here = demo_on("cpu", scheme="f32", kv=kv)
    bundle = here if name == "host" else demo_on(scheme="f32", kv=kv, **options)
    with opened(bundle, context=CONTEXT) as build, Engine(here, context=CONTEXT) as python:
        yield build, python, kv


def test_fifty_prompts(pair: Pair) -> None:
    build, python, kv = pair
    assert len(QUESTIONS) == 50
    for seed, question in enumerate(QUESTIONS):
        messages = user(question)
        ids = python.template.prompt(python.tokenizer.raw, messages, None).ids
        assert build.prompt(messages) == ids, question
        asked: list[dict[str, Any]] = [{"temperature": 0}]
        if kv == "f32":  # a rounded cache moves logits by more than sums in another order do
            asked.append({"temperature": 1.0, "seed": seed})
        for sampling in asked:
            options = {"max_tokens": 16, **sampling}
            expected = python_texts(python, messages, **options)
            assert texts(build.chat(messages, **options)) == expected, (question, sampling)


@pytest.mark.parametrize("speculate", ["off", "ngram", "eagle"])
def test_dense_shifting_and_sparse(pair: Pair, speculate: str) -> None:
    build, python, _ = pair
    tree = {} if speculate == "off" else {"tree_size": 12, "draft_depth": 3}
    for length in (30, 505, 700):
        ids = [4 + i % 1000 for i in range(length)]
        expected = list(_python_tokens(python, ids, 12))
        asked = {"temperature": 0, "max_tokens": 12, "speculate": speculate, **tree}
        assert build.tokens(ids, **asked) == expected, length
