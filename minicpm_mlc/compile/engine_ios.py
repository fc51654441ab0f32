"""A package for iOS: a Swift package of the engine's sources and the model's code; the bundle."""

from __future__ import annotations

import plistlib
from pathlib import Path

from minicpm_mlc.bundle.manifest import READ_KERNEL, Manifest
from minicpm_mlc.compile.engine_build import native_folder
from minicpm_mlc.compile.engine_sources import Files, below, engine_sources, read, static_model

FRAMEWORK = "MinicpmModel.xcframework"
_SLICE, _ARCHIVE = "ios-arm64", "libminicpm_model.a"
INFO = {  # Apple's format of a framework that holds one static library
    "AvailableLibraries": [
        {
            "BinaryPath": _ARCHIVE,
            "LibraryIdentifier": _SLICE,
            "LibraryPath": _ARCHIVE,
            "SupportedArchitectures": ["arm64"],
            "SupportedPlatform": "ios",
        }
    ],
    "CFBundlePackageType": "XFWK",
    "XCFrameworkFormatVersion": "1.0",
}


def ios_files(folder: Path, manifest: Manifest) -> Files:
    """Content and mode of each, by its name in the package. Raises CompileError."""
    own = native_folder() / "ios"
    model = static_model(folder, manifest)
    swift = {path.relative_to(own).as_posix(): read(path) for path in below(own)}
    native = {
        name: swift.pop(name) for name in list(swift) if name.startswith(("include/", "src/"))
    }
    return {
        **swift,  # Package.swift at the root
        **engine_sources("runtime", "engine"),
        **{f"native/ios/{name}": file for name, file in native.items()},
        "native/ios/src/model.cc": (model_source(model.prefix).encode(), 0o644),
        f"{FRAMEWORK}/Info.plist": (plistlib.dumps(INFO), 0o644),
        f"{FRAMEWORK}/{_SLICE}/{_ARCHIVE}": read(model.objects),
    }


def anchors(prefix: str) -> list[str]:
    """A symbol of each object in the model's archive: its functions, its virtual machine's code,
    its thread pool.
    """
    code = f"{prefix}__tvm_ffi__library_bin"
    return [f"__tvm_ffi_{prefix}{READ_KERNEL}", code, "minicpm_pool_launch"]


def model_source(prefix: str) -> str:
    """C++ that tells the model's prefix, and names its objects: a linker takes of an archive only
    what is named, and these register themselves.
    """
    names = enumerate(anchors(prefix))
    declared = [f'extern const char part{i} __asm__("_{name}");' for i, name in names]
    listed = ", ".join(f"&part{i}" for i in range(len(declared)))
    return "\n".join(
        [
            "// Names a symbol of each of the model's objects: so the linker takes all of them.",
            '#include "../include/minicpm_model.h"',
            "",
            'extern "C" {',
            *declared,
            f"__attribute__((used)) const char* const minicpm_model_parts[] = {{{listed}}};",
            "",
            f'const char* minicpm_linked_model(void) {{ return "{prefix}"; }}',
            "}",
            "",
        ]
    )
