"""The engine: a bundle's library, the pages of its cache, and the calls that compute on them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Collection, Generator, Iterator
from collections.abc import Sequence as Ids
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from minicpm_mlc.base.errors import BundleError, ContextError, EngineError, PromptTooLongError
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.prompt.template import ChatTemplate, Message, Prompt
from minicpm_mlc.prompt.thinking import OPEN, ThinkSplitter
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.admission import admit
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget
from minicpm_mlc.runtime_py.defaults import (
    choose_context,
    eos_token_ids,
    largest_context,
)
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.out_of_memory import within_memory
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.protocols import Library, Machine
from minicpm_mlc.runtime_py.request import Options, Request, Stats
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter, check_same_tokenizer
from minicpm_mlc.runtime_py.speculative.drafters import MISSING, RECURRENT, open_drafters
from minicpm_mlc.runtime_py.speculative.policy import Policy
from minicpm_mlc.runtime_py.speculative.steps import Steps
from minicpm_mlc.runtime_py.turns import Turn, Turns

if TYPE_CHECKING:
    from typing_extensions import Unpack


Piece = TypeVar("Piece")


class Engine:
    """Runs a bundle. It keeps the last conversation's keys and values, so that only what is new is
    computed.

    An engine serves one call at a time: one that comes while another runs raises EngineError. A
    stream at rest, between two pieces, is over when any thread begins another call; any thread may
    read it on. Options of a call:
    see `Options`. `stats` are the figures of the last call, and `block_reads` int64 [blocks] counts
    how often its decode steps chose each block of the context by score; `prefill_chunk` is how many
    prompt tokens are computed at once.
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

        Raises:
            BundleError: a bundle is damaged, not trusted or made for another machine, or the draft
                bundle has another tokenizer.
            ContextError: the context exceeds the model's, or the device's free memory.
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
        cache = PagedCache(self._machine.open_library(bundle, self.threads), self.context)
        self._model: CachedModel | None = CachedModel(cache, self.context, self.gears)
        small = None if draft is None else self._open_draft_bundle(Path(draft))
        self.drafters = open_drafters(self._model, bool(manifest.draft), small)
        self._policy = Policy(list(self.drafters))

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
        with self._turns.turn():
            self._model = None
            self.drafters = {}

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
        generation = self._generation(self._prompt_ids(prompt), options)
        texts = _texts(generation.pieces(self.tokenizer))
        return _streamed(generation, texts) if stream else "".join(texts)

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
        prompt, generation, pieces = self._chat(messages, think, max_think_tokens, options)
        # A block that the template opened is opened in the text too, so that the text can be read
        # alone.
        texts = _texts(pieces, f"{OPEN}\n" if prompt.thinking else "")
        return _streamed(generation, texts) if stream else "".join(texts)

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
        prompt, generation, pieces = self._chat(messages, think, max_think_tokens, options)
        return _streamed(generation, _events(pieces, ThinkSplitter(prompt.thinking)))

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
        with self._turns.turn():
            self.model.sequence.truncate(0)
            for _, rows in self.model.prefill(ids, chunk, all_rows=True):
                yield rows

    def prefill(self, token_ids: Ids[int]) -> np.ndarray:
        """Appends tokens to the cached sequence; returns the last one's logits, float32 [vocab]."""
        with self._turns.turn():
            ids = self._checked(token_ids, len(self.model))
            (_, logits) = deque(self.model.prefill(ids, self.prefill_chunk), maxlen=1)[0]
        return logits[-1]

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token to the cached sequence; returns its logits, float32 [vocab]."""
        with self._turns.turn():
            return self.model.decode(*self._checked([token_id], len(self.model)))

    @contextmanager
    def steps(
        self, token_ids: Ids[int], **options: Unpack[Options]
    ) -> Iterator[tuple[Steps, np.ndarray]]:
        """For measuring: computes a prompt; yields what to decode with, and the prompt's logits
        float32 [vocab].
        """
        generation = self._generation(token_ids, options)
        with generation.running() as (_, logits):
            yield generation.steps, logits

    def open_sequence(self, context: int | None = None) -> CachedModel:
        """An empty sequence beside the engine's own one, on the same pages: all sequences together
        hold `self.context` tokens. `context`: its most tokens; None: the engine's.

        Its calls take no turn: whoever opens it makes one call of this engine at a time, and calls
        its `free` in the end. Raises EngineError for a model that keeps state per sequence: its
        library has room for one.
        """
        if self.manifest.recurrent:
            raise EngineError(f"{self.path} keeps state per sequence; open a second Engine")
        return CachedModel(self.model.cache, context or self.context, self.gears)

    def shift(self, attention: str) -> None:
        """From now on runs in another gear, as `attention` of the constructor says. Raises
        EngineError where there is none.
        """
        with self._turns.turn():
            self.gears = self.model.gears = Gears.of(self.manifest, attention)

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
        with self._turns.turn():
            if not 0 <= length <= len(self.model):
                raise ContextError(
                    f"the cached sequence has {len(self.model)} tokens, it can't be cut to {length}"
                )
            self.model.sequence.truncate(length)

    @property
    def model(self) -> CachedModel:
        """The cached conversation. Raises EngineError once the engine is closed."""
        if self._model is None:
            raise EngineError("the engine is closed; open the bundle again: Engine(bundle)")
        return self._model

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

    def _open_draft_bundle(self, path: Path) -> ModelDrafter:
        bundle = self._machine.read_bundle(path)
        if self.manifest.recurrent or bundle.manifest.recurrent:
            kept = self.path if self.manifest.recurrent else path
            raise BundleError(f"--draft-model {path}: {RECURRENT.format(bundle=kept)}")
        check_same_tokenizer(self.path, bundle.path)
        context = min(self.context, bundle.manifest.max_context)
        library = self._machine.open_library(bundle, self.threads)
        library.vocab_size = min(library.vocab_size, self.vocab_size)  # it proposes our ids alone
        model = CachedModel(
            PagedCache(library, context), context, Gears.of(bundle.manifest, "auto")
        )
        return ModelDrafter(model, bundle.manifest.prefill_chunk)

    def _generation(self, token_ids: Ids[int], options: Any) -> Generation:
        """A checked request on the cached conversation."""
        model = self.model  # a closed engine refuses now, not at the first piece
        request = Request.of(self._checked(token_ids), options, self.defaults)
        name = request.speculation.speculate
        if name not in ("auto", "off", *self.drafters):
            why = RECURRENT if self.manifest.recurrent else MISSING[name]
            raise EngineError(f"speculate is {name!r}, and {why.format(bundle=self.path)}")
        return Generation(
            request,
            model,
            self.drafters,
            self._policy,
            self._turn,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            prefill_chunk=self.prefill_chunk,
        )

    @contextmanager
    def _turn(self, generation: Generation) -> Iterator[Turn]:
        """Lets a generation run; `stats` and `block_reads` are its own from then on."""
        with self._turns.turn() as turn:
            _ = self.model  # the engine may have been closed before the first piece
            self.stats = generation.stats
            self.block_reads = generation.block_reads
            yield turn

    def _chat(
        self, messages: Ids[Message], think: bool | None, max_think_tokens: int | None, options: Any
    ) -> tuple[Prompt, Generation, Generator[str]]:
        prompt = self.template.prompt(self.tokenizer.raw, messages, think)
        budget = (
            None if max_think_tokens is None else ThinkBudget(max_think_tokens, prompt.thinking)
        )
        generation = self._generation(prompt.ids, options)
        stops = StopStrings(generation.request.stop, self.tokenizer.hidden)
        stops = AnswerStops(stops, prompt.thinking)
        return prompt, generation, generation.pieces(self.tokenizer, budget, stops)


def _streamed(generation: Generation, pieces: Generator[Piece]) -> Generator[Piece]:
    """The pieces of a generation, which rests between them."""
    with closing(pieces):
        for piece in pieces:
            with generation.resting():
                yield piece


def _texts(pieces: Generator[str], first: str = "") -> Generator[str]:
    """`first` and the pieces that aren't empty."""
    if first:
        yield first
    with closing(pieces):
        yield from filter(None, pieces)


def _events(pieces: Generator[str], splitter: ThinkSplitter) -> Generator[tuple[str, str]]:
    with closing(pieces):
        for piece in pieces:
            yield from splitter.feed(piece)
    yield from splitter.finish()
