"""A bundle with a GPU's library and the processor's: what it holds, and who answers from it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import tiny_config, write_checkpoint
from engine_process import built
from odd_bundles import copy_of, rewrite_allowed
from test_engine_run import _python_tokens

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, Manifest, read_bundle
from minicpm_mlc.compile import compile_model
from minicpm_mlc.runtime_py.verify_files import verify_files

CONFIG = tiny_config("MiniCPM5-1B", num_layers=1)
IDS = [5, 6, 7, *range(20, 90)]
WRONG = r"computes \w+ wrong \(NMSE .*\), so no answer of it can be trusted"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", CONFIG, dtype="f32")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, compiled: Callable[..., Path]) -> Path:
    """For OpenCL and this processor."""
    folder = tmp_path_factory.mktemp("both")
    write_checkpoint(folder, CONFIG, dtype="f32")
    options = {"scheme": "f32", "kv": "f32", "context": 1024, "prefill_chunk": 64}
    return compiled(folder, named=CONFIG, device="opencl", with_cpu=True, **options)


def answered(
    bundle: Path, cache: Path, *options: str, devices: tuple[str, ...] = ()
) -> tuple[str, str]:
    """What minicpm-run says on both streams; `cache`: what it remembers of devices."""
    ids = "--ids=" + ",".join(map(str, IDS))
    command = [str(built(devices=devices)), str(bundle), ids, "--max-tokens=6", "--temperature=0"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    )
    return done.stdout, done.stderr.replace("(cut at 6 tokens)\n", "")


def on_processor(bundle: Path) -> str:
    """Python's greedy tokens by the processor's library, as minicpm-run prints them."""
    with Engine(bundle, device="cpu", context=256) as engine:
        assert engine.manifest.target["device"] == "cpu"
        return ",".join(map(str, _python_tokens(engine, IDS, 6))) + "\n"


@pytest.mark.parametrize("scheme, same", [("f32", True), ("w4a", False)])
def test_weights_are_shared_where_both_read_them(
    no_code: None, checkpoint: Path, tmp_path: Path, scheme: str, same: bool
) -> None:
    """OpenCL multiplies floats, and this processor int8 beside integer weights."""
    made = compile_model(
        checkpoint, tmp_path / "out", device="opencl", with_cpu=True, scheme=scheme
    )
    first, second = (Manifest.load(tmp_path / "out", device) for device in (None, "cpu"))
    shared = {"tensor-cache.json", "params_shard_0.bin", "tokenizer.json", "engine.json"}
    weights = {"tensor-cache.json", "params_shard_0.bin"}
    own = {"model.so", "kernel-cases.npz", *(() if same else weights)}
    cpu_own = {f"cpu-{name}" for name in own}
    assert {CPU_MANIFEST, *own, *cpu_own, *shared} <= first.files.keys()
    assert not {CPU_MANIFEST, *own} & second.files.keys()
    assert cpu_own | (shared - own) <= second.files.keys()
    assert (first.target["device"], second.target["device"]) == ("opencl", "cpu")
    assert first.symbol_prefix != second.symbol_prefix
    assert any(("the same weights" if same else "weights of its own") in n for n in made.notes)
    assert verify_files(tmp_path / "out").files == len(first.files)


def test_a_second_library_is_for_a_gpus_bundle(no_code: None, checkpoint: Path, tmp_path: Path):
    with pytest.raises(CompileError, match="--device cpu is compiled for the processor already"):
        compile_model(checkpoint, tmp_path / "out", with_cpu=True)
    compile_model(checkpoint, tmp_path / "out", scheme="f32")
    for device in ("vulkan", "opencl"):
        with pytest.raises(
            BundleError, match=f"no library for {device}, it is for cpu; .*with-cpu"
        ):
            read_bundle(tmp_path / "out", device=device)
    assert read_bundle(tmp_path / "out", device="cpu").manifest.part == ""


def test_a_damaged_second_manifest_is_refused(both: Path, tmp_path: Path) -> None:
    folder = copy_of(both, tmp_path / "copy")
    text = (
        (folder / CPU_MANIFEST).read_bytes().replace(b'"max_context": 1024', b'"max_context": 1025')
    )
    (folder / CPU_MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=f"{CPU_MANIFEST} is damaged: its SHA-256"):
        read_bundle(folder, device="cpu")
    assert (
        f"{CPU_MANIFEST} is damaged: its SHA-256" in answered(folder, tmp_path, "--device=cpu")[1]
    )
    rewrite_allowed(folder)  # a hash that fits doesn't make it the library's
    with pytest.raises(BundleError, match=r"max_context.*1025.*was compiled for 1024"):
        Engine(folder, device="cpu", context=256)


def test_the_processor_answers_where_there_is_no_gpu(both: Path, tmp_path: Path) -> None:
    expected = on_processor(both)
    said, warned = answered(both, tmp_path)
    assert said == expected
    assert warned == (
        "Warning: the bundle was compiled for opencl, and this engine was built without it; the "
        "processor answers\n"
    )
    assert answered(both, tmp_path, "--device=cpu") == (expected, "")
    assert (
        "has no library for metal, it is for opencl and cpu"
        in answered(both, tmp_path, "--device=metal")[1]
    )


@pytest.mark.campaign  # PoCL compiles all kernels twice
def test_the_processor_answers_where_the_gpu_is_wrong(both: Path, tmp_path: Path) -> None:
    from gpu_cases import device_named

    if device_named("opencl") is None:
        pytest.skip("no OpenCL device with its runtime: make devices")
    devices, cache = ("opencl",), tmp_path / "cache"
    right, warned = answered(both, cache, devices=devices)
    assert right == on_processor(both) and not warned
    marks = cache / "minicpm-mlc"
    assert len(list((marks / "devices").iterdir())) == 1
    wrong = copy_of(both, tmp_path / "wrong")
    library = (wrong / "model.so").read_bytes()
    assert b" 0.000000e+00f" in library  # of OpenCL C: what sums start from
    (wrong / "model.so").write_bytes(library.replace(b" 0.000000e+00f", b" 2.000000e+00f"))
    rewrite_allowed(wrong)
    said, warned = answered(wrong, cache, devices=devices)
    assert said == right and re.fullmatch(rf"Warning: .* {WRONG}; the processor answers\n", warned)
    (mark,) = (marks / "wrong-devices").iterdir()
    mark.write_text("this one is known")  # nothing is tried again
    warned = "Warning: this one is known"
    assert answered(wrong, cache, devices=devices) == (right, f"{warned}; the processor answers\n")
    mark.unlink()
    assert "wrong" in answered(wrong, cache, "--device=opencl", devices=devices)[1]
