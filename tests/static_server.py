"""A static server, as anybody has one, for packages that are pages."""

from __future__ import annotations

import functools
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minicpm_mlc.compile.package import package_bundle


def unpacked(bundle: Path, folder: Path) -> Path:
    """The package's one folder, of a bundle for the web."""
    package_bundle(bundle, "web", folder / "out.zip", engine=True)
    with zipfile.ZipFile(folder / "out.zip") as archive:
        archive.extractall(folder)
    return folder / f"{bundle.name}-web"


@contextmanager
def serving(folder: Path, headers: Mapping[str, str] = {}) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for so far. `headers`: of every answer."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            asked.append(self.path)

        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()
