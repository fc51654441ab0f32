"""The engine: a bundle's library, the pages of its cache, and the calls that compute on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicpm_mlc.base.errors import ContextError, EngineError, PromptTooLongError
from minicpm_mlc.bundle.manifest import Bundle, manifest_sha256
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.runtime_py.admission import admit
from minicpm_mlc.runtime_py.answering import Answering
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.defaults import (
    cache_tokens,
    choose_context,
    choose_parallel,
    eos_token_ids,
    largest_context,
)
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.generation import Generation, Limits, TokenReader
from minicpm_mlc.runtime_py.generation import Ids as ReadIds
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.out_of_memory import within_memory
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.prefix_cache import PrefixCache
from minicpm_mlc.runtime_py.prompt_scores import PromptScores
from minicpm_mlc.runtime_py.protocols import Library, Machine
from minicpm_mlc.runtime_py.request import Options, Request, Stats
from minicpm_mlc.runtime_py.roofline import Roofline, measured_bandwidth, roofline
from minicpm_mlc.runtime_py.sampler import likeliest
from minicpm_mlc.runtime_py.scheduler.driver import Driver
from minicpm_mlc.runtime_py.scheduler.reading import read
from minicpm_mlc.runtime_py.scheduler.scheduler import Scheduler
from minicpm_mlc.runtime_py.scheduler.task import Task
from minicpm_mlc.runtime_py.slots import Slot, Slots
from minicpm_mlc.runtime_py.speculative.draft_bundle import (
    RECURRENT,
    ModelDrafter,
    open_draft_bundle,
)
from minicpm_mlc.runtime_py.speculative.drafters import MISSING, open_drafters
from minicpm_mlc.runtime_py.speculative.policy import Policy
from minicpm_mlc.runtime_py.speculative.steps import Drafter, Steps
from minicpm_mlc.runtime_py.turns import ENDED, Turns

if TYPE_CHECKING:
    from typing_extensions import Unpack


CLOSED = "the engine is closed; open the bundle again: Engine(bundle)"


class Engine(Answering):
    """Runs a bundle. It keeps the keys and values of conversations, so that only what is new is
    computed.

    Any number of calls of generate, chat and chat_events may go on at once, in any threads; any
    thread may read a stream on. Up to `parallel` of them are answered together, the others wait.
    A stream that nobody reads rests while no other call computes.

    One sequence is the engine's own: of a call that runs alone, and what logits, prefill, decode,
    truncate, steps, cached_tokens and selected are about. These calls go one at a time, another
    thread's raises EngineError, and a stream that has this sequence is over.

    Options of a call: see `Options`. `stats` are the figures of the call that began last, and
    `block_reads` int64 [blocks] counts how often its decode steps chose each block of the context
    by score; `prefill_chunk` is how many prompt tokens are computed at once.
    """

    def __init__(
        self,
        bundle_path: str | Path,
        context: int | None = None,
        threads: int | None = None,
        attention: str = "auto",
        draft: str | Path | None = None,
        remote: Machine | None = None,
        sha256: str | Collection[str] | None = None,
        trust: bool = False,
        parallel: int | None = None,
        resume: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        """Loads the bundle, a program that runs with this process's rights: one that was compiled
        on this machine, or that the caller trusts.

        Args:
            context: most tokens in the cache; None: as many as the bundle and memory allow.
            threads: None: the physical cores.
            attention: "auto" shifts from dense to sparse at the model's dense_len; "dense" or
                "sparse" forces one.
            draft: a smaller bundle with the same tokenizer, to guess tokens for this one.
            remote: the machine that runs the bundles; None: this one.
            sha256: of the manifests that may run (inspect prints it), no others.
            trust: trust the bundles for good, wherever they come from.
            parallel: most answers at once, with room for as many whole contexts as memory holds;
                None: up to 8, which share the room of one.
            resume: a file of `save`, to go on from.
            device: "cpu" takes the processor's library of a bundle that also has a GPU's; None: the
                first one.

        Raises:
            BundleError: a bundle is damaged, not trusted or made for another machine, or the draft
                bundle has another tokenizer.
            ContextError: the context exceeds the model's, or the device's free memory.
            EngineError: the saved state is damaged or another bundle's.
        """
        _require_threads(threads)
        _admit((bundle_path, draft), sha256, trust)
        self._machine: Machine = remote or LocalMachine()
        bundle = self._machine.read_bundle(bundle_path, device)
        self.path = bundle.path
        self.manifest = manifest = bundle.manifest
        self.vocab_size: int = manifest.model["vocab_size"]
        available = self._machine.free_memory(manifest.target["device"])
        self.context = choose_context(manifest, context, available)
        self._largest_context = largest_context(manifest, available)
        self.threads = threads or self._machine.cores
        self.prefill_chunk = manifest.prefill_chunk
        self.gears = Gears.of(manifest, attention)
        files = SmallFiles(bundle.path)
        super().__init__(files, manifest.model["bos_token_id"], self.vocab_size)
        self.defaults = default_sampling(files)
        self.eos_token_ids = eos_token_ids(manifest, files)
        self.stats = Stats(context=self.context)
        self.block_reads = np.zeros(-(-self.context // manifest.page_size), np.int64)
        self._bandwidth: float | None = None  # bytes/s of the device's memory, once it is measured
        self._turns = Turns()
        self._prompt_scores = PromptScores()
        self.parallel = choose_parallel(manifest, parallel)
        tokens = cache_tokens(manifest, self.context, parallel or 1, available)
        cache = PagedCache(self._machine.open_library(bundle, self.threads), tokens)
        self._start(cache, draft, resume)

    def _start(
        self, cache: PagedCache, draft: str | Path | None, resume: str | Path | None
    ) -> None:
        """Opens what computes on the cache, which is filled from the file `resume`."""
        small = None if draft is None else self._open_drafter(Path(draft))
        slots = self._open_slots(cache, small)
        self._scheduler: Scheduler | None = Scheduler(
            slots, cache.pages, self.parallel, self._turns
        )
        self._driver: Driver | None = Driver(self._scheduler, self._turns)
        if resume is not None:
            slots.load(resume, manifest_sha256(self.path, self.manifest.part))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the cache and the library. Every later call raises EngineError."""
        with self._turns.call():
            if self._scheduler:
                self._scheduler.close(EngineError(CLOSED))
            self._scheduler = self._driver = None

    @within_memory
    def logits(self, token_ids: Ids[int]) -> np.ndarray:
        """Logits float32 [n, vocab] after each of n tokens. The cache then holds just these
        tokens.
        """
        logits = np.empty((len(token_ids), self.vocab_size), np.float32)
        done = 0
        for rows in self.logits_by_chunk(token_ids, self.prefill_chunk):
            logits[done : done + len(rows)] = rows
            done += len(rows)
        return logits

    def logits_by_chunk(self, token_ids: Ids[int], chunk: int) -> Iterator[np.ndarray]:
        """The same piece by piece, each float32 [rows, vocab] of at most `chunk` tokens, which are
        no more than `prefill_chunk`.
        """
        ids = self._checked(token_ids)
        with self._own() as model:
            model.truncate(0)
            for _, rows in model.prefill(ids, chunk, all_rows=True):
                yield rows

    def prefill(self, token_ids: Ids[int]) -> np.ndarray:
        """Appends tokens to the cached sequence; returns the last one's logits, float32 [vocab]."""
        with self._own() as model:
            ids = self._checked(token_ids, len(model))
            (_, logits) = deque(model.prefill(ids, self.prefill_chunk), maxlen=1)[0]
        return logits[-1]

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token to the cached sequence; returns its logits, float32 [vocab]."""
        with self._own() as model:
            return model.decode(*self._checked([token_id], len(model)))

    def greedy(self, token_id: int) -> int:
        """Appends one token to the cached sequence; returns the likeliest one after it. A GPU finds
        it by itself, and keeps the logits.
        """
        with self._own() as model:
            return likeliest(model.step(*self._checked([token_id], len(model))))

    @contextmanager
    def steps(
        self, token_ids: Ids[int], **options: Unpack[Options]
    ) -> Iterator[tuple[Steps, np.ndarray]]:
        """For measuring: computes a prompt; yields what to decode with, and the prompt's logits
        float32 [vocab].
        """
        generation = self.generation(self.request(token_ids, options), ReadIds())
        with self._own():
            self._note(generation)
            logits = np.asarray(generation.start(self.scheduler.slots.own))
            try:
                yield generation.steps, logits
            finally:
                generation.close()

    def open_sequence(self, context: int | None = None) -> CachedModel:
        """An empty sequence beside the engine's own one, on the same pages: all sequences together
        hold `self.context` tokens. `context`: its most tokens; None: the engine's.

        Its calls take no turn: whoever opens it makes one call of this engine at a time, and calls
        its `free` in the end; until then answers have so much less room. Raises EngineError for a
        model that keeps state per sequence: its library has room for one.
        """
        if self.manifest.recurrent:
            raise EngineError(f"{self.path} keeps state per sequence; open a second Engine")
        return CachedModel(self.model.cache, context or self.context, self.gears)

    def save(self, path: str | Path) -> None:
        """Writes all computed tokens that are kept to a file, all or nothing, for
        Engine(bundle, resume=path). A prompt that is being computed is saved as far as it is; an
        on_prefill may save.

        Raises EngineError where that can't be, and for a model that keeps state per sequence.
        """
        with self._turns.call():
            self.scheduler.slots.save(path, manifest_sha256(self.path, self.manifest.part))

    def shift(self, attention: str) -> None:
        """From now on runs in another gear, as `attention` of the constructor says. Raises
        EngineError where there is none.
        """
        with self._own():
            self.gears = Gears.of(self.manifest, attention)
            self.scheduler.slots.forget()  # pages of the other gear
            for slot in self.scheduler.slots.all:
                slot.model.gears = self.gears

    def roofline(self) -> Roofline | None:
        """How near decoding in the call that began last came to what the device's memory allows.
        The memory is measured the first time that somebody asks, on a CPU with a buffer of up to
        512 MB. None where no token was decoded, and for another machine's bundle.
        """
        local = self.library.local
        if local is None:
            return None
        if self._bandwidth is None:
            with self._own():
                self._bandwidth = measured_bandwidth(local)
        return roofline(self, self._bandwidth)

    @property
    def selected(self) -> list[np.ndarray]:
        """What the last decode read, if sparsely: per layer the block numbers, int32 [kv_heads,
        budget], -1 padded.
        """
        return self.model.selected

    @property
    def cached_tokens(self) -> list[int]:
        """The token ids whose keys and values are cached."""
        return list(self.model.sequence.tokens)

    def truncate(self, length: int) -> None:
        """Cuts the cached sequence back to its first `length` tokens."""
        with self._own() as model:
            if not 0 <= length <= len(model):
                raise ContextError(
                    f"the cached sequence has {len(model)} tokens, it can't be cut to {length}"
                )
            model.truncate(length)

    @property
    def model(self) -> CachedModel:
        """The engine's own sequence. Raises EngineError once the engine is closed."""
        return self.scheduler.slots.own.model

    @property
    def drafters(self) -> dict[str, Drafter]:
        """Who guesses tokens for the engine's own sequence, by name."""
        return self.scheduler.slots.own.drafters

    @property
    def scheduler(self) -> Scheduler:
        """Who runs what is asked of the engine. Raises EngineError once it is closed."""
        if self._scheduler is None:
            raise EngineError(CLOSED)
        return self._scheduler

    @property
    def library(self) -> Library:
        """The bundle's compiled functions. Raises EngineError once the engine is closed."""
        return self.model.cache.library

    def _checked(self, token_ids: Ids[int], cached: int = 0) -> list[int]:
        """The ids as plain ints. Raises ContextError if there are none or too many, EngineError for
        one outside the vocabulary.
        """
        ids = [int(i) for i in token_ids]
        if not ids:
            raise ContextError("the prompt is empty; give at least one token")
        if cached + len(ids) > self.context:
            raise PromptTooLongError(cached + len(ids), self.context, self._largest_context)
        if unknown := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise EngineError(
                f"token id {unknown[0]} is not in the vocabulary of {self.vocab_size} tokens; "
                "give a text without that token, or other ids"
            )
        return ids

    def _open_drafter(self, path: Path) -> ModelDrafter:
        ours = Bundle(self.path, self.manifest)
        return open_draft_bundle(self._machine, path, ours, self.context, self.threads)

    def _open_slots(self, cache: PagedCache, small: ModelDrafter | None) -> Slots:
        """The sequences of `cache`; `small` drafts for whichever runs alone."""
        has_head = bool(self.manifest.draft)

        def drafted() -> tuple[CachedModel, dict[str, Drafter]]:
            model = CachedModel(cache, self.context, self.gears)
            return model, open_drafters(model, has_head, small)

        own, drafters = drafted()
        policy = Policy(list(drafters))
        kept = None if self.manifest.recurrent else PrefixCache(cache.pages)
        return Slots(Slot(own, drafters, policy), lambda: Slot(*drafted(), policy), kept)

    def request(self, token_ids: Ids[int], options: Mapping[str, Any]) -> Request:
        """A checked request of token ids and `Options`."""
        own = self.scheduler.slots.own  # a closed engine refuses now, not at the first piece
        request = Request.of(self._checked(token_ids), options, self.defaults)
        name = request.speculation.speculate
        if name not in ("auto", "off", *own.drafters):
            why = RECURRENT if self.manifest.recurrent else MISSING[name]
            raise EngineError(f"speculate is {name!r}, and {why.format(bundle=self.path)}")
        return request

    def generation(self, request: Request, reader: TokenReader) -> Generation:
        """What answers a request, for `submit`; `reader` sees its tokens."""
        limits = Limits(
            self.vocab_size, self.eos_token_ids, self.prefill_chunk, self._prompt_scores
        )
        return Generation(request, self.context, self.manifest.page_size, limits, reader)

    def submit(
        self, generation: Generation, emit: Callable[[object], None], client: str = ""
    ) -> Task:
        """Has a generation go on by itself, in a thread of the engine; see `Task`."""
        self._note(generation)
        task = Task(generation, emit, client, driven=True)
        self.scheduler.submit(task)
        if self._driver:
            self._driver.wake()
        return task

    def cancel(self, task: Task) -> None:
        """Ends a task before the next step."""
        if self._scheduler:
            self._scheduler.cancel(task)

    def until(self, done: Callable[[], bool]) -> None:
        """Returns when it is done; computes in this thread where no other one does."""
        if scheduler := self._scheduler:
            self._turns.until(done, scheduler.step)

    @contextmanager
    def _own(self) -> Iterator[CachedModel]:
        """A call on the engine's own sequence, which nobody else has meanwhile."""
        with self._turns.call():
            scheduler = self.scheduler
            scheduler.sweep()
            scheduler.release(scheduler.slots.own, EngineError(ENDED))
            yield scheduler.slots.own.model

    def _note(self, generation: Generation) -> None:
        """`stats` and `block_reads` are this one's from now on."""
        self.stats = generation.stats
        self.block_reads = generation.block_reads

    def read(self, generation: Generation) -> Generator[object]:
        """What a generation's reader makes of its tokens, computed in this thread as it is read."""
        scheduler = self.scheduler
        self._note(generation)
        return read(generation, scheduler, self._turns)


def _require_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise EngineError(
            f"threads is {threads}; it must be 1 or more, or left out for the physical cores"
        )


def _admit(
    bundles: Iterable[str | Path | None], sha256: str | Collection[str] | None, trust: bool
) -> None:
    """Trusts the bundles, if the caller says so."""
    if sha256 is not None or trust:
        for path in filter(None, bundles):
            admit(path, sha256, trust)
