"""Who may ask: the Host header, the page that a request comes from, keys."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from minicpm_mlc.serve import page_files
from minicpm_mlc.serve.errors import ApiError, form_of
from minicpm_mlc.serve.loading import HEALTH
from minicpm_mlc.serve.surface import refusal

HOSTS = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")
LOCAL_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
APP_PAGE = re.compile(r"(app|file|tauri|vscode-webview|vscode-file)://.*")
METHODS = "GET, POST, OPTIONS"
HEADERS = re.compile(
    r"authorization|content-type|x-api-key|user-agent|accept|"
    r"anthropic-[a-z-]+|openai-[a-z-]+|x-stainless-[a-z-]+"
)
PUBLIC = (*HEALTH, *page_files.PUBLIC)


@dataclass(frozen=True)
class Access:
    """The rules. An empty `keys` lets everybody in."""

    host: str = "127.0.0.1"  # that the server is bound to
    keys: Collection[str] = ()
    origins: Collection[str] = ()  # pages that may ask beside those of this machine; "*": all
    hosts: Collection[str] = ()  # further names of this server

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def host_allowed(self, header: str) -> bool:
        """Whether a Host header names this server. A page of another site whose name was pointed
        at this machine says its own name here.
        """
        name = re.sub(r":\d+$", "", header).lower()
        return not self.local or name in {*HOSTS, self.host.lower(), *map(str.lower, self.hosts)}

    def origin_allowed(self, origin: str) -> bool:
        """Whether a page may ask."""
        if "*" in self.origins or origin in self.origins:
            return True
        return bool(LOCAL_PAGE.fullmatch(origin) or APP_PAGE.fullmatch(origin))

    def key_allowed(self, headers: Mapping[str, str]) -> bool:
        """Whether a request shows a key, compared in constant time."""
        if not self.keys:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        shown = (headers.get("x-api-key") or bearer).encode("latin-1")
        found = [hmac.compare_digest(shown, key.encode()) for key in self.keys]
        return any(found)

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> ApiError | None:
        """Why a request may not ask; None where it may."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.host_allowed(host):
            return ApiError(
                403, f"this server is not called {host[:80]!r}; --allowed-host NAME allows a name"
            )
        if origin is not None and not self.origin_allowed(origin):
            return ApiError(
                403, f"pages of {origin[:80]!r} may not ask; --cors-origin allows an origin"
            )
        if method != "OPTIONS" and path not in PUBLIC and not self.key_allowed(headers):
            return ApiError(401, "the API key is missing or wrong: Authorization: Bearer KEY")
        return None


class Guard:
    """An ASGI application behind these rules."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        error = self._access.refusal(scope["method"], scope["path"], headers)
        if error:
            response = refusal(form_of(scope["path"]), error)
            if error.status == 403:  # the page doesn't get to read it
                origin = None
            return await response(scope, receive, _with_origin(send, origin))
        if scope["method"] == "OPTIONS":
            return await _preflight(headers)(scope, receive, _with_origin(send, origin))
        await self._app(scope, receive, _with_origin(send, origin))


def _preflight(headers: Headers) -> Response:
    asked = headers.get("access-control-request-headers", "").lower()
    names = [name for name in map(str.strip, asked.split(",")) if HEADERS.fullmatch(name)]
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join(names),
            "Access-Control-Max-Age": "600",
        },
    )


def _with_origin(send: Any, origin: str | None) -> Any:
    """Sends with the header that lets a page read the answer."""
    if origin is None:
        return send

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        await send(message)

    return sending
