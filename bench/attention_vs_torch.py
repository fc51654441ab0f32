"""Our dense prefill attention and torch's scaled_dot_product_attention, same rows, same threads,
taking turns in one run.

    python bench/attention_vs_torch.py --rows 2048

One layer of MiniCPM4.1-8B's heads, a prompt's causal attention over itself. Ours reads f16 pages;
torch gets contiguous float32 with the keys and values of a group expanded beforehand, which is not
timed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import tvm

from minicpm_mlc.bench.timing import use_threads
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.attend import AttendPrefill
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.targets.cpu import CpuTarget

HEADS, KV_HEADS, WIDTH = 32, 2, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=2048, help="tokens of the prompt, a multiple of 64"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_threads(args.threads)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((args.rows, HEADS, WIDTH), dtype=np.float32)
    k, v = (rng.standard_normal((args.rows, KV_HEADS, WIDTH)).astype(np.float16) for _ in range(2))
    ours, theirs = our_attention(q, k, v), torch_attention(q, k, v)
    error = np.abs(ours() - theirs()).max()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(args.repeats)]
    mine, torchs = (statistics.median(column) for column in zip(*pairs, strict=True))
    work = 2 * HEADS * WIDTH * args.rows * (args.rows + 1)
    print(f"{cpu_name()}, {args.threads} threads, {args.rows} rows, largest difference {error:.1e}")
    print(f"minicpm-mlc {mine * 1e3:.1f} ms = {work / mine / 1e9:.0f} GFLOP/s")
    print(f"torch {torch.__version__} {torchs * 1e3:.1f} ms = {work / torchs / 1e9:.0f} GFLOP/s")
    print(f"ratio {statistics.median(t / m for m, t in pairs):.2f}x")


def our_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray):
    target = CpuTarget.of("native")
    kernel = build(AttendPrefill(HEADS, KV_HEADS, WIDTH, F16), target.traits).with_attr(
        "global_symbol", "main"
    )
    run = tvm.compile(tvm.IRModule({"main": kernel}), target.tvm_target())["main"]
    pages = len(q) // PAGE_SIZE
    k_pages = k.reshape(pages, PAGE_SIZE, KV_HEADS, WIDTH).transpose(0, 2, 3, 1)
    v_pages = v.reshape(pages, PAGE_SIZE, KV_HEADS, WIDTH).transpose(0, 2, 1, 3)
    table, slots = np.arange(pages, dtype=np.int32)[None], np.arange(len(q), dtype=np.int32)
    arrays = (q, k_pages, v_pages, table, slots, np.zeros((len(q), HEADS * WIDTH), np.float32))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
    return lambda: (run(*tensors), tensors[-1].numpy())[1]


def torch_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray):
    group = HEADS // KV_HEADS
    queries = torch.from_numpy(q).transpose(0, 1)[None]
    keys, values = (
        torch.from_numpy(x.astype(np.float32)).transpose(0, 1).repeat_interleave(group, 0)[None]
        for x in (k, v)
    )

    def run() -> np.ndarray:
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True
        )
        return out[0].transpose(0, 1).reshape(len(q), -1).numpy()

    return run


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
