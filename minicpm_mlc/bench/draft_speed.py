"""What a list of tokens saves a draft head: a level of its tree with the whole vocabulary and with
the list, on this CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.bench.timing import compiled, medians
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.parameters import Precision, layer_parameters
from minicpm_mlc.compile.quantize import SCHEMES
from minicpm_mlc.ops.cpu.quantize_rows import quantized_shape
from minicpm_mlc.ops.formats.weights import LANES, WeightFormat
from minicpm_mlc.runtime_py.library import use_threads
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.runtime_py.memory import reserve
from minicpm_mlc.targets.cpu import CpuTarget

SCHEME = SCHEMES["w4"]
ROWS = 4  # nodes of a level: draft_top_k by default
REPEATS = 15


def measure_draft_speed(config: ModelConfig, size: int) -> dict[str, Any]:
    """Times the products of an EAGLE-2 head of the model's shape, whose vocabulary is the model's
    or `size` tokens of it.

    Returns {"device", "threads", "rows", "scheme", "head", "level"}: the head's product alone and
    all products of a level of `rows` nodes, each {"whole_ms", "list_ms", "ratio"}. Attention and
    the choice of the likeliest tokens are left out.
    """
    threads = physical_cores()
    use_threads(threads)
    hidden = config.hidden_size
    precision = Precision(SCHEME, SCHEME, "float16")
    shapes = [(p.rows, p.columns) for p in layer_parameters(config, "", "", precision) if p.columns]
    layer = [_product(n, k) for n, k in [(hidden, 2 * hidden), *shapes]]
    heads = [_product(n, hidden) for n in (config.vocab_size, size)]
    levels = [lambda head=head: [run() for run in (*layer, head)] for head in heads]
    seconds = medians([*heads, *levels], REPEATS)
    parts = {"head": _saved(*seconds[:2]), "level": _saved(*seconds[2:])}
    return {"device": cpu_name(), "threads": threads, "rows": ROWS, "scheme": SCHEME.name, **parts}


def _saved(whole: float, listed: float) -> dict[str, float]:
    return {"whole_ms": 1e3 * whole, "list_ms": 1e3 * listed, "ratio": whole / listed}


def _product(n: int, k: int) -> Callable[[], Any]:
    """One product of ROWS rows with n x k weights. Its speed doesn't depend on the numbers."""
    target = CpuTarget.of("native")
    fmt = WeightFormat.of(SCHEME, "rows16x4" if target.int8_dot else "rows16")
    linear = target.kernels.linear_int8 if fmt.int8 else target.kernels.linear
    run = compiled(linear(n, k, fmt))
    x = (
        _filled(quantized_shape(ROWS, k), "int32", 0)
        if fmt.int8
        else _filled((ROWS, k), "float32", 0)
    )
    weights, scales = (
        _filled(fmt.weight_shape(n, k), fmt.dtype, 1),
        _filled(fmt.scale_shape(n, k), fmt.scale_dtype, 1),
    )
    out = _filled((ROWS, -(-n // LANES) * LANES), "float32", 0)
    return lambda: run(x, weights, scales, out)


def _filled(shape: tuple[int, ...], dtype: str, number: int) -> Any:
    """A tensor of one number, written: untouched pages would all be the system's one page of
    zeros.
    """
    array = reserve(shape, np.dtype(dtype))
    array[...] = number
    return tvm.runtime.from_dlpack(array)
