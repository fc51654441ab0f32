"""Packages with the engine: the program answers from the unpacked archive, on Linux and, as a
static program with the model's code in it, on any arm64 Linux, under qemu.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_bundle import MANIFEST, TARGET, write

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.package import package_bundle

DEMO = Path(__file__).parents[1] / "examples/demo_model/MiniCPM4.1-demo"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
QUESTION = "What is 4827 + 356?"


def unpacked(bundle: Path, platform: str, folder: Path) -> Path:
    """The package's one folder."""
    package_bundle(bundle, platform, folder / "out.tar", engine=True)
    with tarfile.open(folder / "out.tar") as archive:
        archive.extractall(folder)
    return folder / f"{bundle.name}-{platform}"


def answers(command: list[str], *options: str) -> str:
    result = subprocess.run(
        [*command, "--temperature=0", "--max-tokens=40", "--context=1024", *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def python_answer(engine: Engine) -> str:
    asked = [{"role": "user", "content": QUESTION}]
    events = engine.chat_events(asked, temperature=0, max_tokens=40, speculate="off")
    return "".join(text for kind, text in events if kind == "answer") + "\n"


def test_a_linux_package_answers_without_python(demo_bundle: Path, tmp_path: Path) -> None:
    folder = unpacked(demo_bundle, "linux", tmp_path)
    bundle = folder / demo_bundle.name
    with Engine(demo_bundle, context=1024) as engine:
        expected = python_answer(engine)
    assert answers([str(folder / "minicpm-run"), str(bundle)], "--prompt", QUESTION) == expected
    readme = (folder / "README.md").read_text()
    assert f"./minicpm-run {demo_bundle.name} --prompt" in readme
    for name in ("native/engine/include/minicpm.h", "native/runtime/CMakeLists.txt"):
        assert (folder / name).is_file()
    assert (folder / "native/wheels/tvm/src/runtime/vm/vm.cc").is_file()
    first = (tmp_path / "out.tar").read_bytes()
    package_bundle(demo_bundle, "linux", tmp_path / "again.tar", engine=True)
    assert (tmp_path / "again.tar").read_bytes() == first


def test_bundles_that_the_engine_does_not_run_are_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "gpu", replace(MANIFEST, target=TARGET | {"device": "cuda"}))
    with pytest.raises(CompileError, match=r"runs CPU bundles .*--device android --gpu none"):
        package_bundle(bundle, "linux", tmp_path / "out.tar", engine=True)


@pytest.mark.campaign
@pytest.mark.skipif(not QEMU, reason="no qemu-aarch64")
def test_an_android_package_is_a_static_program(tmp_path: Path) -> None:
    bundle, here = tmp_path / "phone", tmp_path / "here"
    compile_model(DEMO, bundle, device="android", gpu="none", scheme="f32")
    compile_model(DEMO, here, scheme="f32")
    folder = unpacked(bundle, "android", tmp_path)
    command = [str(QEMU), "-cpu", "max", str(folder / "minicpm-run"), str(folder / "phone")]
    ids = list(range(4, 600))  # beyond dense_len
    with Engine(here, context=1024) as engine:
        expected = python_answer(engine)
        with engine.steps(ids, speculate="off") as (steps, logits):
            tokens = []
            while len(tokens) < 8 and (token := int(logits.argmax())) not in engine.eos_token_ids:
                tokens.append(token)
                logits = steps.next(token)
    assert answers(command, "--prompt", QUESTION, "--threads=2") == expected
    said = answers(command, "--ids", ",".join(map(str, ids)), "--max-tokens=8")
    assert [int(word) for word in said.split(",")] == tokens


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_cmake_builds_the_same_with_the_compiler_that_is_here(
    demo_bundle: Path, tmp_path: Path
) -> None:
    """And without Python, from the wheels' files alone."""
    folder = unpacked(demo_bundle, "linux", tmp_path)
    wheels = folder / "native/wheels"
    configure = ["cmake", "-S", str(folder / "native/engine"), "-B", str(tmp_path / "build")]
    configure += [f"-DTVM={wheels / 'tvm'}", f"-DTVM_FFI={wheels / 'tvm_ffi'}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build"), "-j2"], check=True)
    with Engine(demo_bundle, context=1024) as engine:
        expected = python_answer(engine)
    command = [str(tmp_path / "build/minicpm-run"), str(demo_bundle)]
    assert answers(command, "--prompt", QUESTION) == expected
    chat = [str(tmp_path / "build/chat"), str(demo_bundle)]
    said = subprocess.run(chat, input=f"{QUESTION}\n", text=True, capture_output=True, check=True)
    assert said.stdout.startswith("> ") and len(said.stdout) > 10
    (wheels / "apache_tvm-0.27.0.post1.dist-info").rename(wheels / "apache_tvm-0.28.0.dist-info")
    refused = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert refused.returncode and "is not of apache-tvm 0.27.0.post1" in refused.stderr
