"""The engine: a bundle's library, the pages of its cache, and the calls that compute on them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from collections.abc import Sequence as Ids
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from minicpm_mlc.base.errors import ContextError, EngineError, PromptTooLongError
from minicpm_mlc.bundle.manifest import Bundle, manifest_sha256
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.prompt.template import ChatTemplate, Message, Prompt
from minicpm_mlc.prompt.thinking import OPEN, ThinkSplitter
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.admission import admit
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.pieces import Pieces
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget
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
from minicpm_mlc.runtime_py.protocols import Library, Machine
from minicpm_mlc.runtime_py.request import Options, Request, Stats
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


class Engine:
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
    ) -> None:
        """Loads the bundle, a program that runs with this process's rights: one that was compiled
        on this machine, or that the caller trusts.

        Args:
            context: most tokens in the cache; None: as many as the bundle was compiled for and
                memory holds.
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

        Raises:
            BundleError: a bundle is damaged, not trusted or made for another machine, or the draft
                bundle has another tokenizer.
            ContextError: the context exceeds the model's, or the device's free memory.
            EngineError: the saved state is damaged or another bundle's.
        """
        if threads is not None and threads < 1:
            raise EngineError(
                f"threads is {threads}; it must be 1 or more, or left out for the physical cores"
            )
        self._machine: Machine = remote or LocalMachine()
        if sha256 is not None or trust:
            for path in filter(None, (bundle_path, draft)):
                admit(path, sha256, trust)
        bundle = self._machine.read_bundle(bundle_path)
        self.path = bundle.path
        self.manifest = manifest = bundle.manifest
        self.vocab_size: int = manifest.model["vocab_size"]
        available = self._machine.free_memory(manifest.target["device"])
        self.context = choose_context(manifest, context, available)
        self._largest_context = largest_context(manifest, available)
        self.threads = threads or self._machine.cores
        self.prefill_chunk = manifest.prefill_chunk
        self.gears = Gears.of(manifest, attention)
        self._files = SmallFiles(bundle.path)
        self.defaults = default_sampling(self._files)
        self.eos_token_ids = eos_token_ids(manifest, self._files)
        self.stats = Stats(context=self.context)
        self.block_reads = np.zeros(-(-self.context // manifest.page_size), np.int64)
        self._turns = Turns()
        self.parallel = choose_parallel(manifest, parallel)
        tokens = cache_tokens(manifest, self.context, parallel or 1, available)
        cache = PagedCache(self._machine.open_library(bundle, self.threads), tokens)
        small = None if draft is None else self._open_drafter(Path(draft))
        slots = self._open_slots(cache, small)
        self._scheduler: Scheduler | None = Scheduler(
            slots, cache.pages, self.parallel, self._turns
        )
        self._driver = Driver(self._scheduler, self._turns)
        if resume is not None:
            slots.load(resume, manifest_sha256(self.path))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when first used: a bundle of random weights has none and still gives logits."""
        return Tokenizer.from_files(
            self._files, self.manifest.model["bos_token_id"], self.vocab_size
        )

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The bundle's chat template."""
        return ChatTemplate.from_files(self._files)

    def close(self) -> None:
        """Frees the cache and the library. Every later call raises EngineError."""
        with self._turns.call():
            if self._scheduler:
                self._scheduler.close(EngineError(CLOSED))
            self._scheduler = None
            del self._driver

    def tokenize(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of text, BOS first if the model wants it."""
        return self.tokenizer.encode(text, bos)

    def detokenize(self, token_ids: Ids[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(token_ids)

    @overload
    def generate(
        self, prompt: str | Ids[int], *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str | Ids[int], *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[str]: ...
    def generate(
        self, prompt: str | Ids[int], *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Goes on from a prompt, text or token ids, without a chat template.

        Returns the text, or with stream=True an iterator of its pieces as they come.
        """
        ids = self._prompt_ids(prompt)
        request = self.request(ids, options)
        stops = StopStrings(request.stop, self.tokenizer.hidden)
        pieces = self._pieces(self.generation(request, Pieces(self.tokenizer, ids, stops)))
        return pieces if stream else "".join(pieces)

    @overload
    def chat(
        self,
        messages: Ids[Message],
        *,
        stream: Literal[False] = False,
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Unpack[Options],
    ) -> str: ...
    @overload
    def chat(
        self,
        messages: Ids[Message],
        *,
        stream: Literal[True],
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Unpack[Options],
    ) -> Iterator[str]: ...
    def chat(
        self,
        messages: Ids[Message],
        *,
        stream: bool = False,
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Any,
    ) -> str | Iterator[str]:
        """The assistant's next turn, with its thinking between `<think>` and `</think>`.

        Args:
            messages: {"role", "content"} each.
            stream: gives an iterator of pieces instead of the text.
            think: whether to think first; None: the template's default.
            max_think_tokens: the most tokens of thinking; then the block is closed and the answer
                follows.
            options: see `Options`.
        """
        prompt, pieces = self._chat(messages, think, max_think_tokens, options)
        # A block that the template opened is opened in the text too, so that the text can be read
        # alone.
        texts = _texts(pieces, f"{OPEN}\n" if prompt.thinking else "")
        return texts if stream else "".join(texts)

    def chat_events(
        self,
        messages: Ids[Message],
        *,
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Unpack[Options],
    ) -> Generator[tuple[str, str]]:
        """Like chat, as (kind, text) events; kind is "thinking" or "answer", the markers are left
        out.
        """
        prompt, pieces = self._chat(messages, think, max_think_tokens, options)
        return _events(pieces, ThinkSplitter(prompt.thinking))

    @within_memory
    def logits(self, token_ids: Ids[int]) -> np.ndarray:
        """Logits float32 [n, vocab] after each of n tokens. The cache then holds just these
        tokens.
        """
        ids = self._checked(token_ids)
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        with self._own() as model:
            model.truncate(0)
            for done, rows in model.prefill(ids, self.prefill_chunk, all_rows=True):
                logits[done - len(rows) : done] = rows
        return logits

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
            logits = generation.start(self._open.slots.own)
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
            self._open.slots.save(path, manifest_sha256(self.path))

    def shift(self, attention: str) -> None:
        """From now on runs in another gear, as `attention` of the constructor says. Raises
        EngineError where there is none.
        """
        with self._own():
            self.gears = Gears.of(self.manifest, attention)
            for slot in self._open.slots.all:
                slot.model.gears = self.gears

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
        return self._open.slots.own.model

    @property
    def drafters(self) -> dict[str, Drafter]:
        """Who guesses tokens for the engine's own sequence, by name."""
        return self._open.slots.own.drafters

    @property
    def _open(self) -> Scheduler:
        if self._scheduler is None:
            raise EngineError(CLOSED)
        return self._scheduler

    @property
    def library(self) -> Library:
        """The bundle's compiled functions. Raises EngineError once the engine is closed."""
        return self.model.cache.library

    def _prompt_ids(self, prompt: str | Ids[int]) -> Ids[int]:
        if isinstance(prompt, str):
            # an empty text is refused, even where BOS would be added
            return self.tokenize(prompt) if prompt else []
        return prompt

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
        own = self._open.slots.own  # a closed engine refuses now, not at the first piece
        request = Request.of(self._checked(token_ids), options, self.defaults)
        name = request.speculation.speculate
        if name not in ("auto", "off", *own.drafters):
            why = RECURRENT if self.manifest.recurrent else MISSING[name]
            raise EngineError(f"speculate is {name!r}, and {why.format(bundle=self.path)}")
        return request

    def generation(self, request: Request, reader: TokenReader) -> Generation:
        """What answers a request, for `submit`; `reader` sees its tokens."""
        limits = Limits(self.vocab_size, self.eos_token_ids, self.prefill_chunk)
        return Generation(request, self.context, self.manifest.page_size, limits, reader)

    def submit(
        self, generation: Generation, emit: Callable[[object], None], client: str = ""
    ) -> Task:
        """Has a generation go on by itself, in a thread of the engine; see `Task`."""
        task = Task(generation, emit, client, driven=True)
        self._open.submit(task)
        self._driver.wake()
        return task

    def cancel(self, task: Task) -> None:
        """Ends a task before the next step."""
        if self._scheduler:
            self._scheduler.cancel(task)

    def wait(self) -> None:
        """Returns when what was submitted is over."""
        if scheduler := self._scheduler:
            self._turns.until(lambda: not scheduler.driven, scheduler.step)

    @contextmanager
    def _own(self) -> Iterator[CachedModel]:
        """A call on the engine's own sequence, which nobody else has meanwhile."""
        with self._turns.call():
            scheduler = self._open
            scheduler.sweep()
            scheduler.release(scheduler.slots.own, EngineError(ENDED))
            yield scheduler.slots.own.model

    def _note(self, generation: Generation) -> None:
        """`stats` and `block_reads` are this one's from now on."""
        self.stats = generation.stats
        self.block_reads = generation.block_reads

    def _pieces(self, generation: Generation) -> Generator[str]:
        """The text, as it comes; nothing happens before the first piece is asked for."""
        scheduler = self._open
        self._note(generation)
        with closing(read(generation, scheduler, self._turns)) as pieces:
            yield from cast("Generator[str]", pieces)

    def _chat(
        self, messages: Ids[Message], think: bool | None, max_think_tokens: int | None, options: Any
    ) -> tuple[Prompt, Generator[str]]:
        prompt = self.template.prompt(self.tokenizer.raw, messages, think)
        budget = (
            None if max_think_tokens is None else ThinkBudget(max_think_tokens, prompt.thinking)
        )
        request = self.request(prompt.ids, options)
        stops = AnswerStops(StopStrings(request.stop, self.tokenizer.hidden), prompt.thinking)
        reader = Pieces(self.tokenizer, prompt.ids, stops, budget)
        return prompt, self._pieces(self.generation(request, reader))


def _texts(pieces: Generator[str], first: str = "") -> Generator[str]:
    """`first` and the pieces."""
    if first:
        yield first
    with closing(pieces):
        yield from pieces


def _events(pieces: Generator[str], splitter: ThinkSplitter) -> Generator[tuple[str, str]]:
    with closing(pieces):
        for piece in pieces:
            yield from splitter.feed(piece)
    yield from splitter.finish()
