"""The chat page, which a browser gets at /; its files need no build and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    # nothing but these files runs, and no other site can show the page in a frame
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
NAMES = ("page.css", "page.js", "blocks.js", "chat.js", "markdown.js")
PUBLIC = ("/", *(f"/page/{name}" for name in NAMES))


async def answer(request: Request) -> Response:
    """One of PUBLIC. At the root, the page for a browser; what Ollama's clients look for, for all
    others.
    """
    if request.url.path != "/":
        return _file(request.url.path.rsplit("/", 1)[-1])
    if "text/html" in request.headers.get("accept", ""):
        return _file("index.html")
    return PlainTextResponse("Ollama is running")


def _file(name: str) -> Response:
    path = FOLDER / name
    return Response(path.read_bytes(), headers=HEADERS, media_type=TYPES[path.suffix])
