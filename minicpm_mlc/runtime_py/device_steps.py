"""The calls that make up an answer on a GPU: the likeliest token of each row is found there, logits
travel when somebody reads them, and on CUDA every call is one launch.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import DeviceError
from minicpm_mlc.bundle.manifest import CANDIDATES, Manifest
from minicpm_mlc.runtime_py.allocator import (
    called,
    device_calls,
    disturbances,
    disturbed,
    new_number,
    seen,
)
from minicpm_mlc.runtime_py.cuda_graph import Results, StepGraph, nbytes_of
from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.draft_loop import DraftLoop, levels_of
from minicpm_mlc.runtime_py.few_candidates import RowsCandidates
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.memory import DeviceMemory
from minicpm_mlc.runtime_py.protocols import (
    COMMIT,
    DRAFT_CHOOSE,
    DRAFT_EXTEND,
    DRAFT_LEVEL,
    DRAFT_STEP,
    DRAFT_TREE,
)

LEAST_WIDTH = 16  # pages of the narrowest page table that is recorded
FINENESS = 8  # widths between a power of two and the next one
MOST_GRAPHS = 64  # that a thread keeps: sizes of trees, rows of commits, levels of drafts
# the calls that are recorded, and which of their arguments is the page table
TABLES = {"decode": 3, "verify": 4, COMMIT: 2, DRAFT_EXTEND: 4, DRAFT_STEP: 5, DRAFT_TREE: 4}
WITH_LOGITS = ("decode", "verify")
Key = tuple[Any, ...]  # what tells a call from others: its function, pools and shapes
Found = tuple[DeviceRows | None, list[np.ndarray]]  # logits, and what else a call gives


def bucket(pages: int) -> int:
    """The width of a recorded step's page table: that of one step serves those after it, up to an
    eighth more tokens.
    """
    step = max(LEAST_WIDTH, 1 << (pages - 1).bit_length()) // 2 // FINENESS or 1
    return max(LEAST_WIDTH, -(-pages // step) * step)


@dataclass(frozen=True)
class Recorded:
    """A graph, and how often scratch memory had moved before it."""

    graph: StepGraph
    disturbances: int


class Recordings(threading.local):
    """A thread's graphs, those used last at the end: scratch memory is a thread's own, and goes
    with it.
    """

    def __init__(self) -> None:
        self.graphs: dict[Key, Recorded] = {}


_lying: weakref.WeakSet[DeviceRows] = weakref.WeakSet()


def keep_rows() -> None:
    """Logits that any library left on the device are copied for whoever holds them: a graph that is
    launched may write where they lie.
    """
    for rows in list(_lying):
        rows.keep()
    _lying.clear()


class DeviceSteps:
    """The functions of TABLES of a library on a GPU.

    `why_plain` says why calls are no single launch; None where they are. While it is `watched`,
    kernels are launched one by one.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        functions: Mapping[str, Sequence[Callable[..., Any]]],
        choosing: tuple[Callable[..., Any], Callable[..., Any]],
        params: Any,
        manifest: Manifest,
        drafts: DraftLoop | None,
    ) -> None:
        self._number = new_number()
        self._drafts = drafts
        self._memory, self._functions, self._params = memory, functions, params
        self._likeliest, self._candidates = choosing
        self._vocab = manifest.model["vocab_size"]
        self._widest = -(-manifest.max_context // manifest.page_size)
        self.watched = False
        self._recordings = Recordings()
        self._asked: set[str] = set()  # of which functions the last logits were read
        self._drawn: dict[str, np.ndarray] = {}  # and by which temperatures they were drawn from
        self.why_plain = None if memory.kind == "cuda" else f"{memory.kind} records no steps"

    def __call__(
        self,
        kind: str,
        rows: Sequence[np.ndarray],
        pools: Any,
        sparse: bool,
        returned: Callable[[], None],
    ) -> Found:
        """One call of `kind` with its arguments. Returns its logits, where it has some, and what
        else it gives; `returned` is called once all is launched.
        """
        rows = list(rows[:-1] if kind == DRAFT_TREE else rows)  # no level is looked at
        if self.why_plain is not None or self.watched:
            disturbed()
            return self._plain(kind, rows, pools, sparse, returned)
        table = TABLES[kind]
        rows[table] = padded(rows[table], min(self._widest, bucket(rows[table].shape[1])))
        if graph := self._graph(kind, rows, pools, sparse):
            return self._launched(kind, graph, rows, returned)
        for key in self._calls(kind, rows, pools, sparse):
            called(key)
        return self._plain(kind, rows, pools, sparse, returned)

    def _key(self, kind: str, rows: Sequence[np.ndarray], pools: Any, sparse: bool) -> Key:
        return (self._number, pools.number, kind, sparse, *(row.shape for row in rows))

    def _calls(
        self, kind: str, rows: Sequence[np.ndarray], pools: Any, sparse: bool
    ) -> Iterator[Key]:
        """The compiled calls that are made: each has its memory at hand once it was made."""
        if kind != DRAFT_TREE:
            yield self._key(kind, rows, pools, sparse)
            return
        *extend, _, _, _, _, tree = rows
        yield self._key(DRAFT_EXTEND, extend, pools, sparse)
        last = DRAFT_LEVEL if levels_of(tree) > 1 else DRAFT_CHOOSE
        yield self._key(last, [extend[TABLES[DRAFT_EXTEND]], tree[:1]], pools, sparse)

    def _plain(
        self,
        kind: str,
        rows: Sequence[np.ndarray],
        pools: Any,
        sparse: bool,
        returned: Callable[[], None],
    ) -> Found:
        """Kernel by kernel."""
        memory = self._memory
        results = self._step(kind, pools, sparse, *memory.arguments(rows))
        returned()
        copied, logits = list(map(memory.array, results.copied)), results.logits
        if logits is None:
            return None, copied

        def fetch() -> np.ndarray:
            return memory.array(logits)[:, : self._vocab]

        few = RowsCandidates(len(rows[0]), lambda wanted: self._found(logits, wanted))
        return self._rows(kind, fetch, copied, logits, few)

    def _rows(
        self,
        kind: str,
        fetch: Callable[[], np.ndarray],
        copied: list[np.ndarray],
        logits: Any,
        few: RowsCandidates,
    ) -> Found:
        ids, values, *others = copied
        noticed = functools.partial(self._asked.add, kind)
        made = DeviceRows(fetch, ids, values, nbytes_of(logits), noticed, few)
        _lying.add(made)
        return made, others

    def _found(self, logits: Any, temperatures: np.ndarray) -> list[np.ndarray]:
        """The candidates among logits on the device, kernel by kernel."""
        with device_calls:
            called((self._number, CANDIDATES, len(temperatures)))
            (given,) = self._memory.arguments([temperatures])
            found = self._memory.call(self._candidates, logits, given)
            return list(map(self._memory.array, found))

    def _step(self, kind: str, pools: Any, sparse: bool, *arguments: Any) -> Results:
        if kind == DRAFT_TREE:
            assert self._drafts
            self._drafts(arguments, pools.tensors, self._params)
            return Results([arguments[-1]])
        function, call = self._functions[kind][sparse], self._memory.call
        if kind == COMMIT:  # it gives its slots back; to read them would wait for the device
            call(function, *arguments, pools.tensors)
            return Results()
        result = call(function, *arguments, pools.tensors, self._params)
        tensors = list(result) if isinstance(result, tvm_ffi.Array) else [result]
        if kind not in WITH_LOGITS:
            return Results(tensors)
        logits, *others = tensors
        return Results([*call(self._likeliest, logits), *others], logits)

    def _graph(
        self, kind: str, rows: Sequence[np.ndarray], pools: Any, sparse: bool
    ) -> StepGraph | None:
        """The recorded call of these shapes, recorded now if it was made before; None where a plain
        one has to come first, or CUDA won't.
        """
        own, now = self._recordings, disturbances()
        key = self._key(kind, rows, pools, sparse)
        found = own.graphs.pop(key, None)
        if found is None or found.disturbances != now:
            own.graphs = {k: each for k, each in own.graphs.items() if each.disturbances == now}
            if not all(map(seen, self._calls(kind, rows, pools, sparse))):
                return None
            try:
                found = self._recorded(kind, rows, pools, sparse)
            except (DeviceError, OSError) as error:
                self.why_plain = f"CUDA records no step here: {error}"
                return None
            if disturbances() != now:
                return None  # memory ran out meanwhile
        own.graphs[key] = found
        if len(own.graphs) > MOST_GRAPHS:
            del own.graphs[next(iter(own.graphs))]
        return found.graph

    def _recorded(
        self, kind: str, rows: Sequence[np.ndarray], pools: Any, sparse: bool
    ) -> Recorded:
        arguments = self._memory.arguments(rows)
        graph = StepGraph(arguments, lambda *given: self._step(kind, pools, sparse, *given))
        return Recorded(graph, disturbances())

    def _launched(
        self,
        kind: str,
        graph: StepGraph,
        rows: Sequence[np.ndarray],
        returned: Callable[[], None],
    ) -> Found:
        keep_rows()
        graph.launch(rows)
        if kind not in WITH_LOGITS:
            returned()
            return None, graph.results()
        # who read one step's will read the next one's
        early = graph.fetch_logits() if kind in self._asked else None
        self._asked.discard(kind)
        few = self._few(kind, graph, len(rows[0]))
        returned()
        copied = graph.results()

        def fetch() -> np.ndarray:
            read = early
            if read is None:
                read = graph.fetch_logits()
                graph.wait()
            return read()[:, : self._vocab]

        return self._rows(kind, fetch, copied, graph.logits, few)

    def _few(self, kind: str, graph: StepGraph, count: int) -> RowsCandidates:
        """The candidates of a graph's rows: on their way already where the last ones were drawn
        from.
        """
        recorded = disturbances()

        def find(temperatures: np.ndarray) -> list[np.ndarray]:
            self._drawn[kind] = temperatures
            with device_calls:
                drawing = self._drawing(graph, temperatures) if disturbances() == recorded else None
                if drawing is None or disturbances() != recorded:
                    return self._found(graph.logits, temperatures)
                drawing.launch([temperatures])
                return drawing.results()

        few = RowsCandidates(count, find)
        expected = self._drawn.pop(kind, None)
        if graph.drawing is not None and expected is not None and len(expected) == count:
            graph.drawing.launch([expected])
            few.expect(expected, functools.partial(self._drew, kind, expected, graph.drawing))
        return few

    def _drew(self, kind: str, temperatures: np.ndarray, drawing: StepGraph) -> list[np.ndarray]:
        self._drawn[kind] = temperatures
        return drawing.read()

    def _drawing(self, graph: StepGraph, temperatures: np.ndarray) -> StepGraph | None:
        """What finds candidates among a graph's logits in one launch; None where that has to be
        done plainly first, or CUDA won't.
        """
        if graph.drawing is None and seen((self._number, CANDIDATES, len(temperatures))):
            given = self._memory.arguments([temperatures])

            def find(wanted: Any) -> Results:
                return Results(list(self._memory.call(self._candidates, graph.logits, wanted)))

            with suppress(DeviceError):
                graph.drawing = StepGraph(given, find)
        return graph.drawing


def padded(page_tables: np.ndarray, width: int) -> np.ndarray:
    """Page tables int32 [b, width]; what is behind a sequence's pages is not read."""
    wide = np.zeros((len(page_tables), width), np.int32)
    wide[:, : page_tables.shape[1]] = page_tables
    return wide
