"""Dense against sparse attention alone, at the 8B models' head shapes: compiled here, paired in one
run.

The key/value pools hold random numbers; selection then spreads over the whole context, which is its
most expensive case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.decode import BenchError, need_positive
from minicpm_mlc.bench.limits import memory_reader
from minicpm_mlc.bench.random_cache import fill_pages
from minicpm_mlc.bench.timing import compiled, medians
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.config.rope_lists import LONGER_CONTEXT
from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
from minicpm_mlc.ops.attend_blocks import AttendBlocks
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.speed_limits import STEPS, bf16_peak, multiply_add_peak
from minicpm_mlc.ops.formats.kv import KV_FORMATS, KVFormat
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.select_blocks import SelectBlocks
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.runtime_py.memory import reserve
from minicpm_mlc.targets.cpu import CpuTarget

MODEL = "MiniCPM4.1-8B"
COLUMNS = [
    "phase",
    "context",
    "rows",
    "tokens read",
    "multiply-adds",
    "dense ms",
    "sparse ms",
    "score + select + attend",
    "speed-up",
    "dense GB/s",
    "dense GFLOP/s",
    "at full bandwidth ms",
    "at peak ms",
    "% of nearer limit",
]


@dataclass(frozen=True)
class AttentionRow:
    """One comparison; milliseconds are medians per call of all rows, shares are of the dense
    kernel's.
    """

    phase: str
    context: int
    rows: int
    tokens_read: float
    multiply_adds: float
    dense_ms: float
    sparse_ms: float
    parts_ms: tuple[float, float, float]
    dense_gb_per_second: float
    dense_gflops: float

    @property
    def speed_up(self) -> float:
        """How many times as fast the sparse kernels are."""
        return self.dense_ms / self.sparse_ms


@dataclass(frozen=True)
class AttentionReport:
    """Rows and the limits that were measured in the same run, in GB/s and GFLOP/s."""

    device: str
    threads: int
    command: str
    bandwidth: float
    peak: float
    rows: list[AttentionRow]
    kv: str = "f16"  # as keys and values are stored
    arithmetic: str = "float32"  # that the peak is of

    def cells(self) -> list[list[str]]:
        """The table: COLUMNS, then a line per row."""
        return [COLUMNS, *(self._line(row) for row in self.rows)]

    def _line(self, r: AttentionRow) -> list[str]:
        parts = " + ".join(f"{part:.2f}" for part in r.parts_ms)
        of_bandwidth = r.dense_gb_per_second / self.bandwidth
        of_peak = r.dense_gflops / self.peak
        rates = [f"{r.dense_gb_per_second:.1f}", f"{r.dense_gflops:.0f}"]
        rates += [f"{r.dense_ms * of_bandwidth:.2f}", f"{r.dense_ms * of_peak:.2f}"]
        rates += [f"{100 * max(of_bandwidth, of_peak):.0f} %"]
        shares = [f"{100 * r.tokens_read:.1f} %", f"{100 * r.multiply_adds:.1f} %"]
        times = [f"{r.dense_ms:.2f}", f"{r.sparse_ms:.2f}", parts, f"{r.speed_up:.1f}x"]
        return [r.phase, str(r.context), str(r.rows), *shares, *times, *rates]

    def head(self) -> str:
        """Two lines: the machine with its limits, and the command."""
        return (
            f"{self.device}, {self.threads} threads, {MODEL}'s heads, {self.kv} keys and values; "
            "measured here: "
            f"{self.bandwidth:.1f} GB/s, {self.peak:.0f} GFLOP/s {self.arithmetic}\n{self.command}"
        )

    def plain(self) -> str:
        """The report for a terminal."""
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        """The report as Markdown."""
        return f"{self.head()}\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self))


def bench_attention(
    depths: Sequence[int] = (32768, 131072),
    prompt_tokens: Sequence[int] = (512,),
    repeats: int = 3,
    threads: int | None = None,
    kv: str = "f16",
) -> AttentionReport:
    """Time decode at each of `depths` (tokens of context), and the last `prompt_tokens` rows of a
    prefill at the longest.

    0 rows leave prefill out. `kv`: how keys and values are stored, as compile's --kv. Raises
    BenchError for depths and counts that can't be measured.
    """
    count = physical_cores() if threads is None else threads
    need_positive(repeats=repeats, threads=count)
    _check(depths, prompt_tokens)
    bandwidth = memory_reader(count).best / 1e9
    bench = _Bench(PRESETS[MODEL], SparseConfig(), max(depths), repeats, KV_FORMATS[kv])
    rows = [bench.compare("decode", context, 1) for context in depths]
    rows += [bench.compare("prefill", max(depths), n) for n in prompt_tokens if n]
    command = (
        f"minicpm-mlc bench --attention-only --depth {','.join(map(str, depths))} "
        f"--prompt-tokens {','.join(map(str, prompt_tokens))} --repeats {repeats} --threads "
        f"{count} --kv {kv}"
    )
    return AttentionReport(
        cpu_name(), count, command, bandwidth, bench.peak(count), rows, kv, bench.arithmetic
    )


def _check(depths: Sequence[int], prompt_tokens: Sequence[int]) -> None:
    if not depths or not 1 <= min(depths) <= max(depths) <= LONGER_CONTEXT:
        raise BenchError(
            f"--depth {','.join(map(str, depths))}: attention reads 1 to {LONGER_CONTEXT} tokens "
            "of context; "
            "try --depth 32768,131072"
        )
    if not prompt_tokens or min(prompt_tokens) < 0 or max(prompt_tokens) > max(depths):
        raise BenchError(
            f"--prompt-tokens {','.join(map(str, prompt_tokens))}: they are the last rows of the "
            "deepest context; "
            f"give 0 (no prefill) to {max(depths)}"
        )


class _Bench:
    """Compiled operators and random pools of one layer."""

    def __init__(
        self, config: ModelConfig, sparse: SparseConfig, context: int, repeats: int, kv: KVFormat
    ) -> None:
        self.config = config
        self.sparse = sparse
        self.repeats = repeats
        heads = config.num_heads
        kv_heads = config.num_kv_heads
        width = config.head_dim
        pages = -(-context // PAGE_SIZE)
        local = sparse.window_size // sparse.block_size
        self.budget = sparse.topk + local
        traits = CpuTarget.of("native").traits
        kv = traits.laid_out(kv)
        shape = (heads, kv_heads, width)
        both = {"prefill": False, "decode": True}
        dense = {"prefill": AttendPrefill(*shape, kv), "decode": AttendDecode(*shape, kv)}
        self.arithmetic = "bfloat16" if kv.multiplied_as_bfloat16(traits.bf16_dot) else "float32"
        self.dense = {kind: _compiled(build(each, traits)) for kind, each in dense.items()}
        self.score = {
            k: _compiled(build(ScoreBlocks(*shape, b, kv), traits)) for k, b in both.items()
        }
        self.select = _compiled(
            build(SelectBlocks(kv_heads, sparse.topk, local, sparse.init_blocks), traits)
        )
        self.attend = {
            k: _compiled(build(AttendBlocks(*shape, kv, self.budget, b), traits))
            for k, b in both.items()
        }
        means = _compiled(build(SegmentMeans(kv_heads, width, kv, False), traits))
        rng, storage = np.random.default_rng(0), np.dtype(kv.storage)
        self.keys = reserve((pages, *kv.key_shape(kv_heads, width)), storage)
        self.values = reserve((pages, *kv.value_shape(kv_heads, width)), storage)
        fill_pages(kv, self.keys, self.values, np.arange(pages), rng)
        self.means = _aligned(np.zeros((pages, kv_heads, 4, width), np.float32))
        self.tables = _aligned(rng.permutation(pages).astype(np.int32)[None])
        means(
            _aligned(np.arange(pages * PAGE_SIZE, dtype=np.int32)),
            self.tables,
            self.keys,
            self.means,
        )

    def compare(self, phase: str, context: int, n: int) -> AttentionRow:
        """The last n rows at `context` tokens, dense and sparse in turn."""
        c = self.config
        q = _aligned(
            np.random.default_rng(1).standard_normal((n, c.num_heads, c.head_dim), dtype=np.float32)
        )
        slots = _aligned(np.arange(context - n, context, dtype=np.int32))
        tables = _aligned(self.tables[:, : -(-context // PAGE_SIZE)])
        scores = _aligned(np.zeros((n, c.num_kv_heads, tables.shape[1]), np.float32))
        chosen = _aligned(np.zeros((n, c.num_kv_heads, self.budget), np.int32))
        out = _aligned(np.zeros((n, c.num_heads * c.head_dim), np.float32))
        calls: list[Callable[[], Any]] = [
            lambda: self.dense[phase](q, self.keys, self.values, tables, slots, out),
            lambda: self.score[phase](q, self.means, tables, slots, scores),
            lambda: self.select(scores, slots, chosen),
            lambda: self.attend[phase](q, self.keys, self.values, tables, slots, chosen, out),
        ]
        dense, *parts = medians(calls, self.repeats)
        read = min(self.budget * PAGE_SIZE, context)
        windows = self.sparse.num_windows(context) + self.sparse.num_coarse_windows(context)
        work = 4 * c.num_heads * c.head_dim * context * n
        moved = (self.keys[0].nbytes + self.values[0].nbytes) * context / PAGE_SIZE
        return AttentionRow(
            phase,
            context,
            n,
            read / context,
            (2 * windows + 4 * read) / (4 * context),
            dense * 1e3,
            sum(parts) * 1e3,
            (parts[0] * 1e3, parts[1] * 1e3, parts[2] * 1e3),
            moved / dense / 1e9,
            work / dense / 1e9,
        )

    def peak(self, threads: int) -> float:
        """GFLOP/s of multiply-adds on registers alone, of the kind that attention makes."""
        paired = self.arithmetic == "bfloat16"
        vectors = CpuTarget.of("native").traits.peak_vectors
        kernel = _compiled((bf16_peak if paired else multiply_add_peak)(vectors))
        out = _aligned(np.zeros((threads, 16), np.float32))
        seconds = min(medians([lambda: kernel(out)], 5))
        return threads * STEPS * vectors * 16 * (4 if paired else 2) / seconds / 1e9


def _compiled(kernel: Any) -> Callable[..., None]:
    function = compiled(kernel)
    return lambda *arrays: function(*(tvm.runtime.from_dlpack(array) for array in arrays))


def _aligned(array: np.ndarray) -> np.ndarray:
    held = reserve(array.shape, array.dtype)
    held[...] = array
    return held
