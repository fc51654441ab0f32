"""A package for Android: a Gradle project of the engine, the model's code and an app that chats; a
static program for the command line; the bundle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minicpm_mlc.bundle.manifest import Manifest, manifest_sha256
from minicpm_mlc.compile.engine_build import PROGRAM, EngineBuild
from minicpm_mlc.compile.engine_devices import api_headers
from minicpm_mlc.compile.engine_sources import Files, engine_sources, read, static_model

_MODULE = "native/android/minicpm"
STATIC_TARGET = "aarch64-linux-musl"  # runs on any arm64 Linux, Android's kernel among them


def android_files(folder: Path, manifest: Manifest) -> Files:
    """Content and mode of each, by its name in the package. Of a GPU's bundle the app has both
    libraries, the program the processor's. Raises CompileError.
    """
    device = manifest.target["device"]
    model = static_model(folder, manifest)
    processor = static_model(folder, Manifest.load(folder, "cpu"))
    properties = {
        "bundle": folder.resolve().name,
        "linked": model.prefix,
        "sha256": manifest_sha256(folder),
    }
    text = "".join(f"{name}={value}\n" for name, value in properties.items())
    program = EngineBuild(STATIC_TARGET, replace(processor, prefix=model.prefix)).program()
    return {
        PROGRAM: read(program, 0o755),
        **engine_sources("runtime", "engine", "android"),
        **({} if device == "cpu" else _gpu_files(device)),
        "native/android/model.properties": (text.encode(), 0o644),
        **{f"{_MODULE}/{each.objects.name}": read(each.objects) for each in (model, processor)},
    }


def _gpu_files(device: str) -> Files:
    """The device's runtime, and its API's headers, which an NDK may lack."""
    return {
        **engine_sources("src"),
        **{f"native/apis/{name}": read(path) for name, path in api_headers(device).items()},
        f"{_MODULE}/devices.cmake": (f"set(MINICPM_DEVICES {device})\n".encode(), 0o644),
    }
