"""`minicpm-mlc serve`: listens, opens a bundle, and answers until it is told to stop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.base.installed import pip_install
from minicpm_mlc.serve.options import Serving

OPEN = (
    "warning: {host} is reachable by other machines and there is no key: everybody there may use "
    "the model; give --api-key-file, or --host 127.0.0.1"
)


def serve(bundle: str, serving: Serving, say: Callable[[str], None], **engine_options: Any) -> None:
    """Serves a bundle until SIGTERM or Ctrl-C; whoever asks before it is loaded gets status 503.
    Raises EngineError where the port is taken or a library is missing, and what opening the bundle
    raises.
    """
    check_libraries()
    from minicpm_mlc.serve.access import Access, Guard
    from minicpm_mlc.serve.app import Settings, make_routes
    from minicpm_mlc.serve.listening import Server, bound, url_of
    from minicpm_mlc.serve.loading import Entrance, Opening
    from minicpm_mlc.serve.opening import open_model

    log_to_stderr()
    access = Access(serving.host, serving.keys, serving.origins, serving.hosts)
    if not access.local and not serving.keys:
        print(OPEN.format(host=serving.host), file=sys.stderr, flush=True)
    entrance = Entrance()
    server = Server(Guard(entrance, access), serving.grace, entrance.close)
    settings = Settings(access, serving.reasoning_field, serving.most_bytes)
    with bound(serving.host, serving.port) as listener:

        def open_all(opened: ExitStack) -> None:
            served, room = open_model(bundle, serving, engine_options, opened)
            entrance.open(make_routes(served, room, settings), room)
            say(f"{served.name} is served at {url_of(listener)} (Ctrl-C ends it)")

        with Opening(open_all, failed=server.end):
            server.run(sockets=[listener])


def check_libraries() -> None:
    """Raises EngineError where the extra isn't installed."""
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise EngineError(f"serve needs starlette and uvicorn: {pip_install('serve')}") from None
    _ = starlette, uvicorn


def log_to_stderr() -> None:
    """A line for each request."""
    logger = logging.getLogger("minicpm_mlc.serve")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
