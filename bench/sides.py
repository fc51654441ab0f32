"""The sides of bench/vs_llama.py and bench/vs_qwen3.py: each lives in its own process, so that
neither's threads disturb the other.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.bench.decode import Filler, Stopwatch
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.replay import Record
from minicpm_mlc.bench.tasks import replaying
from minicpm_mlc.runtime_py.speculative.eagle import READ_TOKENS

AGREEMENT_TOKENS = 64  # whose logits both sides must agree on
# seconds before a measurement: another process's threads wait for work spinning, for some tenths of
# a second
REST = 0.5

Q8_0 = 8  # ggml's number of the type, whose blocks are so many bytes and numbers
Q8_0_BYTES, Q8_0_NUMBERS = 34, 32

STATE_HEAD = np.dtype("<u4"), 4  # magic, reserved, streams, cells
STATE_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
STATE_DATA = np.dtype("<u4"), 2  # values transposed?, layers
STATE_POOL = np.dtype(
    [("type", "<i4"), ("row_bytes", "<u8")]
)  # before a layer's keys, before a layer's values


class LlamaCpp:
    """llama.cpp through its C API with its own defaults: f16 KV cache, flash attention auto,
    weights repacked. With an int8 cache, q8_0 and flash attention.
    """

    module = "llama_cpp"

    def __init__(self, path: str, context: int, threads: int, kv: str = "f16"):
        self.api: Any = importlib.import_module(self.module)
        self._prepare()
        self.api.llama_backend_init()
        model = self.api.llama_model_load_from_file(
            path.encode(), self.api.llama_model_default_params()
        )
        if not model:
            raise SystemExit(
                f"{self.module} can't load {path}; delete it and run again to have it written anew"
            )
        self.context = self.api.llama_init_from_model(model, self._params(context, threads, kv))
        if not self.context:
            raise SystemExit(
                f"{self.module} has no memory for a context of {context} tokens; lower --depth"
            )
        self.batch = self._batch_tokens()
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model))

    def _prepare(self) -> None:
        """Turns its log off."""
        self.log = self.api.llama_log_callback(lambda level, text, user_data: None)
        self.api.llama_log_set(self.log, ctypes.c_void_p(0))

    def _batch_tokens(self) -> int:
        """The most tokens of a call."""
        return self.api.llama_n_batch(self.context)

    def _params(self, context: int, threads: int, kv: str) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.n_threads = params.n_threads_batch = threads
        if kv == "int8":
            params.type_k = params.type_v = Q8_0
            self._flash(params)
        return params

    def _flash(self, params: Any) -> None:
        """Flash attention, which a q8_0 cache needs."""
        params.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED

    def prefill(self, token_ids: Sequence[int]) -> np.ndarray:
        """Append `token_ids` to the cache; float32[vocab] logits of the last."""
        for start in range(0, len(token_ids), self.batch):
            part = token_ids[start : start + self.batch]
            tokens = (self.api.llama_token * len(part))(*part)
            if status := self._append(tokens):
                raise RuntimeError(f"llama_decode returned {status} for {len(part)} tokens")
        logits = self.api.llama_get_logits_ith(self.context, -1)  # waits for the computation
        return np.ctypeslib.as_array(logits, (self.vocab_size,)).copy()

    def _append(self, tokens: Any) -> int:
        batch = self.api.llama_batch_get_one(tokens, len(tokens))
        return self.api.llama_decode(self.context, batch)

    def decode(self, token_id: int) -> np.ndarray:
        return self.prefill([token_id])

    def truncate(self, length: int) -> None:
        memory = self.api.llama_get_memory(self.context)
        self.api.llama_memory_seq_rm(memory, 0, length, -1)

    def fill_cache(self, depth: int) -> None:
        """Bring the cache to `depth` tokens of random keys and values, as a restored session."""
        self.truncate(0)
        self.prefill([0])
        size = self.api.llama_state_seq_get_size(self.context, 0)
        one = (ctypes.c_uint8 * size)()
        self.api.llama_state_seq_get_data(self.context, one, size, 0)
        state = random_state(bytes(one), depth)
        self.truncate(0)
        data = (ctypes.c_uint8 * len(state)).from_buffer(state)
        if self.api.llama_state_seq_set_data(self.context, data, len(state), 0) != len(state):
            raise SystemExit(
                "this llama.cpp keeps its cache in another form; run without --random-cache"
            )


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp by its Python package, whose C API is an older one."""

    module = "ik_llama_cpp._ctypes_api"

    def _prepare(self) -> None:
        """Declares the calls that its package doesn't; its log can't be turned off."""
        api, library = self.api, self.api._lib
        library.llama_batch_get_one.restype = api.llama_batch
        library.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3]
        library.llama_n_batch.argtypes = [ctypes.c_void_p]
        self.length = 0

    def _batch_tokens(self) -> int:
        return self.api._lib.llama_n_batch(self.context)

    def _flash(self, params: Any) -> None:
        params.flash_attn = True

    def _append(self, tokens: Any) -> int:
        batch = self.api._lib.llama_batch_get_one(tokens, len(tokens), self.length, 0)
        self.length += len(tokens)
        return self.api.llama_decode(self.context, batch)

    def truncate(self, length: int) -> None:
        self.api._lib.llama_kv_cache_seq_rm(self.context, 0, length, -1)
        self.length = min(self.length, length)


def random_state(one: bytes, cells: int, seed: int = 0) -> bytearray:
    """llama.cpp's saved sequence with `cells` tokens of random f16 or q8_0 keys and values, made
    from that of one token.
    """
    rng = np.random.default_rng(seed)
    head = np.frombuffer(one, STATE_HEAD[0], STATE_HEAD[1]).copy()
    at = head.nbytes + STATE_CELL.itemsize
    transposed, layers = (
        int(word) for word in np.frombuffer(one, STATE_DATA[0], STATE_DATA[1], at)
    )
    pools = at + 8
    kind, row_bytes = (int(number) for number in np.frombuffer(one, STATE_POOL, 1, pools)[0])
    if (
        head[3] != 1
        or transposed
        or len(one) != pools + 2 * layers * (STATE_POOL.itemsize + row_bytes)
    ):
        raise SystemExit(
            "this llama.cpp keeps its cache in another form; run without --random-cache"
        )
    head[3] = cells
    positions = np.zeros(cells, STATE_CELL)
    positions["position"], positions["sequences"] = np.arange(cells), 1
    state = bytearray(head.tobytes() + positions.tobytes() + one[at:pools])
    for _ in range(2 * layers):
        state += one[pools : pools + STATE_POOL.itemsize]
        state += random_numbers(rng, kind, cells * row_bytes)
    return state


def random_numbers(rng: np.random.Generator, kind: int, nbytes: int) -> bytes:
    """So many bytes of f16 or q8_0."""
    if kind != Q8_0:
        return rng.standard_normal(nbytes // 2, np.float32).astype(np.float16).tobytes()
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    numbers = rng.standard_normal((nbytes // Q8_0_BYTES, Q8_0_NUMBERS), np.float32)
    return quantize(numbers, GGMLQuantizationType.Q8_0).tobytes()


def ours(path: str, context: int, threads: int, attention: str, random_cache: bool) -> Stopwatch:
    """A bundle, its attention forced to one gear or left to itself ("auto")."""
    engine = Engine(path, context=context, threads=threads, attention=attention)
    filler = (lambda depth: fill_cache(engine, depth)) if random_cache else None
    return Stopwatch(engine, engine.vocab_size, filler=filler)


class Speculating(Stopwatch):
    """A bundle that drafts with its head, verifies trees of a record's form and follows the paths
    that were accepted. Its head reads some tokens behind the depth.
    """

    def __init__(self, engine: Engine, record: Record, filler: Filler | None) -> None:
        super().__init__(engine, engine.vocab_size, filler=filler)
        self.engine = engine
        self.options: dict[str, Any] = asdict(record.options)
        self.replay = replaying(engine, record)

    def decode_seconds(self, tokens: int) -> float:
        prompt = [*self.engine.cached_tokens[: self.depth], *self._tokens(READ_TOKENS)]
        with self.engine.steps(prompt, max_tokens=tokens + 1, temperature=0, **self.options) as (
            steps,
            _,
        ):
            start = time.perf_counter()
            for _ in range(tokens):
                steps.next(self.replay.next(steps, 0))
            steps.settle()
            seconds = time.perf_counter() - start
        self.engine.truncate(self.depth)
        return seconds


def speculating(path: str, context: int, threads: int, attention: str, record: str) -> Speculating:
    """A bundle with a head, behind a cache of random numbers. Raises ReplayError for the record,
    BenchError for one of a drafter that the bundle lacks.
    """
    engine = Engine(path, context=context, threads=threads, attention=attention)
    return Speculating(engine, Record.read(record), lambda depth: fill_cache(engine, depth))


def llama_cpp(
    path: str, context: int, threads: int, random_cache: bool, kv: str = "f16"
) -> Stopwatch:
    model = LlamaCpp(path, context, threads, kv)
    return Stopwatch(model, model.vocab_size, filler=model.fill_cache if random_cache else None)


def ik_llama_cpp(path: str, context: int, threads: int, kv: str) -> Stopwatch:
    model = IkLlamaCpp(path, context, threads, kv)
    return Stopwatch(model, model.vocab_size)


def llama_cpp_logits(path: str, ids: list[int], threads: int) -> np.ndarray:
    """float32 [n, vocab] after each token."""
    api: Any = importlib.import_module("llama_cpp")
    options = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    model = api.Llama(path, n_ctx=len(ids), logits_all=True, **options)
    model.eval(ids)
    return model.scores[: len(ids)]


class Remote:
    """A Stopwatch in a process of its own."""

    def __init__(self, opener: Callable[..., Stopwatch], *args: Any):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        spawn.Process(target=answer, args=(other, opener, args), daemon=True).start()
        other.close()

    def fill(self, depth: int) -> None:
        self._ask("fill", depth)

    def prefill_seconds(self, tokens: int) -> float:
        time.sleep(REST)
        return self._ask("prefill_seconds", tokens)

    def decode_seconds(self, tokens: int) -> float:
        time.sleep(REST)
        return self._ask("decode_seconds", tokens)

    def logits(self, tokens: int) -> np.ndarray:
        return self._ask("logits", tokens)

    def _ask(self, method: str, argument: int) -> Any:
        try:
            self.pipe.send((method, argument))
            return self.pipe.recv()
        except (EOFError, OSError):
            raise SystemExit("one side ended early; its own error is printed above") from None


def answer(pipe: Any, opener: Callable[..., Stopwatch], args: tuple) -> None:
    """The child's loop: run the Stopwatch's method that the parent names, send back what it
    returns.
    """
    stopwatch = opener(*args)
    with suppress(EOFError, KeyboardInterrupt):  # the parent is done
        while True:
            method, argument = pipe.recv()
            pipe.send(getattr(stopwatch, method)(argument))


def agreement(ours: Any, *others: Any, tokens: int = AGREEMENT_TOKENS) -> float:
    """The least correlation of our logits with another side's after the same tokens: the same
    weights, rounded to 4 bits by other rules.
    """
    mine = ours.logits(tokens)
    correlation = min(float(np.corrcoef(mine, other.logits(tokens))[0, 1]) for other in others)
    if correlation < 0.9:
        raise SystemExit(
            "the sides don't compute the same model: their logits correlate only "
            f"{correlation:.3f}; "
            "use a bundle compiled with --random-weights, or another --work folder to build both "
            "anew"
        )
    return correlation
