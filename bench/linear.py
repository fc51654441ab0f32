"""The linear kernels alone: int8 activations against float32 ones and against ggml's q4_0, or
schemes against each other, taking turns in one run.

    python bench/linear.py                   # one thread, CPU time: right on a busy machine too
    python bench/linear.py --threads 2       # wall time
    python bench/linear.py --scheme w4 --scheme w4k --no-float32 --no-ggml
    python bench/linear.py --shape 8x4096x4096 --dot avx2 --json

A shape is rows x outputs x inputs; the weights are random and rotate through more memory than the
caches hold. Activations start and end as float32 on every side. ggml comes with `pip install
llama-cpp-python`, its weights repacked.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.operator import Operator

PROCESSORS = {
    "avx2": "x86-64-v3",
    "avxvnni": "alderlake",
}  # that a level's kernels are compiled for
SHAPES = [
    "1x1024x1024",
    "1x4096x1024",
    "1x4096x4096",
    "1x16384x4096",
    "2x4096x4096",
    "4x4096x4096",
    "8x4096x4096",
]
SHAPES += ["16x4096x4096", "64x4096x4096", "512x4096x4096"]
Q4_0 = 2  # ggml's number of the type
Pass = Callable[[], Any]  # multiplies by every copy of the weights once


@dataclass(frozen=True)
class Speed:
    """Median speed of one side at one shape; `ratio` is the median of the pairwise ratios to the
    first side.
    """

    m: int
    n: int
    k: int
    side: str
    gb_per_second: float  # of weights and scales
    gop_per_second: float
    ratio: float


def stored_bytes(n: int, k: int, scheme: str) -> int:
    """Bytes of a weight with its scales."""
    return sum(tensor.nbytes for tensor in SCHEMES[scheme].tensors(n, k))


class Kernels:
    """Our compiled kernels at one shape over `copies` random weights."""

    def __init__(self, scheme: str, m: int, n: int, k: int, copies: int) -> None:
        self.scheme, self.m, self.n, self.k, self.copies = SCHEMES[scheme], m, n, k, copies
        self.x = random_tensor((m, k), "float32")
        self.out = random_tensor((m, -(-n // 16) * 16), "float32")

    def float32(self) -> Pass:
        from minicpm_mlc.ops.linear import Linear

        call, weights = build(Linear(self.n, self.k, self.scheme)), self.weights(self.scheme)
        return lambda: [call(self.x, *weight, self.out) for weight in weights]

    def int8(self, dot: str) -> Pass:
        from minicpm_mlc.ops.cpu.int8_dot import DOTS
        from minicpm_mlc.ops.linear_int8 import LinearInt8
        from minicpm_mlc.ops.quantize_rows import QuantizeRows, quantized_shape

        scheme = self.scheme.beside("int8")
        factor, weights = DOTS[dot].factor(scheme), self.weights(scheme)
        call = build(LinearInt8(self.n, self.k, scheme, sum_factor=factor), dot)
        quantize = build(QuantizeRows(self.k, factor))
        words = random_tensor(quantized_shape(self.m, self.k), "int32")
        return lambda: [
            (quantize(self.x, words), call(words, *weight, self.out)) for weight in weights
        ]

    def weights(self, scheme: Scheme) -> list[list[Any]]:
        tensors = scheme.tensors(self.n, self.k)
        return [[random_tensor(t.shape, t.dtype) for t in tensors] for _ in range(self.copies)]


def memory_read(nbytes: int, copies: int) -> Pass:
    """Reads as many bytes as the copies hold: memchr for a byte that isn't there. What a GEMV can
    reach at most.
    """
    memchr = ctypes.CDLL(None).memchr
    buffer = (ctypes.c_char * (nbytes * copies)).from_buffer(bytearray(b"\1") * (nbytes * copies))
    return lambda: memchr(buffer, 0, ctypes.c_size_t(nbytes * copies))


@cache
def native() -> Any:
    from minicpm_mlc.targets import get_target

    return get_target("cpu", "native")


def build(operator: Operator, dot: str | None = None) -> Callable[..., None]:
    """The operator's kernel for this machine, or for one that multiplies int8 by `dot`."""
    from minicpm_mlc.bench.timing import compiled
    from minicpm_mlc.ops.build import build as kernel
    from minicpm_mlc.targets.cpu import CpuTarget

    target = CpuTarget.of(PROCESSORS.get(dot or "", "native"))
    return compiled(kernel(operator, replace(target.traits, int8_dot=dot)), target)


def random_tensor(shape: tuple[int, ...], dtype: str) -> Any:
    import tvm

    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return tvm.runtime.tensor(rng.standard_normal(shape, dtype=np.float32).astype(dtype))
    span = np.iinfo(dtype)
    return tvm.runtime.tensor(rng.integers(span.min, span.max, shape, dtype))


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class Ggml:
    """ggml's CPU backend through its C API: a graph of one mul_mat per copy of the weights,
    repacked where it can.
    """

    def __init__(self, threads: int) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise SystemExit(
                "ggml isn't installed: pip install llama-cpp-python, or leave it out with --no-ggml"
            )
        folder = Path(spec.origin).parent / "lib"
        self.base, self.cpu = (
            ctypes.CDLL(str(next(folder.glob(f"libggml-{part}.*"))), mode=ctypes.RTLD_GLOBAL)
            for part in ("base", "cpu")
        )
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
            lambda *_: None
        )
        self._call(self.base, "ggml_log_set", self.quiet, None)
        self.backend = self._call(self.cpu, "ggml_backend_cpu_init")
        self._call(self.cpu, "ggml_backend_cpu_set_n_threads", self.backend, threads)

    def q4_0(self, m: int, n: int, k: int, copies: int) -> Pass:
        """The graph's compute call."""
        weights, rest = self._context(copies), self._context(2 * copies + 1)
        matrices = [self._tensor(weights, Q4_0, k, n) for _ in range(copies)]
        x = self._tensor(rest, 0, k, m)
        graph = self._call(self.base, "ggml_new_graph", rest)
        for matrix in matrices:
            product = self._call(self.base, "ggml_mul_mat", rest, matrix, x)
            self._call(self.base, "ggml_build_forward_expand", graph, product)
        self._allocate(weights, self._repacking())
        self._allocate(rest, self._call(self.cpu, "ggml_backend_cpu_buffer_type"))
        for matrix in matrices:
            self._set(matrix, random_q4_0(n, k))
        self._set(x, np.random.default_rng(0).standard_normal((m, k), dtype=np.float32))
        return lambda: self._call(self.base, "ggml_backend_graph_compute", self.backend, graph)

    def _call(self, library: Any, name: str, *args: Any) -> Any:
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        return function(
            *(ctypes.c_void_p(a) if isinstance(a, int) and a > 1 << 31 else a for a in args)
        )

    def _context(self, tensors: int) -> int:
        size = 1 << 20 | tensors * 1024
        return self._call(self.base, "ggml_init", _InitParams(size, None, True))

    def _tensor(self, context: int, kind: int, *shape: int) -> int:
        return self._call(
            self.base, "ggml_new_tensor_2d", context, kind, *map(ctypes.c_int64, shape)
        )

    def _allocate(self, context: int, buffer_type: int) -> None:
        if not self._call(
            self.base, "ggml_backend_alloc_ctx_tensors_from_buft", context, buffer_type
        ):
            raise SystemExit("ggml has no memory for the weights; ask for a smaller --shape")

    def _set(self, tensor: int, array: np.ndarray) -> None:
        data = array.ctypes.data_as(ctypes.c_void_p)
        self._call(
            self.base,
            "ggml_backend_tensor_set",
            tensor,
            data,
            ctypes.c_size_t(0),
            ctypes.c_size_t(array.nbytes),
        )

    def _repacking(self) -> int:
        """The buffer type that interleaves the weights as llama.cpp does by default."""
        register = self._call(self.cpu, "ggml_backend_cpu_reg")
        device = self._call(self.base, "ggml_backend_reg_dev_get", register, ctypes.c_size_t(0))
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self._call(self.base, "ggml_backend_reg_get_proc_address", register, name)
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
        for index in range(16):
            if not listed[index]:
                break
            label = ctypes.string_at(self._call(self.base, "ggml_backend_buft_name", listed[index]))
            if b"REPACK" in label:
                return listed[index]
        return self._call(self.cpu, "ggml_backend_cpu_buffer_type")


def random_q4_0(n: int, k: int) -> np.ndarray:
    """Blocks of an f16 scale and 32 nibbles."""
    rng = np.random.default_rng(0)
    blocks = np.empty(n * k // 32, np.dtype([("scale", np.float16), ("nibbles", np.uint8, 16)]))
    blocks["scale"] = rng.standard_normal(len(blocks), dtype=np.float32)
    blocks["nibbles"] = rng.integers(0, 256, (len(blocks), 16), np.uint8)
    return blocks


def measure(
    passes: dict[str, Pass], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every pass, in turns, after one unmeasured pass each."""
    seconds: dict[str, list[float]] = {side: [] for side in passes}
    for repeat in range(repeats + 1):
        for side, run in passes.items():
            start = clock()
            run()
            if repeat:
                seconds[side].append(clock() - start)
    return seconds


def compare(shape: str, args: argparse.Namespace) -> list[Speed]:
    m, n, k = map(int, shape.split("x"))
    schemes = args.scheme or ["w4"]
    first_bytes = stored_bytes(n, k, schemes[0])
    copies = max(1, (args.rotate << 20) // (first_bytes * min(m, 64)))
    passes, sizes = {}, {}
    for scheme in schemes:
        kernels, label = Kernels(scheme, m, n, k, copies), f" {scheme}" if len(schemes) > 1 else ""
        own = {f"int8 {dot}{label}": kernels.int8(dot) for dot in args.dot or [native().int8_dot]}
        if not args.no_float32:
            own[f"float32{label}"] = kernels.float32()
        passes |= own
        sizes |= dict.fromkeys(own, stored_bytes(n, k, scheme))
    if not args.no_ggml and "w4" in schemes:
        passes["ggml q4_0"] = Ggml(args.threads).q4_0(m, n, k, copies)
    if m == 1 and args.threads == 1:
        passes["memory read"] = memory_read(first_bytes, copies)
    seconds = measure(
        passes, args.repeats, time.thread_time if args.threads == 1 else time.perf_counter
    )
    first = next(iter(seconds.values()))

    def row(side: str, times: list[float]) -> Speed:
        median = statistics.median(times) / copies
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        gigabytes = sizes.get(side, first_bytes) / 1e9
        return Speed(m, n, k, side, gigabytes / median, 2 * m * n * k / median / 1e9, ratio)

    return [row(*pair) for pair in seconds.items()]


def text(device: str, threads: int, rows: list[Speed]) -> str:
    clock = "CPU time" if threads == 1 else "wall time"
    lines = [
        f"{device}, {threads} thread{'s' * (threads > 1)}, {clock}; ratio: speed against the "
        "first side"
    ]
    lines.append(
        f"{'rows x outputs x inputs':24} {'side':20} {'GB/s':>7} {'GOP/s':>8} {'ratio':>6}"
    )
    for r in rows:
        shape = f"{r.m} x {r.n} x {r.k}"
        lines.append(
            f"{shape:24} {r.side:20} {r.gb_per_second:7.1f} {r.gop_per_second:8.1f} {r.ratio:6.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", action="append", help="rows x outputs x inputs, as 1x4096x4096; may repeat"
    )
    parser.add_argument(
        "--scheme",
        action="append",
        choices=[name for name in SCHEMES if SCHEMES[name].takes_int8],
        help="of the weights; may repeat  [w4]",
    )
    parser.add_argument(
        "--dot",
        action="append",
        help="kernels to compare: avx512vnni, avxvnni, avx2, i8mm, dotprod",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--rotate", type=int, default=300, help="MB of weights that a GEMV goes through"
    )
    parser.add_argument("--no-ggml", action="store_true")
    parser.add_argument("--no-float32", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)  # before TVM starts its pool

    from minicpm_mlc.runtime_py.machine import cpu_name

    rows = [row for shape in args.shape or SHAPES for row in compare(shape, args)]
    result = {
        "device": cpu_name(),
        "threads": args.threads,
        "schemes": args.scheme or ["w4"],
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(result, indent=1) if args.json else text(cpu_name(), args.threads, rows))


if __name__ == "__main__":
    main()
