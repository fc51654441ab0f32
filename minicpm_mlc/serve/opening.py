"""Opens a bundle to be served, with what was computed before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.bundle.manifest import Manifest, manifest_sha256
from minicpm_mlc.runtime_py.device_check import check_device
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.scheduler.jobs import JobBackend
from minicpm_mlc.serve.options import Serving
from minicpm_mlc.serve.room import Room
from minicpm_mlc.serve.served import Served


def open_model(
    bundle: str, serving: Serving, engine_options: Mapping[str, Any], opened: ExitStack
) -> tuple[Served, Room]:
    """The model, and the places of its requests. All is closed with `opened`; with --state, what
    was computed is written before.
    """
    state = (
        None
        if serving.state is None
        else state_file(serving.state, bundle, engine_options.get("device"))
    )
    engine = opened.enter_context(
        _engine(bundle, state, parallel=serving.parallel, **engine_options)
    )
    check_device(engine)
    if state:
        opened.callback(engine.save, state)
    served = Served(engine, serving.name, serving.tool_format, serving.strict_model)
    backend = JobBackend(engine)
    opened.callback(backend.close)
    return served, Room(backend, engine.parallel, serving.max_waiting)


def state_file(folder: str | Path, bundle: str, device: str | None = None) -> Path:
    """Where the prompts that a bundle's library computed are kept, in a folder that is made for
    them. Raises EngineError where it can't be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"--state {folder}: the folder can't be made ({error.strerror}); name another"
        ) from None
    digest = manifest_sha256(bundle, Manifest.load(bundle, device).part)
    return Path(folder) / f"{digest[:16]}.state"


def _engine(bundle: str, state: Path | None, **options: Any) -> Engine:
    """The engine, with what was computed before where that can be read."""
    if state and state.exists():
        try:
            return Engine(bundle, resume=state, **options)
        except EngineError as error:
            print(f"warning: --state begins anew ({error})", file=sys.stderr, flush=True)
    return Engine(bundle, **options)
