"""minicpm-mlc and llama.cpp side by side: one shape, random 4-bit weights, the same threads, taking turns in one run.

    python bench/vs_llama.py --work build/bench --markdown

Each side lives in its own process, so that neither's threads or core pinning disturb the other, and times itself.
A decode step is one token in, its logits out; nothing is sampled. See bench/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.compile.presets import PRESETS
from minicpm_mlc.errors import MiniCPMError
from minicpm_mlc.manifest import read_bundle
from minicpm_mlc.runtime_py import bench
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.runtime_py.roofline import memory_bandwidth
from minicpm_mlc.runtime_py.tables import markdown_table, plain_table

OURS, THEIRS = "minicpm-mlc", "llama.cpp"


class LlamaCpp:
    """llama.cpp through its C API with its own defaults: f16 KV cache, flash attention auto, weights repacked."""

    def __init__(self, path: str, context: int, threads: int):
        self.api: Any = importlib.import_module("llama_cpp")
        self.log = self.api.llama_log_callback(lambda level, text, user_data: None)
        self.api.llama_log_set(self.log, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        model = self.api.llama_model_load_from_file(path.encode(), self.api.llama_model_default_params())
        if not model:
            raise SystemExit(f"llama.cpp can't load {path}; delete it and run again to have it written anew")
        self.context = self.api.llama_init_from_model(model, self._params(context, threads))
        if not self.context:
            raise SystemExit(f"llama.cpp has no memory for a context of {context} tokens; lower --depth")
        self.memory = self.api.llama_get_memory(self.context)
        self.batch = self.api.llama_n_batch(self.context)
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model))

    def _params(self, context: int, threads: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.n_threads = params.n_threads_batch = threads
        return params

    def prefill(self, token_ids: Sequence[int]) -> np.ndarray:
        """Append `token_ids` to the cache; float32[vocab] logits of the last."""
        for start in range(0, len(token_ids), self.batch):
            part = token_ids[start : start + self.batch]
            tokens = (self.api.llama_token * len(part))(*part)
            status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(part)))
            if status:
                raise RuntimeError(f"llama_decode returned {status} for {len(part)} tokens")
        logits = self.api.llama_get_logits_ith(self.context, -1)  # waits for the computation
        return np.ctypeslib.as_array(logits, (self.vocab_size,)).copy()

    def decode(self, token_id: int) -> np.ndarray:
        return self.prefill([token_id])

    def truncate(self, length: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, 0, length, -1)


def open_bundle(path: str, context: int, threads: int) -> bench.Model:
    return Engine(path, context=context, threads=threads)


class Remote:
    """A Stopwatch in a process of its own."""

    def __init__(self, opener: Callable[..., bench.Model], vocab_size: int, *args: Any):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        spawn.Process(target=answer, args=(other, opener, vocab_size, args), daemon=True).start()
        other.close()

    def fill(self, depth: int) -> None:
        self._ask("fill", depth)

    def prefill_seconds(self, tokens: int) -> float:
        return self._ask("prefill_seconds", tokens)

    def decode_seconds(self, tokens: int) -> float:
        return self._ask("decode_seconds", tokens)

    def logits(self, tokens: int) -> np.ndarray:
        return self._ask("logits", tokens)

    def _ask(self, method: str, argument: int) -> Any:
        try:
            self.pipe.send((method, argument))
            return self.pipe.recv()
        except (EOFError, OSError):
            raise SystemExit("one side ended early; its own error is printed above") from None


def answer(pipe, opener: Callable[..., bench.Model], vocab_size: int, args: tuple) -> None:
    """The child's loop: run the Stopwatch's method that the parent names, send back what it returns."""
    stopwatch = bench.Stopwatch(opener(*args), vocab_size)
    with suppress(EOFError, KeyboardInterrupt):  # the parent is done
        while True:
            method, argument = pipe.recv()
            pipe.send(getattr(stopwatch, method)(argument))


def agreement(ours: Remote, theirs: Remote, tokens: int = 64) -> float:
    """Correlation of both sides' logits after the same tokens: the same weights, rounded to 4 bits by other rules."""
    correlation = float(np.corrcoef(ours.logits(tokens), theirs.logits(tokens))[0, 1])
    if correlation < 0.9:
        raise SystemExit(
            f"the two sides don't compute the same model: their logits correlate only {correlation:.3f}; "
            "use a bundle compiled with --random-weights, or another --work folder to build both anew"
        )
    return correlation


@dataclass(frozen=True)
class Comparison:
    """Both sides' rows, line by line. `bandwidth` is in bytes/s, `agreement` the correlation of their logits.

    `load` is the load average when it began: programs that were running besides.
    """

    preset: str
    device: str
    threads: int
    bandwidth: float
    agreement: float
    load: float
    command: str
    ours: list[bench.Row]
    theirs: list[bench.Row]

    def head(self) -> str:
        return (
            f"{self.preset}, random weights, 4-bit linears, embedding and head; {self.device}, {self.threads} threads, "
            f"memory reads {self.bandwidth / 1e9:.1f} GB/s. The two sides' logits correlate {self.agreement:.3f}. "
            f"Load average before the run: {self.load:.1f}."
        )

    def cells(self) -> list[list[str]]:
        head = ["phase", "depth", "tokens", f"{OURS} tokens/s", f"{THEIRS} tokens/s", "ratio"]
        return [[*head, f"{OURS} GB/s", f"{THEIRS} GB/s"], *map(self._line, self.ours, self.theirs)]

    def _line(self, ours: bench.Row, theirs: bench.Row) -> list[str]:
        ratio = ours.tokens_per_second / theirs.tokens_per_second
        speeds = [f"{ours.tokens_per_second:.1f}", f"{theirs.tokens_per_second:.1f}", f"{ratio:.2f}x"]
        gb_per_second = [" = ".join(filter(None, bench.bandwidth_cells(row, self.bandwidth))) for row in (ours, theirs)]
        return [ours.phase, f"{ours.depth}", f"{ours.tokens}", *speeds, *gb_per_second]

    def plain(self) -> str:
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        return f"{self.head()}\n\n`{self.command}`\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def gguf_traffic(path: Path, config) -> bench.Traffic:
    """What llama.cpp reads per step: every tensor but an embedding that the head doesn't share, and f16 KV."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    unread = set() if config.tie_word_embeddings else {"token_embd.weight"}
    weights = sum(int(tensor.n_bytes) for tensor in tensors if tensor.name not in unread)
    return bench.Traffic(weights, config.kv_bytes_per_token(2))


def prepared(args: argparse.Namespace) -> tuple[Path, Path]:
    """The bundle and the GGUF file of the preset, built in --work unless they are there."""
    from gguf_random import write_random

    args.work.mkdir(parents=True, exist_ok=True)
    bundle: Path = args.bundle or args.work / f"{args.preset}-w4-cpu"
    gguf_path: Path = args.work / f"{args.preset}-q4_0.gguf"
    if not bundle.exists():
        command = ["compile", args.preset, "--random-weights", "--quant", "w4", "--out", str(bundle)]
        if subprocess.run([sys.executable, "-m", "minicpm_mlc", *command], stdout=sys.stderr).returncode:
            sys.exit("the bundle was not compiled; the reason is printed above")
    if not gguf_path.exists():
        write_random(gguf_path, args.preset)
    return bundle, gguf_path


def compare(args: argparse.Namespace) -> Comparison:
    config = PRESETS[args.preset]
    bench.need_positive(repeats=args.repeats, threads=args.threads)
    bundle, gguf_path = prepared(args)
    load = os.getloadavg()[0]
    bandwidth = memory_bandwidth(args.threads)
    context = bench.room_needed(args.depths, args.prompt_tokens, args.new_tokens)
    sides = {
        OURS: Remote(open_bundle, config.vocab_size, str(bundle), context, args.threads),
        THEIRS: Remote(LlamaCpp, config.vocab_size, str(gguf_path), context, args.threads),
    }
    agreed = agreement(sides[OURS], sides[THEIRS])
    rows = bench.measure(sides, args.depths, args.prompt_tokens, args.new_tokens, args.repeats)
    ours = read_bundle(bundle)
    traffic = {
        OURS: bench.bundle_traffic(ours, Gears.of(ours.manifest, "auto")),
        THEIRS: gguf_traffic(gguf_path, config),
    }
    ours, theirs = ([bench.with_traffic(row, traffic[name]) for row in rows[name]] for name in sides)
    command = shlex.join(["python", "bench/vs_llama.py", *sys.argv[1:]])
    return Comparison(args.preset, cpu_name(), args.threads, bandwidth, agreed, load, command, ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="MiniCPM4-0.5B")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where bundle and GGUF are kept")
    parser.add_argument("--bundle", type=Path, help="a w4 bundle of the preset, instead of building one in --work")
    parser.add_argument("--depth", dest="depths", type=depth_list, default=[0, 1024, 8192], help="0,1024,8192")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    try:
        result = compare(args)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    print(result.json() if args.json else result.markdown() if args.markdown else result.plain())


def depth_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
