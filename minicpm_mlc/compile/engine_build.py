"""native/engine and TVM's runtime beneath it, built by zig from our sources and those in TVM's
wheels. What was built is kept in the user's cache, by all that it was made of.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, cast

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.files import cache_folder
from minicpm_mlc.compile.engine_devices import APIS, device_sources, link_headers
from minicpm_mlc.compile.engine_devices import FLAGS as DEVICE_FLAGS
from minicpm_mlc.compile.engine_system import EngineSystem, system_for
from minicpm_mlc.targets.link import zig

TVM = "0.27.0.post1"  # whose sources native/runtime's headers fit
WHEELS = {"apache-tvm": TVM, "apache-tvm-ffi": "0.1.14"}
PROGRAM = "minicpm-run"
TVM_ARCHIVE = "libminicpm_tvm.a"
PARTS = 4  # of TVM's runtime that are compiled at a time
_PACKAGE = Path(__file__).parents[1]
FLAGS = (
    "-O2",
    "-g0",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-DTVM_FFI_USE_LIBBACKTRACE=0",
    "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",  # a handler of SIGSEGV is the app's own business
    "-DTVM_FFI_CMAKE_LITTLE_ENDIAN=1",
    f'-DMINICPM_TVM="{TVM}"',
)
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def native_folder() -> Path:
    """native/, of a checkout or inside the installed package. Raises CompileError without one."""
    for folder in (_PACKAGE / "native", _PACKAGE.parent / "native"):
        if (folder / "engine" / "sources.txt").is_file():
            return folder
    raise CompileError("the engine's sources are not installed; try: pip install minicpm-mlc")


def wheel_folders() -> dict[str, Path]:
    """tvm's and tvm_ffi's folders. Raises CompileError for other versions than ours."""
    for name, known in WHEELS.items():
        seen = importlib.metadata.version(name)
        if not seen.startswith(known):
            raise CompileError(
                f"{name} {seen} is installed, and the engine is built from the sources of {known}; "
                "pip install minicpm-mlc in a new environment"
            )
    specs = {name: importlib.util.find_spec(name) for name in ("tvm", "tvm_ffi")}
    return {
        name: Path(next(iter(spec.submodule_search_locations or [""])))
        for name, spec in specs.items()
        if spec
    }


def tvm_files() -> dict[str, Path]:
    """The wheels' files that native/runtime is built from, by their places beside each other, and
    the METADATA that tells their versions. Raises CompileError as wheel_folders does.
    """
    folders = wheel_folders()
    sites = {folder.parent for folder in folders.values()}
    kinds = ("include/**/*.h", "src/**/*.h", "src/**/*.cc")
    files = [path for folder in folders.values() for kind in kinds for path in folder.glob(kind)]
    for site in sites:
        files += site.glob("apache_tvm*.dist-info/METADATA")
    unneeded = ("extra/contrib", "/testing/", "/disco/", "/rpc/", "hexagon", "/cuda/")
    return {
        path.relative_to(site).as_posix(): path
        for site in sites
        for path in sorted(files)
        if path.is_relative_to(site) and not any(part in path.as_posix() for part in unneeded)
    }


@dataclass(frozen=True)
class StaticModel:
    """A model's objects, a .tar of `compile`, and what their symbols begin with."""

    objects: Path
    prefix: str


@dataclass(frozen=True)
class EngineBuild:
    """The engine for one system, by zig's name of it. With `model` its programs are static and run
    that one: they need nothing of the system. With `devices` they run bundles for these too.
    """

    target: str
    model: StaticModel | None = None
    devices: tuple[str, ...] = ()

    def program(self, main: Path | None = None) -> Path:
        """minicpm-run, or another program over minicpm.h, built where it is not in the cache.
        Raises CompileError.
        """
        main = main or self._engine / "tools" / f"{PROGRAM}.cc"
        parts = [*self._parts, main.read_bytes()]
        return self._kept(main.stem, parts, lambda out: self._link(main, out, self._kind))

    def shared(self, source: Path, headers: Iterable[Path] = ()) -> Path:
        """A shared library of the engine and a file over it, for programs that load it by name; it
        shows no symbols but that file's and minicpm.h's. Raises CompileError.
        """
        parts = [*self._parts, source.read_bytes(), b"shared"]
        flags = tuple(f"-isystem{folder}" for folder in headers)
        kind, name = self._system.library, self._system.name.format(source.stem)
        return self._kept(name, parts, lambda out: self._link(source, out, kind, flags))

    def archives(self) -> list[Path]:
        """What else the system takes, libminicpm.a and libminicpm_tvm.a, the same way."""
        system = self._system
        engine = _listed(self._engine, {"src": self._engine / "src"})
        tvm = _listed(self._runtime, {**self._wheels, "native": self._runtime})
        # warnings are for who wrote the sources
        packed = {
            "libsystem.a": (self._tvm_parts, system.sources, ("-w", *system.source_flags)),
            "libminicpm.a": (self._engine_parts, [*system.kept(engine), *system.own], WARNINGS),
            TVM_ARCHIVE: (self._tvm_parts, system.kept(tvm), ("-w",)),
        }
        kept = [
            self._kept(name, parts, partial(self._pack, sources, flags, name == TVM_ARCHIVE))
            for name, (parts, sources, flags) in packed.items()
            if sources
        ]
        if self.devices:
            kept.append(self._kept("libminicpm_gpu.a", self._device_parts, self._pack_devices))
        return kept

    @cached_property
    def _native(self) -> Path:
        return native_folder()

    @cached_property
    def _system(self) -> EngineSystem:
        return system_for(self.target, self._native)

    @property
    def _engine(self) -> Path:
        return self._native / "engine"

    @property
    def _runtime(self) -> Path:
        return self._native / "runtime"

    @cached_property
    def _wheels(self) -> dict[str, Path]:
        return wheel_folders()

    @cached_property
    def _tvm_parts(self) -> list[bytes]:
        """What the archive is made of: the wheels by their versions, and our own files."""
        installed = [importlib.metadata.version(n) for n in ("apache-tvm-ffi", "ziglang")]
        system = self._system
        return [
            repr((self.target, FLAGS, TVM, installed)).encode(),
            repr(system.flags).encode(),
            *(path.read_bytes() for path in (*system.own, *system.sources)),
            *(part for folder in system.headers for part in _contents(folder)),
            *_contents(self._runtime),
        ]

    @property
    def _parts(self) -> list[bytes]:
        """What a program or a library is made of, but for the file over the engine."""
        model = self.model
        linked = [model.prefix.encode(), model.objects.read_bytes()] if model else []
        devices = self._device_parts if self.devices else []
        return [*self._engine_parts, repr(self._system.link).encode(), *linked, *devices]

    @cached_property
    def _device_parts(self) -> list[bytes]:
        folders = [
            APIS[name].found() / part for name in self.devices for part in APIS[name].folders
        ]
        runtimes = [self._native / "src" / name for name in ("common", *self.devices)]
        contents = (part for folder in (*runtimes, *folders) for part in _contents(folder))
        return [*self._tvm_parts, repr((self.devices, DEVICE_FLAGS)).encode(), *contents]

    @cached_property
    def _engine_parts(self) -> list[bytes]:
        return [*self._tvm_parts, *_contents(self._engine)]

    def _pack(self, sources: Sequence[Path], flags: Iterable[str], joined: bool, out: Path) -> None:
        with TemporaryDirectory(dir=out.parent) as scratch:
            sources = _joined(sources, Path(scratch)) if joined else sources
            zig("ar", "rcsD", str(out), *self._compiled(sources, Path(scratch), flags))

    def _pack_devices(self, out: Path) -> None:
        with TemporaryDirectory(dir=out.parent) as scratch:
            headers = link_headers(self.devices, Path(scratch))
            flags = (*WARNINGS, *DEVICE_FLAGS, f"-isystem{headers}")
            sources = device_sources(self._native, self.devices)
            zig("ar", "rcsD", str(out), *self._compiled(sources, Path(scratch), flags))

    def _link(
        self, main: Path, out: Path, kind: tuple[str, ...], flags: tuple[str, ...] = ()
    ) -> None:
        archives = map(str, self.archives())
        with TemporaryDirectory(dir=out.parent) as scratch:
            objects = self._compiled([main], Path(scratch), (*WARNINGS, *self._defined, *flags))
            objects += self._model_objects(Path(scratch))
            whole = ("-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive")
            how = (*self._system.link, *kind)
            # archives first: what they bring is not taken from the system's
            zig("c++", "-target", self.target, *how, "-o", str(out), *whole, *objects)

    @property
    def _kind(self) -> tuple[str, ...]:
        """A library that is loaded finds TVM's functions in the program."""
        return ("-static",) if self.model else ("-rdynamic",)

    @property
    def _defined(self) -> tuple[str, ...]:
        return (f'-DMINICPM_LINKED="{self.model.prefix}"',) if self.model else ()

    def _model_objects(self, folder: Path) -> list[str]:
        paths: list[Path] = []
        if self.model is None:
            return []
        with tarfile.open(self.model.objects) as archive:
            for i, member in enumerate(archive):
                paths.append(folder / f"model-{i}.o")
                paths[-1].write_bytes(cast("IO[bytes]", archive.extractfile(member)).read())
        return [str(path) for path in paths]

    def _compiled(self, sources: Sequence[Path], folder: Path, flags: Iterable[str]) -> list[str]:
        objects = [folder / f"{i}-{source.stem}.o" for i, source in enumerate(sources)]
        common = (*self._arguments(flags), "-c")
        precompiled = self._precompiled

        def compiled(pair: tuple[Path, Path]) -> None:
            language = ("cc",) if pair[0].suffix == ".c" else ("c++", "-std=c++17")
            read = () if pair[0] in self._system.sources else precompiled
            zig(*language, *common, *read, "-o", str(pair[1]), str(pair[0]))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compiled, zip(sources, objects, strict=True)))
        return [str(path) for path in objects]

    def _arguments(self, flags: Iterable[str]) -> tuple[str, ...]:
        own = [*self._system.headers, *(self._engine / name for name in ("include", "src"))]
        headers = [*(f"-I{p}" for p in own), *(f"-isystem{p}" for p in self._headers)]
        return ("-target", self.target, *FLAGS, *self._system.flags, *flags, *headers)

    @cached_property
    def _precompiled(self) -> tuple[str, ...]:
        """What spares the compiler reading TVM's headers for every source: a third of its time."""
        header = self._engine / "src" / "precompiled.h"
        seen = self._wheels["tvm_ffi"] / "include" / "tvm" / "ffi" / "function.h"
        read = [(str(path), path.stat().st_mtime_ns) for path in (header, seen)]  # and no others
        parts = [*self._tvm_parts, header.read_bytes(), repr(read).encode()]
        how = ("c++", "-std=c++17", *self._arguments(()), "-x", "c++-header", str(header), "-o")
        made = self._kept("precompiled.pch", parts, lambda out: zig(*how, str(out)))
        return "-include-pch", str(made)

    @property
    def _headers(self) -> list[Path]:
        """TVM's headers; the sources name ours as ../support/ and ../../support/ from theirs."""
        tvm, ffi = self._wheels["tvm"], self._wheels["tvm_ffi"]
        ours = self._runtime / "headers"
        return [tvm / "include", ffi / "include", ours, ours / "tvm", ours / "tvm" / "support"]

    def _kept(self, name: str, parts: Iterable[bytes], make: Callable[[Path], None]) -> Path:
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
        try:
            folder = cache_folder() / "engine" / digest
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            raise CompileError(
                f"what the engine is built of can't be kept ({error}); set XDG_CACHE_HOME"
            ) from None
        built = folder / name
        if not built.exists():
            partial = folder / f".{name}.{os.getpid()}"
            make(partial)
            partial.replace(built)
        return built


def _joined(sources: Sequence[Path], folder: Path) -> list[Path]:
    """PARTS files that include the sources, whose headers are then read once in each."""
    parts = [folder / f"part{i}.cc" for i in range(PARTS)]
    for i, part in enumerate(parts):
        part.write_text("".join(f'#include "{source}"\n' for source in sources[i::PARTS]))
    return parts


def _listed(folder: Path, roots: dict[str, Path]) -> list[Path]:
    """The files of a folder's sources.txt, whose first parts are these roots' names."""
    lines = (folder / "sources.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    split = [name.partition("/") for name in names]
    return [roots[root] / rest for root, _, rest in split]


def _contents(folder: Path) -> list[bytes]:
    """Names and bytes of all files in a folder and below."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.name.encode() + b"\0" + path.read_bytes() for path in paths]
