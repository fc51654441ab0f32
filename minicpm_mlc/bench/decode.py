"""Prefill and decode speed at given depths, and how close a decode step comes to the speed of
memory.

Depth is the number of tokens already in the cache. The cache is filled to a depth once and cut back
for every repeat.
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.speed_report import SpeedReport, SpeedRow
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.manifest import READ_KERNEL, Bundle, Manifest
from minicpm_mlc.runtime_py.defaults import largest_context
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.memory_reader import MemoryReader
from minicpm_mlc.runtime_py.protocols import Library, Machine
from minicpm_mlc.runtime_py.spent import Spent
from minicpm_mlc.runtime_py.traffic import Traffic, bundle_traffic

WARM_UP_TOKENS = 16
GEARS = ("dense", "sparse")
READS = 3  # of the whole buffer, before each repeat


class BenchError(MiniCPMError):
    """Depths or token counts that can't be measured."""


class Model(Protocol):
    """What a benchmark drives: an Engine, or llama.cpp in bench/vs_llama.py."""

    def prefill(self, token_ids: Sequence[int]) -> Any:
        """Appends tokens to the cache; returns the last one's logits, float32 [vocab]."""
        ...

    def decode(self, token_id: int) -> Any:
        """Appends one token; returns its logits, float32 [vocab]."""
        ...

    def truncate(self, length: int) -> None:
        """Cuts the cache back to its first `length` tokens."""


Filler = Callable[[int], None]  # brings a model's cache to this many tokens without computing them


class Side(Protocol):
    """A model that times itself."""

    def fill(self, depth: int) -> None:
        """Brings the cache to `depth` tokens."""

    def prefill_seconds(self, tokens: int) -> float:
        """What a prefill of so many more tokens takes; the cache is then cut back."""
        ...

    def decode_seconds(self, tokens: int) -> float:
        """What it takes to decode so many more tokens one by one; the cache is then cut back."""
        ...


class Stopwatch:
    """Times one model: every call leaves the cache at the depth that `fill` last gave it."""

    def __init__(self, model: Model, vocab_size: int, seed: int = 0, filler: Filler | None = None):
        self.model = model
        self.filler = filler
        self.random = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.depth = 0

    def fill(self, depth: int) -> None:
        """Bring the cache to `depth` tokens, by the filler, or computed after those that are
        there.
        """
        self.depth = min(self.depth, depth)
        self.model.truncate(self.depth)
        if depth > self.depth and self.filler:
            self.filler(depth)
        elif depth > self.depth:
            self.model.prefill(self._tokens(depth - self.depth))
        self.depth = depth

    def prefill_seconds(self, tokens: int) -> float:
        """What a prefill of so many random tokens takes."""
        token_ids = self._tokens(tokens)
        return self._seconds(lambda: self.model.prefill(token_ids))

    def decode_seconds(self, tokens: int) -> float:
        """What it takes to decode so many random tokens one by one."""
        token_ids = self._tokens(tokens)
        return self._seconds(lambda: [self._step(token_id) for token_id in token_ids])

    def logits(self, tokens: int) -> np.ndarray:
        """float32[vocab] after `tokens` more tokens; equal for equal models with the same seed and
        calls.
        """
        logits = np.array(self.model.prefill(self._tokens(tokens))).reshape(-1)
        self.model.truncate(self.depth)
        return logits

    def _step(self, token_id: int) -> object:
        return self.model.decode(token_id)

    def _tokens(self, count: int) -> list[int]:
        return self.random.integers(self.vocab_size, size=count).tolist()

    def _seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        self.model.truncate(self.depth)
        return seconds


class GearSide(Stopwatch):
    """One gear of an engine whose cache another gear's side shares: what that one filled is not
    filled again.
    """

    def __init__(self, engine: Engine, attention: str, filler: Filler | None = None):
        super().__init__(engine, engine.vocab_size, filler=filler)
        self.engine = engine
        self.attention = attention
        self._decodes: dict[int, list[tuple[float, Spent]]] = defaultdict(list)

    def fill(self, depth: int) -> None:
        """Brings the shared cache to `depth` tokens, in this gear."""
        self.engine.shift(self.attention)
        self.depth = len(self.engine.cached_tokens)
        super().fill(depth)

    def decode_seconds(self, tokens: int) -> float:
        """What it takes to decode so many random tokens one by one."""
        local = self.engine.library.local
        before = local.spent.copy() if local else Spent()
        seconds = super().decode_seconds(tokens)
        if local:
            self._decodes[self.depth].append((seconds, local.spent.since(before)))
        return seconds

    def _step(self, token_id: int) -> object:
        return self.engine.greedy(token_id)  # as an answer is decoded

    def parts(self, depth: int) -> dict[str, float]:
        """Shares of the time of the decodes at a depth, the first one, which warms up, left out;
        none where they ran on another machine.
        """
        spent, whole = Spent(), 0.0
        for seconds, calls in self._decodes[depth][1:]:
            spent.add(calls)
            whole += seconds
        device = self.engine.manifest.target["device"]
        return spent.shares(whole, DEVICE_RUNTIMES[device].in_process) if whole else {}

    def _seconds(self, call: Callable[[], Any]) -> float:
        self.engine.shift(self.attention)
        return super()._seconds(call)


def measure(
    sides: Mapping[str, Side],
    depths: Sequence[int],
    prompt_tokens: Sequence[int],
    new_tokens: int,
    repeats: int,
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, list[SpeedRow]]:
    """Time every side at every depth, taking turns repeat by repeat so that a shared machine
    disturbs all alike.

    A prefill of each of `prompt_tokens`, then a decode of `new_tokens`; 0 leaves a phase out.
    `before_each` repeat is called.
    """
    phases = [
        *(("prefill", tokens) for tokens in prompt_tokens if tokens),
        *([("decode", new_tokens)] if new_tokens else []),
    ]
    rows: dict[str, list[SpeedRow]] = {name: [] for name in sides}
    for depth in sorted(set(depths)):
        for side in sides.values():
            side.fill(depth)
            side.prefill_seconds(WARM_UP_TOKENS)  # threads awake, pages mapped
            side.decode_seconds(2)
        for phase, tokens in phases:
            samples: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(repeats):
                before_each()
                for name, side in sides.items():
                    samples[name].append(tokens / getattr(side, f"{phase}_seconds")(tokens))
            for name in sides:
                rows[name].append(SpeedRow(phase, depth, tokens, tuple(samples[name])))
    return rows


def with_traffic(row: SpeedRow, traffic: Traffic) -> SpeedRow:
    """The row with its gear, and a decode's GB/s: a step at depth d + i reads the keys and values
    of i + 1 new tokens too.
    """
    row = replace(row, attention=_attention(row, traffic.gears))
    if row.phase != "decode":
        return row
    step_bytes = traffic.per_step(row.depth + (row.tokens + 1) / 2)
    return replace(row, gb_per_second=row.tokens_per_second * step_bytes / 1e9)


def _attention(row: SpeedRow, gears: Gears | None) -> str:
    """The gears of a row's calls: one prefill, or a decode step per token."""
    lengths = [
        row.depth + n for n in ((row.tokens,) if row.phase == "prefill" else (1, row.tokens))
    ]
    sparse = [gears is not None and gears.sparse(length) for length in lengths]
    return ", ".join(dict.fromkeys(GEARS[gear] for gear in sparse))


def run_bench(
    model: Model,
    vocab_size: int,
    traffic: Traffic,
    depths: Sequence[int] = (0, 1024),
    prompt_tokens: Sequence[int] = (512,),
    new_tokens: int = 64,
    repeats: int = 3,
    filler: Filler | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> list[SpeedRow]:
    """Prefill each of `prompt_tokens` and decode `new_tokens` tokens at each depth, `repeats` times
    each.
    """
    sides = {"": Stopwatch(model, vocab_size, filler=filler)}
    rows = measure(sides, depths, prompt_tokens, new_tokens, repeats, before_each)[""]
    return [with_traffic(row, traffic) for row in rows]


def room_needed(depths: Sequence[int], prompt_tokens: Sequence[int], new_tokens: int) -> int:
    """The context that a benchmark needs, in tokens. Raises BenchError for what can't be
    measured.
    """
    need_depths(depths)
    if min(*prompt_tokens, new_tokens) < 0 or not max(*prompt_tokens, new_tokens):
        raise BenchError(
            f"--prompt-tokens {','.join(map(str, prompt_tokens))} and --new-tokens {new_tokens} "
            "leave nothing to measure; "
            "0 leaves a phase out, other counts are 1 or more"
        )
    return max(depths) + max(*prompt_tokens, new_tokens, WARM_UP_TOKENS)


def need_depths(depths: Sequence[int]) -> None:
    """Raises BenchError for depths that are none."""
    if not depths or min(depths) < 0:
        raise BenchError(
            f"depths must be one or more numbers >= 0, not {list(depths)}; try --depth 0,1024"
        )


def need_room(
    manifest: Manifest,
    depths: Sequence[int],
    context: int,
    machine: Machine | None = None,
) -> None:
    """Raises BenchError where `context` tokens, those behind the deepest among them, exceed the
    model or free memory of `machine`; None: this one.
    """
    free = (machine or LocalMachine()).free_memory(manifest.target["device"])
    fits = largest_context(manifest, free)
    behind = context - max(depths)
    if context > fits:
        hint = (
            f"give --depth {fits - behind} or less"
            if behind <= fits
            else "measure fewer tokens, or close other programs"
        )
        raise BenchError(
            f"--depth {max(depths)} and {behind} tokens behind it: model and free memory hold "
            f"{fits}; {hint}"
        )


def need_positive(**counts: int) -> None:
    """Raises BenchError naming the option whose number is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise BenchError(f"--{name.replace('_', '-')} is {count}; it must be 1 or more")


def bench_bundle(
    path: str | Path,
    depths: Sequence[int] = (0, 1024),
    prompt_tokens: Sequence[int] = (512,),
    new_tokens: int = 64,
    repeats: int = 3,
    threads: int | None = None,
    attention: str = "auto",
    random_cache: bool = False,
    remote: Machine | None = None,
) -> SpeedReport:
    """Benchmark a bundle on this machine or a `remote` one.

    `threads` None means the physical cores, `attention` is the engine's.

    With `random_cache` the tokens before a depth are random keys and values instead of computed
    ones.

    Raises BenchError for impossible depths and counts and for too deep ones, BundleError for the
    bundle.
    """
    counts = (depths, prompt_tokens, new_tokens, repeats, threads, random_cache, remote)
    return bench_gears(path, [attention], f"--attention {attention}", *counts)[attention]


def bench_gears(
    path: str | Path,
    gears: Sequence[str],
    option: str,
    depths: Sequence[int] = (0, 1024),
    prompt_tokens: Sequence[int] = (512,),
    new_tokens: int = 64,
    repeats: int = 3,
    threads: int | None = None,
    random_cache: bool = False,
    remote: Machine | None = None,
) -> dict[str, SpeedReport]:
    """The same in each of `gears` of one engine, taking turns on one cache; `option` is what asked
    for them.
    """
    machine: Machine = remote or LocalMachine()
    threads = machine.cores if threads is None else threads
    need_positive(repeats=repeats, threads=threads)
    if random_cache and not machine.shares_memory:
        raise BenchError(
            "--random-cache: the cache of another machine can't be filled; leave out "
            "--random-cache or --rpc"
        )
    context = room_needed(depths, prompt_tokens, new_tokens)
    need_room(Manifest.load(path), depths, context, machine)
    with Engine(
        path, context=context, threads=threads, attention=gears[0], remote=remote
    ) as engine:
        bundle = Bundle(engine.path, engine.manifest)
        traffic = bundle_traffic(bundle, engine.gears)
        device = engine.library.device_name
        filler = (lambda depth: fill_cache(engine, depth)) if random_cache else None
        reader = memory_reader(engine.library)
        sample = (lambda: reader.sample(READS)) if reader else lambda: None
        sides = {gear: GearSide(engine, gear, filler) for gear in gears}
        rows = measure(sides, depths, prompt_tokens, new_tokens, repeats, sample)
        note = steps_note(engine)
    command = (
        f"minicpm-mlc bench {shlex.quote(str(path))} --depth {','.join(map(str, depths))} "
        f"--prompt-tokens {','.join(map(str, prompt_tokens))} --new-tokens {new_tokens} "
        f"--repeats {repeats} "
        f"--threads {threads} {option}{' --random-cache' if random_cache else ''}"
        f"{machine.options}"
    )
    manifest = bundle.manifest
    bandwidth = reader.best if reader else None
    reports = {}
    for gear in gears:
        traffic = replace(traffic, gears=Gears.of(manifest, gear))
        full = measured_rows(rows[gear], sides[gear], traffic)
        told = (manifest.name, manifest.scheme, device, threads, context, command, bandwidth)
        reports[gear] = SpeedReport(*told, full, note)
    return reports


def measured_rows(rows: list[SpeedRow], side: GearSide, traffic: Traffic) -> list[SpeedRow]:
    """The rows with their gears, and of decodes the GB/s and where the time went."""
    full = [with_traffic(row, traffic) for row in rows]
    return [
        replace(row, parts=side.parts(row.depth)) if row.phase == "decode" else row for row in full
    ]


def steps_note(engine: Engine) -> str | None:
    """How a GPU's decode steps were launched."""
    local = engine.library.local
    return local.steps_note if local else None


def memory_reader(library: Library) -> MemoryReader | None:
    """By the library's own kernel; None where it is on another machine."""
    local = library.local
    return MemoryReader(local.kernel(READ_KERNEL), memory=local.memory) if local else None
