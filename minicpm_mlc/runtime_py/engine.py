"""The engine: a bundle, one cached sequence, and the loop from a prompt to text."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Ids
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from minicpm_mlc.base.errors import BundleError, ContextError, EngineError
from minicpm_mlc.bundle.manifest import Bundle, read_bundle
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.chat.template import ChatTemplate, Message, Prompt
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream
from minicpm_mlc.runtime_py.chat.think_budget import CLOSING, ThinkBudget
from minicpm_mlc.runtime_py.chat.thinking import OPEN, ThinkSplitter
from minicpm_mlc.runtime_py.chat.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.defaults import choose_context, default_sampling, eos_token_ids
from minicpm_mlc.runtime_py.draft_model import DraftModel
from minicpm_mlc.runtime_py.exclusive import Exclusive
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.machine import physical_cores
from minicpm_mlc.runtime_py.request import Options, Request, Stats
from minicpm_mlc.runtime_py.sampler import Sampler
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter, check_same_tokenizer
from minicpm_mlc.runtime_py.speculative.eagle import WINDOW, EagleDrafter
from minicpm_mlc.runtime_py.speculative.ngram import NgramDrafter
from minicpm_mlc.runtime_py.speculative.policy import Policy
from minicpm_mlc.runtime_py.speculative.steps import Drafter, Steps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from minicpm_mlc.runtime_py.rpc.client import Remote


def open_library(bundle: Bundle, threads: int) -> Any:
    """The compiled functions of a bundle."""
    from minicpm_mlc.runtime_py.library import Library

    return Library(bundle, threads)


def free_memory(device: str) -> int:
    """Bytes of a device's memory that a bundle can take."""
    from minicpm_mlc.runtime_py.device_here import open_device

    return open_device(device).free


class Engine:
    """Runs a bundle. It keeps the last conversation's keys and values, so that only what is new is
    computed.

    An engine serves one call at a time. A stream that was left early is over when the next call
    begins; a call from another thread while one is running raises EngineError. Options of a call:
    see `Options`. `stats` are the figures of the last call; `prefill_chunk` is how many prompt
    tokens are computed at once.
    """

    def __init__(
        self,
        bundle_path: str | Path,
        context: int | None = None,
        threads: int | None = None,
        attention: str = "auto",
        draft: str | Path | None = None,
        remote: Remote | None = None,
    ) -> None:
        """Loads the bundle.

        Args:
            context: most tokens in the cache; None: as many as the bundle was compiled for and
                memory holds.
            threads: None: the physical cores.
            attention: "auto" shifts from dense to sparse at the model's dense_len; "dense" or
                "sparse" forces one.
            draft: a smaller bundle with the same tokenizer, to guess tokens for this one.
            remote: the machine that runs the bundles; None: this one.

        Raises:
            BundleError: a bundle is damaged or made for another machine, or the draft bundle has
                another tokenizer.
            ContextError: the context exceeds the model's, or the device's free memory.
        """
        if threads is not None and threads < 1:
            raise EngineError(
                f"threads is {threads}; it must be 1 or more, or left out for the physical cores"
            )
        self._remote = remote
        bundle = self._read_bundle(bundle_path)
        self.path = bundle.path
        self.manifest = manifest = bundle.manifest
        self.vocab_size: int = manifest.model["vocab_size"]
        self.context = choose_context(
            manifest, context, self._free_memory(manifest.target["device"])
        )
        self.threads = threads or (remote.cores if remote else physical_cores())
        self.prefill_chunk = manifest.prefill_chunk
        self.gears = Gears.of(manifest, attention)
        self.defaults = default_sampling(bundle.path)
        self.eos_token_ids = eos_token_ids(bundle)
        self.stats = Stats(context=self.context)
        self.block_reads = np.zeros(
            -(-self.context // manifest.page_size), np.int64
        )  # by score, in this call's decodes
        self._exclusive = Exclusive()
        library = self._open_library(bundle)
        self.library: Any = library
        self._cached: CachedModel | None = CachedModel(
            library, self.context, manifest.page_size, self.gears
        )
        self.drafters = self._open_drafters(library, draft)
        self._policy = Policy(list(self.drafters))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when first used: a bundle of random weights has none and still gives logits."""
        return Tokenizer.from_folder(
            self.path, self.manifest.model["bos_token_id"], self.vocab_size
        )

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The bundle's chat template."""
        return ChatTemplate.from_folder(self.path)

    def close(self) -> None:
        """Frees the cache and the library. Every later call raises EngineError."""
        with self._exclusive.turn():
            self._cached = self.library = None
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
        pieces = self._pieces(self._request(self._prompt_ids(prompt), options))
        return _shown(pieces) if stream else "".join(pieces)

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
        shown = _shown(pieces, f"{OPEN}\n" if prompt.thinking else "")
        return shown if stream else "".join(shown)

    def chat_events(
        self,
        messages: Ids[Message],
        *,
        think: bool | None = None,
        max_think_tokens: int | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[str, str]]:
        """Like chat, as (kind, text) events; kind is "thinking" or "answer", the markers are left
        out.
        """
        prompt, pieces = self._chat(messages, think, max_think_tokens, options)
        return _events(pieces, ThinkSplitter(prompt.thinking))

    def logits(self, token_ids: Ids[int]) -> np.ndarray:
        """Logits float32 [n, vocab] after each of n tokens. The cache then holds just these
        tokens.
        """
        ids = self._checked(token_ids)
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        with self._exclusive.turn():
            self._model.sequence.truncate(0)
            for done, rows in self._model.prefill(ids, self.prefill_chunk, all_rows=True):
                logits[done - len(rows) : done] = rows
        return logits

    def prefill(self, token_ids: Ids[int]) -> np.ndarray:
        """Appends tokens to the cached sequence; returns the last one's logits, float32 [vocab]."""
        with self._exclusive.turn():
            ids = self._checked(token_ids, len(self._model))
            (_, logits) = deque(self._model.prefill(ids, self.prefill_chunk), maxlen=1)[0]
        return logits[-1]

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token to the cached sequence; returns its logits, float32 [vocab]."""
        with self._exclusive.turn():
            return self._model.decode(*self._checked([token_id], len(self._model)))

    @contextmanager
    def steps(
        self, token_ids: Ids[int], **options: Unpack[Options]
    ) -> Iterator[tuple[Steps, np.ndarray]]:
        """For measuring: computes a prompt; yields what to decode with, and the prompt's logits
        float32 [vocab].
        """
        request = self._request(token_ids, options)
        stats = self.stats = Stats(prompt_tokens=len(request.token_ids), context=self.context)
        with self._exclusive.turn() as check, self._steps(request, stats, check) as steps:
            yield steps, self._prefill_prompt(request, stats, check, steps)

    def shift(self, attention: str) -> None:
        """From now on runs in another gear, as `attention` of the constructor says. Raises
        EngineError where there is none.
        """
        with self._exclusive.turn():
            self.gears = self._model.gears = Gears.of(self.manifest, attention)

    @property
    def selected(self) -> list[np.ndarray]:
        """What the last decode read, if sparsely: per layer the block numbers, int32 [kv_heads,
        budget], -1 padded.
        """
        return self._model.selected

    @property
    def cached_tokens(self) -> list[int]:
        """The token ids whose keys and values are cached."""
        return list(self._model.sequence.tokens)

    def truncate(self, length: int) -> None:
        """Cuts the cached sequence back to its first `length` tokens."""
        with self._exclusive.turn():
            if not 0 <= length <= len(self._model):
                raise ContextError(
                    f"the cached sequence has {len(self._model)} tokens, it can't be cut to "
                    f"{length}"
                )
            self._model.sequence.truncate(length)

    @property
    def _model(self) -> CachedModel:
        if self._cached is None:
            raise EngineError("the engine is closed; open the bundle again: Engine(bundle)")
        return self._cached

    def _prompt_ids(self, prompt: str | Ids[int]) -> Ids[int]:
        if isinstance(prompt, str):
            return (
                self.tokenize(prompt) if prompt else []
            )  # an empty text is refused, even where BOS would be added
        return prompt

    def _checked(self, token_ids: Ids[int], cached: int = 0) -> list[int]:
        """The ids as plain ints. Raises ContextError if there are none or too many, EngineError for
        a strange one.
        """
        ids = [int(i) for i in token_ids]
        if not ids:
            raise ContextError("the prompt is empty; give at least one token")
        if cached + len(ids) > self.context:
            raise ContextError(
                f"the prompt has {cached + len(ids)} tokens and the context holds {self.context}; "
                "shorten the prompt, or open the engine with a larger context (--context)"
            )
        if strange := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise EngineError(
                f"token id {strange[0]} is not in the vocabulary of {self.vocab_size} tokens; "
                "use engine.tokenize"
            )
        return ids

    def _read_bundle(self, path: str | Path) -> Bundle:
        return self._remote.read_bundle(path) if self._remote else read_bundle(path)

    def _free_memory(self, device: str) -> int:
        return self._remote.free_memory(device) if self._remote else free_memory(device)

    def _open_library(self, bundle: Bundle) -> Any:
        return (
            self._remote.open_library(bundle, self.threads)
            if self._remote
            else open_library(bundle, self.threads)
        )

    def _open_drafters(self, library: Any, draft: str | Path | None) -> dict[str, Drafter]:
        """The cheapest first. A head is opened if the bundle has one. A model whose state can't go
        back has none.
        """
        if self.manifest.recurrent:
            if draft is not None:
                raise BundleError(f"--draft-model {draft}: {RECURRENT.format(bundle=self.path)}")
            return {}
        drafters: dict[str, Drafter] = {"ngram": NgramDrafter()}
        if self.manifest.draft:
            pages = len(self._model.sequence.pool.owners)
            drafters["eagle"] = EagleDrafter(
                DraftModel(library, self._model.sequence, pages, WINDOW), self._model
            )
        if draft is not None:
            drafters["draft"] = self._open_draft_bundle(Path(draft))
        return drafters

    def _open_draft_bundle(self, path: Path) -> ModelDrafter:
        bundle = self._read_bundle(path)
        if bundle.manifest.recurrent:
            raise BundleError(f"--draft-model {path}: {RECURRENT.format(bundle=path)}")
        check_same_tokenizer(self.path, bundle.path)
        manifest, context = bundle.manifest, min(self.context, bundle.manifest.max_context)
        library = self._open_library(bundle)
        model = CachedModel(library, context, manifest.page_size, Gears.of(manifest, "auto"))
        return ModelDrafter(library, model, manifest.prefill_chunk)

    def _request(self, token_ids: Ids[int], options: Any) -> Request:
        _ = self._model  # a closed engine refuses now, not at the first piece
        request = Request.of(self._checked(token_ids), options, self.defaults)
        name = request.speculation.speculate
        if name not in ("auto", "off", *self.drafters):
            why = RECURRENT if self.manifest.recurrent else MISSING_DRAFTERS[name]
            raise EngineError(f"speculate is {name!r}, and {why.format(bundle=self.path)}")
        return request

    def _chat(
        self, messages: Ids[Message], think: bool | None, max_think_tokens: int | None, options: Any
    ) -> tuple[Prompt, Generator[str]]:
        prompt = self.template.prompt(self.tokenizer.raw, messages, think)
        budget = (
            None if max_think_tokens is None else ThinkBudget(max_think_tokens, prompt.thinking)
        )
        return prompt, self._pieces(self._request(prompt.ids, options), budget)

    def _pieces(self, request: Request, budget: ThinkBudget | None = None) -> Generator[str]:
        """A piece of text for each token, often empty, up to a stop string. A spent budget closes
        the think block.
        """
        stats = self.stats = Stats(prompt_tokens=len(request.token_ids), context=self.context)
        self.block_reads[:] = 0
        text, stops = TextStream(self.tokenizer, request.token_ids), StopStrings(request.stop)
        forced = deque(self.tokenizer.encode_middle(CLOSING) if budget and budget.start() else [])
        budget = None if forced else budget
        with closing(self._tokens(request, stats, forced)) as tokens:
            for token_id in tokens:
                piece = stops.feed(text.feed(token_id))
                if budget and budget.spend(piece, text.at_border):
                    forced.extend(self.tokenizer.encode_middle(CLOSING))
                    budget = None
                yield piece
                if stops.stopped:
                    break
            else:
                yield stops.feed(text.finish())
        if stops.stopped:
            stats.finish_reason = "stop"
        else:
            yield stops.finish()

    def _tokens(self, request: Request, stats: Stats, forced: deque[int]) -> Generator[int]:
        """Token ids up to an end token or a limit. What is put into `forced` comes before what the
        model would say.
        """
        sampler = Sampler(request.sampling, self.vocab_size, request.token_ids)
        with self._exclusive.turn() as check, self._steps(request, stats, check) as steps:
            logits = self._prefill_prompt(request, stats, check, steps)
            while stats.finish_reason is None:
                with stats.timing("decode_seconds"):
                    token_id = forced.popleft() if forced else sampler.sample(logits)
                if token_id in self.eos_token_ids:
                    stats.finish_reason = "stop"
                    return
                sampler.accept(token_id)
                stats.generated_tokens += 1
                yield token_id
                check()
                stats.finish_reason = self._limit_reached(request, stats, steps)
                if stats.finish_reason is None:
                    logits = self._decode_next(token_id, stats, steps)

    @contextmanager
    def _steps(self, request: Request, stats: Stats, check: Callable[[], None]) -> Iterator[Steps]:
        """What this call decodes with. At its end the cache holds what plain decoding would have
        left there.
        """
        options, limit = request.speculation, request.max_tokens
        steps = Steps(
            self._model,
            self.drafters,
            self._policy,
            options,
            limit,
            stats.speculation,
            self.block_reads,
        )
        try:
            yield steps
        finally:
            with suppress(
                EngineError
            ):  # the sequence belongs to another call by now, or the engine is closed
                check()
                with stats.timing("decode_seconds"):
                    steps.close()

    def _prefill_prompt(
        self, request: Request, stats: Stats, check: Callable[[], None], steps: Steps
    ) -> np.ndarray:
        """Computes what the cache lacks of the prompt, at least its last token; returns that one's
        logits [vocab].
        """
        stats.cached_tokens = self._model.sequence.reuse(request.token_ids[:-1])
        steps.begin()
        new = request.token_ids[stats.cached_tokens :]
        last = np.empty((0, 0))
        with stats.timing("prefill_seconds"):
            for done, logits in self._model.prefill(new, self.prefill_chunk):
                last = logits
                steps.prefilled()
                self._note_context(stats, steps)
                if request.on_prefill:
                    request.on_prefill(done, len(new))
                    check()
        return last[-1]

    def _note_context(self, stats: Stats, steps: Steps) -> None:
        length = stats.context_used = len(steps)
        stats.attention = "sparse" if self.gears.sparse(length) else "dense"
        stats.blocks_read, stats.blocks = self.gears.blocks(length)

    def _decode_next(self, token_id: int, stats: Stats, steps: Steps) -> np.ndarray:
        with stats.timing("decode_seconds"):
            logits = steps.next(token_id)
        stats.decode_steps += 1
        self._note_context(stats, steps)
        return logits

    def _limit_reached(self, request: Request, stats: Stats, steps: Steps) -> str | None:
        if stats.generated_tokens == request.max_tokens:
            return "length"
        return "context" if len(steps) == self.context else None


RECURRENT = (
    "{bundle} keeps state per sequence, which can't take back a wrong guess; leave speculation off"
)
MISSING_DRAFTERS = {
    "eagle": "{bundle} has no draft head; compile it with one: minicpm-mlc compile CHECKPOINT "
    "--draft HEAD",
    "draft": "no draft bundle was opened; give one: Engine(bundle, draft=BUNDLE), or "
    "--draft-model BUNDLE",
}


def _shown(pieces: Generator[str], first: str = "") -> Iterator[str]:
    """`first` and the pieces that aren't empty."""
    if first:
        yield first
    with closing(pieces):
        yield from filter(None, pieces)


def _events(pieces: Generator[str], splitter: ThinkSplitter) -> Iterator[tuple[str, str]]:
    with closing(pieces):
        for piece in pieces:
            yield from splitter.feed(piece)
    yield from splitter.finish()
