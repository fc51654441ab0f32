"""How fast a model would run on this machine's CPU, before it is downloaded or compiled: its work,
over what the machine was measured to give (bench/limits.py).

A call takes what its slowest part takes: reading weights at memory's speed or unpacking them, for
few rows; multiplying, for many; attention by itself. The shares of the limits that kernels reach
were measured on one machine with AVX-512 VNNI; `python bench/forecast.py` shows how far off the
forecast is on yours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE
from minicpm_mlc.bundle.state import bytes_per
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stored_bytes, stored_tensors
from minicpm_mlc.compile.limits import choose_prefill_chunk
from minicpm_mlc.compile.model.registry import build_model, with_context
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.state import bytes_per_token, model_state
from minicpm_mlc.ops.formats.kv import F16, F32
from minicpm_mlc.ops.formats.weights import SCHEMES

DEPTHS = (0, 32768, 131072)  # tokens in the cache
PROMPT = 512  # tokens of a prefill
# shares of a limit that kernels reach
READ = 0.97  # weights, of memory's speed
UNPACK = 0.125  # one row's products with integer weights, of int8 arithmetic
UNPACK_FLOAT = 0.26  # the same with exact activations, of float32 arithmetic
MULTIPLY = 0.50  # products with many rows, of int8 or float32 arithmetic
ATTEND_ROW = 0.47  # one row's attention, of float32 arithmetic
ATTEND_ROWS = 0.60  # many rows'
SCORE_ROW = 0.26  # one row's block scores
# seconds of a decode step in which nothing is read: norms, RoPE, calls, waking threads
PER_LAYER = 25e-6
PER_CHANNEL = 8.5e-9  # of each layer's residual stream
PER_STEP = 150e-6
LIBRARY = 1 << 20  # bytes of the disk
PROGRAM = 72 << 20  # bytes of memory: Python, its libraries, TVM's runtime, the tokenizer


@dataclass(frozen=True)
class Speed:
    """One line of the forecast. `attention` is the gear."""

    phase: str
    depth: int
    attention: str
    tokens_per_second: float


@dataclass(frozen=True)
class Work:
    """What one token takes without attention: bytes of weights that a decode step reads,
    multiplications and additions of the layers and of the head.
    """

    weights: int
    layers: int
    head: int

    @classmethod
    def of(cls, config: ModelConfig, precision: Precision) -> Work:
        """By the model's parameters. A table that is the embedding alone is not read."""
        params = build_model(config, precision).parameters()
        read = [p for p in params if config.tie_word_embeddings or p.name != "embedding"]
        head = [p for p in read if p.rows >= config.vocab_size]
        return cls(
            sum(tensor.nbytes for param in read for tensor in stored_tensors(param)),
            _operations(p for p in read if p not in head),
            _operations(head),
        )


def _operations(params: Iterable[Param]) -> int:
    return sum(2 * param.rows * param.columns for param in params)


def _together(first: float, second: float) -> float:
    """Seconds of two things that mostly overlap, and hinder each other where they take alike."""
    return (first**3 + second**3) ** (1 / 3)


@dataclass(frozen=True)
class Forecast:
    """A model's speeds. `config` has the sparse settings that it would be compiled with, if any."""

    config: ModelConfig
    precision: Precision
    limits: Limits

    def speeds(self, depths: Iterable[int] = DEPTHS, prompt: int = PROMPT) -> list[Speed]:
        """Prefill and decode at each depth, in each gear that the model has there."""
        return [
            Speed(phase, depth, gear, tokens / seconds(depth, gear))
            for depth in depths
            for phase, tokens, seconds in (
                ("prefill", prompt, lambda depth, gear: self.prefill_seconds(prompt, depth, gear)),
                ("decode", 1, self.decode_seconds),
            )
            for gear in self._gears(depth)
        ]

    def _gears(self, depth: int) -> list[str]:
        sparse = self.config.sparse
        return ["dense", *(["sparse"] if sparse and depth >= sparse.dense_len else [])]

    def decode_seconds(self, depth: int, gear: str) -> float:
        """Of one decode step behind `depth` tokens."""
        config, work = self.config, Work.of(self.config, self.precision)
        unpack = UNPACK if self._int8 else UNPACK_FLOAT
        linears = _together(
            work.weights / (READ * self.limits.bandwidth),
            (work.layers + work.head) / (unpack * self._arithmetic),
        )
        attention = self._attention_layers * self._attend_row(depth + 1, gear)
        state = bytes_per("sequence", model_state(config, self.precision.kv))
        attention += 2 * state / (READ * self.limits.bandwidth)  # read, and written back
        calls = config.num_layers * (PER_LAYER + PER_CHANNEL * config.hidden_size) + PER_STEP
        return linears + attention + calls

    def prefill_seconds(self, tokens: int, depth: int, gear: str) -> float:
        """Of `tokens` rows behind `depth` tokens."""
        work = Work.of(self.config, self.precision)
        linears = (tokens * work.layers + work.head) / (MULTIPLY * self._arithmetic)
        read, scored = self._reach(depth + tokens / 2, gear)
        attention = self._attention_layers * tokens * (self._products(read) + self._scores(scored))
        return linears + attention / (ATTEND_ROWS * self.limits.float32)

    @property
    def _attention_layers(self) -> int:
        return self.config.num_layers - len(self.config.lightning_layers)

    @property
    def _int8(self) -> bool:
        return self.precision.activations == "int8" and self.limits.int8 is not None

    @property
    def _arithmetic(self) -> float:
        return (self.limits.int8 or 0.0) if self._int8 else self.limits.float32

    def _reach(self, length: float, gear: str) -> tuple[float, float]:
        """Tokens whose keys and values a row reads, and tokens that it scores, per layer."""
        sparse = self.config.sparse
        if gear == "dense" or not sparse:
            return length, 0.0
        blocks = sparse.topk + sparse.window_size // sparse.block_size
        return min(length, blocks * PAGE_SIZE), length

    def _products(self, tokens: float) -> float:
        """Multiplications and additions of a row's attention to so many tokens."""
        return 4 * self.config.num_heads * self.config.head_dim * tokens

    def _scores(self, tokens: float) -> float:
        return 2 * self.config.num_heads * self.config.head_dim * tokens / SEGMENT_SIZE

    def _attend_row(self, length: int, gear: str) -> float:
        """Seconds of one row's attention in one layer."""
        read, scored = self._reach(length, gear)
        config, limits, kv = self.config, self.limits, self.precision.kv
        keys = read * bytes_per_token(model_state(replace(config, sparse=None), kv))
        keys /= self._attention_layers
        products = self._products(read) / (ATTEND_ROW * limits.float32)
        scores = self._scores(scored) / (SCORE_ROW * limits.float32)
        return max(keys / (READ * limits.bandwidth), products) + scores


def _stored(scheme: str) -> Precision:
    """As `compile --quant` stores a model, whatever meets its weights."""
    linear = SCHEMES[scheme]
    return Precision(linear, SCHEMES[linear.tables or scheme], F32 if scheme == "f32" else F16)


def bundle_bytes(config: ModelConfig, scheme: str) -> int:
    """Bytes of a bundle on the disk, but for the tokenizer: weights, and the library."""
    return stored_bytes(build_model(config, _stored(scheme)).parameters()) + LIBRARY


def needed_memory(config: ModelConfig, scheme: str) -> Callable[[int], int]:
    """Bytes that a chat keeps in memory with so many tokens of context: weights, keys and values,
    the activations of a prefill, and the program. Of an embedding that isn't the head too, which
    is mapped from its file, only the rows of the text's tokens are read.
    """
    precision = _stored(scheme)
    weights = Work.of(config, precision).weights
    state = model_state(config, precision.kv)
    per_token = bytes_per_token(state)
    chunk = choose_prefill_chunk(config, config.max_position_embeddings, None)
    gated = config.intermediate_size  # int8, or gate, up and product in float32
    row = 8 * config.hidden_size + gated * (1 if precision.linear.takes_int8 else 12)
    fixed = weights + bytes_per("sequence", state) + chunk * row + PROGRAM
    return lambda context: fixed + context * per_token


def speed_table(
    config: ModelConfig, schemes: Iterable[str], limits: Limits
) -> list[dict[str, str | int | float]]:
    """A row per phase, depth and gear, with the tokens/s of each scheme; no deeper than the model
    reaches.
    """

    def reaches(depth: int) -> bool:
        with suppress(ConfigError):
            return bool(with_context(config, depth))
        return False

    integers = "int8" if limits.int8 else "f32"
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for name in schemes:
        stored = _stored(name)
        takes = stored.linear.takes_int8 or stored.embedding.takes_int8
        precision = replace(stored, activations=integers if takes else "f32")
        for speed in Forecast(config, precision, limits).speeds(filter(reaches, DEPTHS)):
            row = found.setdefault((speed.phase, speed.depth, speed.attention), {})
            row[name] = speed.tokens_per_second
    return [
        {"phase": phase, "depth": depth, "attention": gear, **speeds}
        for (phase, depth, gear), speeds in found.items()
    ]
