"""What a package with the engine holds beside the bundle, by platform."""

from __future__ import annotations

from pathlib import Path

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, Manifest
from minicpm_mlc.compile.engine_android import android_files
from minicpm_mlc.compile.engine_build import PROGRAM, EngineBuild
from minicpm_mlc.compile.engine_devices import APIS
from minicpm_mlc.compile.engine_ios import ios_files
from minicpm_mlc.compile.engine_sources import Files, engine_sources, read
from minicpm_mlc.compile.engine_web import web_files
from minicpm_mlc.targets.link import PLATFORMS


def engine_files(folder: Path, manifest: Manifest, platform: str) -> Files:
    """Content and mode of each, by its name in the package. Raises CompileError for a bundle that
    the engine doesn't run.
    """
    device = manifest.target["device"]
    gpus = APIS if platform == "linux" or CPU_MANIFEST in manifest.files else ()
    if platform not in _FILES or device not in ("cpu", *(gpus if platform in _WITH_GPU else ())):
        raise CompileError(
            f"--engine: the engine runs CPU bundles on Linux, Android, iOS and in pages, those for "
            "OpenCL and Vulkan on Linux, and on Android if they also have a library for the "
            f"processor; {folder} is for {device} on {manifest.target['triple']}; compile one with "
            "--device cpu, --device linux-arm64, --device web, --device android --with-cpu, "
            "--device android --gpu none or --device ios --gpu none"
        )
    return _FILES[platform](folder, manifest)


def _linux(folder: Path, manifest: Manifest) -> Files:
    machine = manifest.target["triple"].partition("-")[0]
    devices = tuple(name for name in APIS if name == manifest.target["device"])
    program = EngineBuild(PLATFORMS[machine].zig, devices=devices).program()
    return {PROGRAM: read(program, 0o755), **engine_sources("runtime", "engine", "src")}


_WITH_GPU = ("linux", "android")
_FILES = {"linux": _linux, "android": android_files, "ios": ios_files, "web": web_files}
