"""`minicpm-mlc serve`: opens a bundle and answers until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.bundle.manifest import manifest_sha256
from minicpm_mlc.runtime_py.device_check import check_device
from minicpm_mlc.runtime_py.engine import Engine

if TYPE_CHECKING:
    from minicpm_mlc.serve.app import Settings

MISSING = "serve needs starlette and uvicorn: pip install 'minicpm-mlc[serve]'"
BACKLOG = 1024
KEY_VARIABLE = "MINICPM_MLC_API_KEY"
OPEN = (
    "warning: {host} is reachable by other machines and there is no key: everybody there may use "
    "the model; give --api-key-file, or --host 127.0.0.1"
)


@dataclass(frozen=True)
class Serving:
    """What the command's options say, beside those of the engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    parallel: int | None = None
    max_waiting: int = 64
    name: str | None = None
    strict_model: bool = False
    tool_format: str = "auto"
    reasoning_field: str = "reasoning_content"
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    grace: float = 10.0
    state: str | None = None  # a folder where computed prompts outlive the server
    most_bytes: int = 32 << 20


def serve(bundle: str, serving: Serving, say: Callable[[str], None], **engine_options: Any) -> None:
    """Serves a bundle until SIGTERM or Ctrl-C. Raises EngineError where the port is taken or a
    library is missing.
    """
    _check_libraries()
    state = None if serving.state is None else state_file(serving.state, bundle)
    with _opened(bundle, state, parallel=serving.parallel, **engine_options) as engine:
        check_device(engine)
        run(engine, serving, say)
        if state:
            engine.save(state)


def state_file(folder: str | Path, bundle: str) -> Path:
    """Where a bundle's computed prompts are kept, in a folder that is made for them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{manifest_sha256(bundle)[:16]}.state"


def _opened(bundle: str, state: Path | None, **options: Any) -> Engine:
    """The engine, with what was computed before where that can be read."""
    if state and state.exists():
        try:
            return Engine(bundle, resume=state, **options)
        except EngineError as error:
            print(f"warning: --state begins anew ({error})", file=sys.stderr, flush=True)
    return Engine(bundle, **options)


def run(engine: Engine, serving: Serving, say: Callable[[str], None]) -> None:
    """Serves an engine, which nothing else may use meanwhile."""
    from minicpm_mlc.runtime_py.scheduler.jobs import JobBackend
    from minicpm_mlc.serve.access import Access
    from minicpm_mlc.serve.app import Settings
    from minicpm_mlc.serve.room import Room
    from minicpm_mlc.serve.served import Served

    _log_to_stderr()
    served = Served(engine, serving.name, serving.tool_format, serving.strict_model)
    access = Access(serving.host, serving.keys, serving.origins, serving.hosts)
    if not access.local and not serving.keys:
        print(OPEN.format(host=serving.host), file=sys.stderr, flush=True)
    settings = Settings(access, serving.reasoning_field, serving.most_bytes)
    backend = JobBackend(engine)
    try:
        _listen(served, Room(backend, engine.parallel, serving.max_waiting), settings, serving, say)
    finally:
        backend.close()


def _listen(
    served: Any, room: Any, settings: Settings, serving: Serving, say: Callable[[str], None]
) -> None:
    import uvicorn

    from minicpm_mlc.serve.app import make_app

    class Server(uvicorn.Server):
        """Tells the room of the end, and leaves with status 0 where uvicorn would be killed by
        the signal that it has answered.
        """

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            room.closing = True
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {
                number: signal.signal(number, self.handle_exit)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        make_app(served, room, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=max(1, round(serving.grace)),
    )
    socket = _bound(serving.host, serving.port)
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"{served.name} is served at http://{shown}:{port} (Ctrl-C ends it)")
    with socket:
        Server(config).run(sockets=[socket])


def _bound(host: str, port: int) -> Any:
    import socket

    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # who connects before the application is up, waits
        return listener
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"{host}:{port} can't be listened at ({error}); give another --port, 0 for any free one"
        ) from None


def given_keys(keys: Sequence[str], file: str | Path | None) -> list[str]:
    """The keys of --api-key, of the lines of --api-key-file, else of the environment. Raises
    EngineError.
    """
    found = list(keys)
    if file is not None:
        try:
            found += Path(file).read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"--api-key-file {file} can't be read ({error})") from None
    elif not found:
        found = [os.environ.get(KEY_VARIABLE, "")]
    found = [key.strip() for key in found if key.strip()]
    if file is not None and not found:
        raise EngineError(f"--api-key-file {file} has no key; write one on a line")
    return found


def _check_libraries() -> None:
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise EngineError(MISSING) from None
    _ = starlette, uvicorn


def _log_to_stderr() -> None:
    logger = logging.getLogger("minicpm_mlc.serve")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
