"""Decode steps on a GPU: the likeliest token is found there, logits travel when somebody reads
them, and on CUDA the whole step is one launch.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import DeviceError
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.runtime_py.allocator import disturbances, disturbed
from minicpm_mlc.runtime_py.cuda_graph import Results, StepGraph, nbytes_of
from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.memory import DeviceMemory

LEAST_WIDTH = 16  # pages of the narrowest page table that is recorded
FINENESS = 8  # widths between a power of two and the next one
Key = tuple[int, int, bool, int]  # rows, pages, gear, which pools


def bucket(pages: int) -> int:
    """The width of a recorded step's page table: that of one step serves those after it, up to an
    eighth more tokens.
    """
    step = max(LEAST_WIDTH, 1 << (pages - 1).bit_length()) // 2 // FINENESS or 1
    return max(LEAST_WIDTH, -(-pages // step) * step)


@dataclass(frozen=True)
class Recorded:
    """A graph, the pools that it works on, and how often scratch memory had moved before it."""

    graph: StepGraph
    pools: Any
    disturbances: int


class Recordings(threading.local):
    """A thread's graphs: scratch memory is a thread's own, and goes with it."""

    def __init__(self) -> None:
        self.graphs: dict[Key, Recorded] = {}
        self.last_plain: tuple[Key, int] | None = None


class DeviceDecoder:
    """The function `decode` of a library on a GPU, dense and, where there is one, sparse.

    `why_plain` says why steps are no single launch; None where they are. While it is `watched`,
    kernels are launched one by one.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        functions: Sequence[Callable[..., Any]],
        likeliest: Callable[..., Any],
        params: Any,
        manifest: Manifest,
    ) -> None:
        self._memory, self._functions, self._params = memory, functions, params
        self._likeliest, self._vocab = likeliest, manifest.model["vocab_size"]
        self._widest = -(-manifest.max_context // manifest.page_size)
        self.watched = False
        self._recordings = Recordings()
        self._last: Callable[[], DeviceRows | None] = lambda: None  # the rows of the last graph's
        self._asked = False  # whether somebody read the logits of the step before
        self.why_plain = None if memory.kind == "cuda" else f"{memory.kind} records no steps"

    def __call__(
        self, rows: Sequence[np.ndarray], pools: Any, sparse: bool, returned: Callable[[], None]
    ) -> tuple[DeviceRows, list[np.ndarray]]:
        """One step over token ids, positions and slots int32 [b] and page tables int32 [b, p].
        Returns its logits and what else it gives; `returned` is called once all is launched.
        """
        rows = list(rows)
        if self.why_plain is not None or self.watched:
            return self._plain(rows, pools, sparse, returned)
        rows[-1] = padded(rows[-1], min(self._widest, bucket(rows[-1].shape[1])))
        key = len(rows[0]), rows[-1].shape[1], sparse, id(pools)
        if graph := self._graph(key, rows, pools):
            return self._launched(graph, rows, returned)
        results = self._plain(rows, pools, sparse, returned)
        self._recordings.last_plain = key, disturbances()
        return results

    def _plain(
        self, rows: Sequence[np.ndarray], pools: Any, sparse: bool, returned: Callable[[], None]
    ) -> tuple[DeviceRows, list[np.ndarray]]:
        """Kernel by kernel."""
        disturbed()
        memory = self._memory
        results = self._step(pools, sparse, *memory.arguments(rows))
        returned()
        ids, values, *others = map(memory.array, results.copied)
        logits = results.logits

        def fetch() -> np.ndarray:
            return memory.array(logits)[:, : self._vocab]

        return DeviceRows(fetch, ids, values, nbytes_of(logits)), others

    def _step(self, pools: Any, sparse: bool, *arguments: Any) -> Results:
        function, call = self._functions[sparse], self._memory.call
        result = call(function, *arguments, pools.tensors, self._params)
        logits, *others = result if isinstance(result, tvm_ffi.Array) else [result]
        ids, values = call(self._likeliest, logits)
        return Results(logits, ids, values, others)

    def _graph(self, key: Key, rows: Sequence[np.ndarray], pools: Any) -> StepGraph | None:
        """The recorded step of these shapes, recorded now if the step before was of them; None
        where a plain step has to come first, or CUDA won't.
        """
        own, now = self._recordings, disturbances()
        found = own.graphs.get(key)
        if found and found.disturbances == now:
            return found.graph
        self._keep_last()  # its memory may be freed below
        own.graphs = {k: each for k, each in own.graphs.items() if each.disturbances == now}
        if own.last_plain != (key, now):
            return None
        try:
            graph = StepGraph(
                self._memory.arguments(rows), lambda *given: self._step(pools, key[2], *given)
            )
        except (DeviceError, OSError) as error:
            self.why_plain = f"CUDA records no step here: {error}"
            return None
        own.graphs[key] = Recorded(graph, pools, now)
        return graph

    def _launched(
        self, graph: StepGraph, rows: Sequence[np.ndarray], returned: Callable[[], None]
    ) -> tuple[DeviceRows, list[np.ndarray]]:
        self._keep_last()
        asked, self._asked = self._asked, False  # who read one step's will read the next one's
        graph.launch(rows)
        early = graph.fetch_logits() if asked else None
        returned()
        ids, values, *others = graph.results()

        def fetch() -> np.ndarray:
            self._asked = True
            read = early
            if read is None:
                read = graph.fetch_logits()
                graph.wait()
            return read()[:, : self._vocab]

        made = DeviceRows(fetch, ids, values, graph.logits_bytes)
        self._last = weakref.ref(made)
        return made, others

    def _keep_last(self) -> None:
        """The next graph writes over the last one's logits: whoever holds them gets a copy."""
        if last := self._last():
            asked = self._asked
            last.keep()
            self._asked = asked
        self._last = lambda: None


def padded(page_tables: np.ndarray, width: int) -> np.ndarray:
    """Page tables int32 [b, width]; what is behind a sequence's pages is not read."""
    wide = np.zeros((len(page_tables), width), np.int32)
    wide[:, : page_tables.shape[1]] = page_tables
    return wide
