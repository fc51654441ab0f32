"""What a package with the engine holds beside the bundle: minicpm-run, and all sources to build the
engine into an app, ours and those of TVM's runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import (
    PROGRAM,
    EngineBuild,
    StaticModel,
    native_folder,
    tvm_files,
)
from minicpm_mlc.targets.link import PLATFORMS, is_static

STATIC_TARGET = "aarch64-linux-musl"  # runs on any arm64 Linux, Android's kernel among them
PARTS = {"linux": ("runtime", "engine"), "android": ("runtime", "engine", "android")}


def engine_files(folder: Path, manifest: Manifest, platform: str) -> dict[str, tuple[bytes, int]]:
    """Content and mode of each, by its name in the package. Raises CompileError for a bundle that
    the engine doesn't run.
    """
    program = _build(folder, manifest, platform).program().read_bytes()
    native = native_folder()
    sources = {
        f"native/{path.relative_to(native).as_posix()}": path
        for part in PARTS[platform]
        for path in _below(native / part)
    }
    sources |= {f"native/wheels/{name}": path for name, path in tvm_files().items()}
    files = {name: (path.read_bytes(), 0o644) for name, path in sorted(sources.items())}
    return {PROGRAM: (program, 0o755), **files}


def _build(folder: Path, manifest: Manifest, platform: str) -> EngineBuild:
    machine = manifest.target["triple"].partition("-")[0]
    on_cpu = manifest.target["device"] == "cpu"
    if platform == "linux" and on_cpu and machine in PLATFORMS:
        return EngineBuild(PLATFORMS[machine].zig)
    static = next(filter(is_static, sorted(manifest.files)), None)
    if platform == "android" and on_cpu and static:
        return EngineBuild(STATIC_TARGET, StaticModel(folder / static, manifest.symbol_prefix))
    raise CompileError(
        f"--engine: the engine runs CPU bundles on Linux and Android, and {folder} is for "
        f"{manifest.target['device']} on {manifest.target['triple']}; compile one with "
        "--device cpu, --device linux-arm64, or --device android --gpu none"
    )


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder, at any depth."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
