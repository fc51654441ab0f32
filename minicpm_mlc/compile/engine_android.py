"""A package for Android: a Gradle project of the engine, the model's code and an app that chats; a
static program for the command line; the bundle.
"""

from __future__ import annotations

from pathlib import Path

from minicpm_mlc.bundle.manifest import Manifest, manifest_sha256
from minicpm_mlc.compile.engine_build import PROGRAM, EngineBuild
from minicpm_mlc.compile.engine_sources import Files, engine_sources, read, static_model

STATIC_TARGET = "aarch64-linux-musl"  # runs on any arm64 Linux, Android's kernel among them


def android_files(folder: Path, manifest: Manifest) -> Files:
    """Content and mode of each, by its name in the package. Raises CompileError."""
    model = static_model(folder, manifest)
    properties = {
        "bundle": folder.resolve().name,
        "linked": model.prefix,
        "sha256": manifest_sha256(folder),
    }
    text = "".join(f"{name}={value}\n" for name, value in properties.items())
    return {
        PROGRAM: read(EngineBuild(STATIC_TARGET, model).program(), 0o755),
        **engine_sources("runtime", "engine", "android"),
        "native/android/model.properties": (text.encode(), 0o644),
        "native/android/minicpm/model.tar": read(model.objects),
    }
