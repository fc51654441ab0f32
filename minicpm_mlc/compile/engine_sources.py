"""Files of packages with the engine: its sources and those of TVM's runtime, and licences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.manifest import CPU_PART, Manifest
from minicpm_mlc.compile.engine_build import StaticModel, native_folder, tvm_files
from minicpm_mlc.compile.engine_system import zig_folder
from minicpm_mlc.targets.link import is_static

Files = dict[str, tuple[bytes, int]]  # content and mode of each, by its name in the package
_WEB_LIBRARIES = {  # what zig links into WebAssembly, and its licence
    "wasi-libc": "libc/wasi/LICENSE-MIT",
    "cloudlibc": "libc/wasi/libc-bottom-half/cloudlibc/LICENSE",
    "musl": "libc/wasi/libc-top-half/musl/COPYRIGHT",
    "libcxx": "libcxx/LICENSE.TXT",
    "libunwind": "libunwind/LICENSE.TXT",
}


def read(path: Path, mode: int = 0o644) -> tuple[bytes, int]:
    """A file as it is."""
    return path.read_bytes(), mode


def engine_sources(*parts: str) -> Files:
    """Those folders of native/, and in native/wheels/ what of TVM's wheels they are built with.
    Raises CompileError.
    """
    native = native_folder()
    paths = {
        f"native/{path.relative_to(native).as_posix()}": path
        for part in parts
        for path in below(native / part)
    }
    paths |= {f"native/wheels/{name}": path for name, path in tvm_files().items()}
    return {name: read(path) for name, path in sorted(paths.items())}


def web_licences() -> Files:
    """Of the libraries that zig links into WebAssembly. Raises CompileError."""
    folder = zig_folder()
    return {f"licenses/{name}": read(folder / path) for name, path in _WEB_LIBRARIES.items()}


def static_model(folder: Path, manifest: Manifest) -> StaticModel:
    """The library that an app links. Raises CompileError for a bundle without one."""
    own = (
        name for name in sorted(manifest.files) if name.startswith(CPU_PART) == bool(manifest.part)
    )
    library = next(filter(is_static, own), None)
    if library is None:
        raise CompileError(f"{folder} has no library that an app links; compile it again")
    return StaticModel(folder / library, manifest.symbol_prefix)


def below(folder: Path) -> Iterator[Path]:
    """The files in a folder, at any depth."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
