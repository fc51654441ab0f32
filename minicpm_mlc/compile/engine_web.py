"""A package for the web: a page, the engine with the model's code as WebAssembly, the bundle. A
static server serves it as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder
from minicpm_mlc.compile.engine_sources import Files, below, read, static_model, web_licences
from minicpm_mlc.compile.engine_system import WEB

CONTEXT = 4096  # tokens that the page opens the model with, where it holds more
_SERVED = (
    Path(__file__).parents[1] / "serve" / "page"
)  # the server's page, whose chat.js is another


def web_files(folder: Path, manifest: Manifest) -> Files:
    """Content and mode of each, by its name in the package. Raises CompileError."""
    model = static_model(folder, manifest)
    module = EngineBuild(WEB, model).shared(native_folder() / "web" / "src" / "web.cc")
    app = {
        "bundle": folder.resolve().name,
        "linked": model.prefix,
        "features": manifest.target["features"],
        "options": {"context": min(CONTEXT, manifest.max_context)},
    }
    index = (_SERVED / "index.html").read_text(encoding="utf-8").replace('"/page/', '"page/')
    page = {
        f"page/{path.name}": read(path)
        for place in (_SERVED, native_folder() / "web" / "page")
        for path in below(place)
        if path.suffix in (".js", ".css")
    }
    return {
        "index.html": (index.encode(), 0o644),
        **page,
        "page/app.json": (json.dumps(app, indent=2).encode(), 0o644),
        "page/minicpm.wasm": read(module),
        **web_licences(),
    }
