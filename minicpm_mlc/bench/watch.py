"""How much of a run is spent in compiled functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter


class Watch:
    """Times the compiled functions of an engine, and of its draft bundle, where they are in this
    process. `seconds` may be set back to 0.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        drafts = [
            drafter.library
            for drafter in engine.drafters.values()
            if isinstance(drafter, ModelDrafter)
        ]
        for library in (engine.library, *drafts):
            if library.local:
                for calls in library.local.functions.values():
                    calls[:] = [self._timed(call) for call in calls]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            self.seconds += time.perf_counter() - start
            return result

        return timed
