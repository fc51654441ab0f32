"""How much of a run is spent in compiled functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter

COMPILED = (
    "_prefill",
    "_decode",
    "_verify",
    "_commit",
    "_draft_extend",
    "_draft_step",
)  # of a Library, some by gear


class Watch:
    """Times the compiled functions of an engine, and of its draft bundle. `seconds` may be set back
    to 0.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        drafts = [
            drafter.library
            for drafter in engine.drafters.values()
            if isinstance(drafter, ModelDrafter)
        ]
        for library in (engine.library, *drafts):
            for name in COMPILED:
                found = getattr(library, name, None)
                if found is not None:
                    timed = (
                        [self._timed(call) for call in found]
                        if isinstance(found, list | tuple)
                        else self._timed(found)
                    )
                    setattr(library, name, timed)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            self.seconds += time.perf_counter() - start
            return result

        return timed
