"""A stand-in on loopback for both hubs: the requests that huggingface_hub and modelscope_hub make,
files on a second port behind a redirect, with ranges, and what goes wrong with real ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LFS = 1 << 12  # bytes from which a file lies on the second port


@dataclass
class Stand:
    """What is served, and how badly. `files`: the repository's, by path."""

    files: dict[str, bytes]
    repository: str = "openbmb/tiny"
    status: int = 200  # of every request to the first port
    retry_after: str | None = None
    page: bytes | None = None  # what the first port answers instead
    cut_every: int = 0  # bytes after which a connection of the second port is cut
    wrong: set[str] = field(default_factory=set)  # files that come with other bytes
    more: int = 0  # bytes that follow the end of each file
    ranges: bool = True
    token: str | None = None  # what the first port asks for
    asked: list[str] = field(default_factory=list)  # paths that were asked of both, "GET 9-/cdn/x"
    tokens_at_files: list[str] = field(default_factory=list)  # credentials that the second port saw
    url: str = ""
    files_url: str = ""

    def body(self, path: str) -> bytes:
        """The bytes that are sent for a file."""
        data = self.files[path] + bytes(self.more)
        return data if path not in self.wrong else bytes([data[0] ^ 1]) + data[1:]


class Handler(BaseHTTPRequestHandler):
    """One request; `stand` and whether this is the second port are set on a subclass."""

    stand: Stand
    of_files: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answers from the stand."""
        begin = (self.headers.get("Range") or "").removeprefix("bytes=")
        self.stand.asked.append(f"{self.command} {begin}{self.path}")
        url = urlsplit(self.path)
        if self.of_files:
            self.stand.tokens_at_files += filter(None, [self.headers.get("Authorization")])
            return self._file(unquote(url.path).removeprefix("/cdn/"), self.stand.cut_every)
        if self.stand.token and self.headers.get("Authorization") != f"Bearer {self.stand.token}":
            return self._status(401)
        if self.stand.page is not None:
            return self._send(200, self.stand.page, {"Content-Type": "text/html"})
        if self.stand.status != 200:
            return self._status(self.stand.status)
        self._hub(unquote(url.path), {key: value[0] for key, value in parse_qs(url.query).items()})

    def _hub(self, path: str, query: dict[str, str]) -> None:
        repository = self.stand.repository
        known = {
            f"/api/models/{repository}": self._info,
            f"/api/models/{repository}/revision/main": self._info,
            f"/api/models/{repository}/revision/{COMMIT}": self._info,
            f"/api/models/{repository}/tree/{COMMIT}": self._tree,
            f"/api/v1/models/{repository}/repo/files": self._modelscope_files,
        }
        resolve = f"/{repository}/resolve/"
        if path in known:
            self._json(known[path]())
        elif path.startswith(resolve):
            revision, _, name = path.removeprefix(resolve).partition("/")
            self._resolve(name, revision)
        elif path == f"/api/v1/models/{repository}/repo":
            self._resolve(query["FilePath"], query["Revision"])
        else:
            self._status(404)

    def _info(self) -> Any:
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_sha1(data), **_lfs(data, "sha256")}
            for path, data in self.stand.files.items()
        ]
        return {"id": self.stand.repository, "sha": COMMIT, "siblings": siblings}

    def _tree(self) -> Any:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            | _lfs(data, "oid")
            for path, data in self.stand.files.items()
        ]

    def _modelscope_files(self) -> Any:
        files = [
            {"Path": path, "Name": path, "Size": len(data), "Sha256": sha256(data), "Type": "blob"}
            for path, data in self.stand.files.items()
        ]
        return {"Code": 200, "Success": True, "Data": {"Files": files}}

    def _resolve(self, path: str, revision: str) -> None:
        if path not in self.stand.files or revision not in ("main", "master", COMMIT):
            return self._status(404)
        data = self.stand.files[path]
        if len(data) < LFS:
            return self._file(path, 0)
        headers = {
            "X-Linked-ETag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.stand.files_url}/cdn/{path}",
        }
        self._send(302, b"", headers)

    def _file(self, path: str, cut: int) -> None:
        data = self.stand.body(path)
        wanted = (self.headers.get("Range") or "").removeprefix("bytes=")
        first, _, last = wanted.partition("-")
        if not wanted or not self.stand.ranges:
            return self._send(200, data, {"ETag": f'"{git_sha1(self.stand.files[path])}"'}, cut)
        start, stop = int(first), int(last or len(data) - 1) + 1
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        place = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._send(206, data[start:stop], place, cut)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _status(self, status: int) -> None:
        headers = {"Retry-After": self.stand.retry_after} if self.stand.retry_after else {}
        self._send(status, b"{}", headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int = 0) -> None:
        self.send_response(status)
        for key, value in ({"X-Repo-Commit": COMMIT} | headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and len(body) > cut:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


def sha256(data: bytes) -> str:
    """As both hubs list it."""
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    """Of a small file, as git has it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(data: bytes, key: str) -> dict[str, Any]:
    if len(data) < LFS:
        return {}
    return {"lfs": {key: sha256(data), "size": len(data), "pointerSize": 134}}


class Server(ThreadingHTTPServer):
    """Is silent about clients that go away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints what isn't a broken connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(stand: Stand) -> Iterator[Stand]:
    """Both ports, as long as the block runs."""
    servers = []
    for of_files in (False, True):
        kind = type("Bound", (Handler,), {"stand": stand, "of_files": of_files})
        server = Server(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    stand.url, stand.files_url = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    try:
        yield stand
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
