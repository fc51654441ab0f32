"""Bundles of tiny models, compiled once per test session, whichever of its processes asks first."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from filelock import FileLock

from minicpm_mlc.compile.config.model_config import ModelConfig

# Ctrl-C works in the tests and in what they start, also where a shell started them behind its back.
signal.signal(signal.SIGINT, signal.default_int_handler)

LAYERS = [
    Path(folder) / "vulkan" / "explicit_layer.d"
    for folder in ("/usr/share", "/usr/local/share", "/etc")
]
VALIDATED = any((folder / "VkLayer_khronos_validation.json").exists() for folder in LAYERS)
if VALIDATED:  # before any test opens a Vulkan driver
    os.environ.setdefault("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation")

# PoCL compiles each kernel once, for all sizes, and not once more for every size that is launched
os.environ.setdefault("POCL_WORK_GROUP_SPECIALIZATION", "0")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder of the session, where the bundles that it compiles are trusted."""
    os.environ["XDG_STATE_HOME"] = str(shared_folder(tmp_path_factory) / "state")
    return Path(os.environ["XDG_STATE_HOME"])


@contextmanager
def trusted_by_all(state: Path) -> Iterator[None]:
    """Around a compilation for the whole session, whatever the test that asked set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        yield


# begun first, the longest before all, so that neither process waits for the other's last file
LONGEST = (
    *("test_gpu_bundles", "test_linux_arm64", "test_op_grid", "test_engine_web", "test_engine_run"),
    *("test_gpu_smoke", "test_metal", "test_cuda", "test_compile", "test_kv_model", "test_model"),
    *("test_real_model", "test_android", "test_calibrate", "test_eagle", "test_bench_attention"),
    *("test_engine_devices", "test_ops_linear_int8", "test_soak", "test_windows_run"),
)
PLACES = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others in their order."""
    items.sort(key=lambda item: PLACES.get(item.path.stem, len(PLACES)))


@pytest.fixture(scope="module", params=["opencl", "vulkan"])
def device(request: pytest.FixtureRequest) -> str:
    """Each kind of GPU device that is here; the others are skipped."""
    from gpu_cases import device_named

    if device_named(request.param) is None:
        pytest.skip(f"no {request.param} device with its runtime: make devices")
    return request.param


@pytest.fixture
def vulkan_silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fails a test in which Vulkan's validation layer, where it is installed, found anything."""
    yield
    printed = "".join(capfd.readouterr())
    assert "Validation" not in printed, printed


class TinyBundle:
    """A compiled tiny model and what it was made from: float32 weights by published name."""

    def __init__(
        self, path: Path, checkpoint: Path, config: ModelConfig, weights: dict[str, np.ndarray]
    ) -> None:
        self.path, self.checkpoint, self.config, self.weights = path, checkpoint, config, weights


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session have."""
    temporary = tmp_path_factory.getbasetemp()
    return temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, state_home: Path) -> Callable[..., Path]:
    """compiled(source, **options of compile_model) -> the bundle, made by the first test of the
    session that asks for it. Tests only read it. `named`: what all processes call a source that
    each of them has in a folder of its own.
    """
    from minicpm_mlc.compile import compile_model

    shared = shared_folder(tmp_path_factory)

    def build(source: Path, *, named: Any = None, **options: Any) -> Path:
        key = repr((named or source, sorted(options.items())))
        bundle = shared / f"bundle-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        with FileLock(f"{bundle}.lock"), trusted_by_all(state_home):
            if not bundle.exists():
                compile_model(source, bundle, **options)
        return bundle

    return build


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, compiled: Callable[..., Path]
) -> Callable[..., TinyBundle]:
    """tiny_bundle(preset, scheme="f32", kv=None, **config overrides), shared by all tests that ask
    for the same.
    """

    @cache
    def written(config: ModelConfig) -> tuple[Path, dict[str, np.ndarray]]:
        checkpoint = tmp_path_factory.mktemp("tiny")
        return checkpoint, write_checkpoint(checkpoint, config, dtype="f32")

    def build(
        preset: str, scheme: str = "f32", kv: str | None = None, **overrides: Any
    ) -> TinyBundle:
        config = tiny_config(preset, **overrides)
        checkpoint, weights = written(config)
        kv = kv or ("f32" if scheme == "f32" else "f16")
        path = compiled(checkpoint, named=config, scheme=scheme, kv=kv, prefill_chunk=2048)
        return TinyBundle(path, checkpoint, config, weights)

    return build


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles get an empty library: for tests of what else is in them."""
    from minicpm_mlc.compile.pipeline import Program

    def write(program: Program, folder: Path, *_: object) -> None:
        for library in program.target.libraries:
            (folder / library).touch()

    monkeypatch.setattr(Program, "write", write)


class RealModel(NamedTuple):
    """SmolLM2-135M-Instruct as a checkpoint: transformers' Llama, and the same as a MiniCPM4.1
    with sparse attention.
    """

    llama: Path
    minicpm: Path


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    """Both forms of its checkpoint; skips where it can't be had."""
    from real_model import sparse_checkpoint, write_real_checkpoint

    folder = shared_folder(tmp_path_factory) / "real-model"
    model = RealModel(folder / "llama", folder / "minicpm")
    with FileLock(f"{folder}.lock"):
        if not model.minicpm.exists():
            write_real_checkpoint(model.llama)
            sparse_checkpoint(model.llama, model.minicpm)
    return model


@pytest.fixture(scope="session")
def real_bundle(real_model: RealModel, compiled: Callable[..., Path]) -> Callable[..., Path]:
    """real_bundle(scheme, kv=None): the model with a sparse gear, compiled once per session."""

    def build(scheme: str, kv: str | None = None) -> Path:
        options = {"scheme": scheme, "kv": kv, "context": 4096, "prefill_chunk": 256}
        return compiled(real_model.minicpm, **options)

    return build


EXAMPLES = Path(__file__).parents[1] / "examples" / "demo_model"
DEMO = EXAMPLES / "MiniCPM4.1-demo"


@pytest.fixture(scope="session")
def demo_on(compiled: Callable[..., Path]) -> Callable[..., Path]:
    """demo_on(device, **options): the demo model with its EAGLE-3 head."""
    options = {"draft": EXAMPLES / "MiniCPM4.1-demo-Eagle3", "prefill_chunk": 256}
    return lambda device, **more: compiled(DEMO, device=device, **options, **more)


@pytest.fixture(scope="session")
def demo_bundle(demo_on: Callable[..., Path]) -> Path:
    """The same on this processor in the default scheme."""
    return demo_on("cpu")
