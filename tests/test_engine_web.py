"""The engine as WebAssembly beside the Python runtime, on one model: what a page computes, in
Node.js.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from conftest import DEMO
from engine_process import Refused
from test_bundle import MANIFEST, TARGET
from test_engine_run import CONVERSATIONS, _python_tokens, python_texts, texts, user
from test_package import TRIPLES
from tvm import tirx
from web_process import WebProcess

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.result import CompileResult
from minicpm_mlc.ops.tir import Buffer, Dims, T, prim_func
from minicpm_mlc.targets.float16_bits import widened_by_bits

CONTEXT = 1024


def test_a_float16_is_widened_exactly_by_its_bits() -> None:
    def emit(dims: Dims, x: Buffer, y: Buffer) -> None:
        lanes = T.ramp(0, 1, 16)
        with T.serial(4096) as i:
            T.buffer_store(y, T.Cast("float32x16", x[i * 16 + lanes]), [i * 16 + lanes])

    arguments = {"x": ("float16", 1 << 16), "y": ("float32", 1 << 16)}
    kernel = prim_func("widen", arguments, emit).with_attr("global_symbol", "widen")
    flat = tirx.transform.FlattenBuffer()(tvm.IRModule({"widen": kernel}))
    module = widened_by_bits()(flat)
    assert "float32x16" in str(flat) and "uint16x16" in str(module)
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    y = tvm.runtime.tensor(np.zeros(1 << 16, np.float32))
    tvm.compile(module, tvm.target.Target({"kind": "llvm"}))["widen"](tvm.runtime.tensor(x), y)
    finite = np.isfinite(x)
    assert np.array_equal(
        y.numpy()[finite].view(np.uint32), x[finite].astype(np.float32).view(np.uint32)
    )


@pytest.fixture(scope="module")
def web_bundle(compiled: Callable[..., Path]) -> Path:
    return compiled(DEMO, device="web", prefill_chunk=256)


@pytest.fixture(scope="module")
def web(web_bundle: Path) -> Iterator[WebProcess]:
    with WebProcess(web_bundle, context=CONTEXT) as process:
        yield process


@pytest.fixture(scope="module")
def python(demo_bundle: Path) -> Iterator[Engine]:
    with Engine(demo_bundle, context=CONTEXT) as engine:
        yield engine


def test_the_same_prompts_and_greedy_answers(web: WebProcess, python: Engine) -> None:
    # texts of seeds can differ: a rounding to int8 falls to the other side (test_engine_sampler.py)
    for messages in CONVERSATIONS:
        expected = python.template.prompt(python.tokenizer.raw, messages, None).ids
        assert web.prompt(messages) == expected, messages
        options = {"max_tokens": 32, "temperature": 0}
        said = texts(web.chat(messages, **options))
        assert said == python_texts(python, messages, **options), messages
        assert web.stats()["finish_reason"] == python.stats.finish_reason


def test_a_seed_gives_the_same_text_again(web: WebProcess) -> None:
    options = {"max_tokens": 24, "temperature": 2, "top_p": 1.0}
    said = [texts(web.chat(user("Hello"), seed=seed, **options)) for seed in (7, 7, 8)]
    assert said[0] == said[1] != said[2]


def test_dense_sparse_and_shifting(web: WebProcess, python: Engine) -> None:
    dense_len = python.manifest.dense_len
    assert dense_len
    for length in (20, dense_len - 5, dense_len + 70):
        ids = [4 + i % 1000 for i in range(length)]
        expected = list(_python_tokens(python, ids, 12))
        assert web.tokens(ids, temperature=0, max_tokens=12) == expected, length


def test_an_answer_can_be_ended(web: WebProcess) -> None:
    whole = web.chat(user("Tell me about pages."), temperature=0, max_tokens=40)
    for cancel in (False, True):
        pieces = web.chat(
            user("Tell me about pages."), most=2, cancel=cancel, temperature=0, max_tokens=40
        )
        assert pieces == whole[: len(pieces)] and 2 <= len(pieces) < len(whole)
        assert web.stats()["finish_reason"] == "cancelled"


def test_a_refusal_ends_nothing(web: WebProcess) -> None:
    """Exceptions are caught in the module, which goes on."""
    for ids, says in (([], "empty"), ([1 << 20], "vocabulary"), ([5] * 1025, "context holds 1024")):
        with pytest.raises(Refused, match=says):
            web.tokens(ids)
    with pytest.raises(Refused, match="no option"):
        web.chat(user("Hi"), temperatur=1)
    with pytest.raises(Refused, match="robot"):
        web.chat([{"role": "robot", "content": "x"}])
    assert web.tokens([5], max_tokens=1, temperature=0)


def test_a_session_goes_on_in_another_process(
    web_bundle: Path, web: WebProcess, tmp_path: Path
) -> None:
    ids = list(range(10, 700))  # sparse, and the last page not full
    first = web.tokens(ids, temperature=0, max_tokens=9)
    web.save(tmp_path / "state")
    cached = web.stats()["context_used"]
    longer = [*ids, *first, 77]
    expected = web.tokens(longer, temperature=0, max_tokens=9)
    with WebProcess(web_bundle, context=CONTEXT, resume=str(tmp_path / "state")) as other:
        assert other.tokens(longer, temperature=0, max_tokens=9) == expected
        assert other.stats()["cached_tokens"] == cached
    state = bytearray((tmp_path / "state").read_bytes())
    state[len(state) // 2] ^= 1
    (tmp_path / "state").write_bytes(state)
    with pytest.raises(Refused, match=r"without .resume"):
        WebProcess(web_bundle, context=CONTEXT, resume=str(tmp_path / "state"))


@pytest.mark.parametrize("threads", [0, 2])
def test_threads_and_memory_of_ones_own(web_bundle: Path, web: WebProcess, threads: int) -> None:
    """The same numbers, in two workers or where a browser shares no memory."""
    ids = list(range(10, 700))
    expected = web.tokens(ids, temperature=0, max_tokens=9)
    with WebProcess(web_bundle, threads=threads, context=CONTEXT) as other:
        assert other.info()["threads"] == max(threads, 1)
        assert other.tokens(ids, temperature=0, max_tokens=9) == expected


@pytest.mark.campaign
def test_relaxed_vectors_give_the_same_numbers(
    web: WebProcess, compiled: Callable[..., Path]
) -> None:
    """Where weights have 7 bits their products are exact."""
    bundle = compiled(DEMO, device="web", cpu="relaxed-simd", prefill_chunk=256)
    assert Manifest.load(bundle).target["features"] == ["simd128", "relaxed-simd"]
    with WebProcess(bundle, context=CONTEXT) as relaxed:
        for messages in CONVERSATIONS:
            options = {"max_tokens": 32, "temperature": 1, "seed": 3}
            assert texts(relaxed.chat(messages, **options)) == texts(web.chat(messages, **options))
        ids = list(range(10, 700))
        asked = {"temperature": 0, "max_tokens": 9}
        assert relaxed.tokens(ids, **asked) == web.tokens(ids, **asked)


def test_misfits_are_refused(web_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(web_bundle, tmp_path / "copy"))
    data = bytearray((copy / "params_shard_0.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "params_shard_0.bin").write_bytes(data)
    with pytest.raises(Refused, match="SHA-256"):
        WebProcess(copy)
    with pytest.raises(Refused, match="this bundle holds 1 to 8192"):
        WebProcess(web_bundle, context=1 << 20)
    with pytest.raises(BundleError, match="compiled for wasm32 web, and this machine is"):
        Engine(web_bundle)


def test_a_bundle_for_pages_is_packed_with_the_engine() -> None:
    manifest = replace(MANIFEST, target=TARGET | {"triple": TRIPLES["web"]})
    result = CompileResult.of(Path("page"), True, manifest, [], None)
    assert result.next == "minicpm-mlc package page --for web --engine"
