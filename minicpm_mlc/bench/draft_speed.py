"""What a list of tokens saves a draft head: a level of its tree with the whole vocabulary and with
the list, on this CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.base.choices import DEFAULT_SCHEME
from minicpm_mlc.bench.timing import compiled, medians, use_threads
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import draft_config_like, eagles
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import LANES, SCHEMES
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.quantize_rows import quantized_shape
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.runtime_py.memory import reserve
from minicpm_mlc.targets.cpu import CpuTarget

KIND = "eagle2"
SCHEME = SCHEMES[DEFAULT_SCHEME]
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
    hidden, precision = config.hidden_size, Precision(SCHEME, SCHEME, F16)
    eagle = eagles()[KIND].part(draft_config_like(config, KIND), precision)
    layer = [_product(w.rows, w.columns) for _, w in eagle.weights() if w.columns]
    heads = [_product(n, hidden) for n in (config.vocab_size, size)]
    levels = [lambda head=head: [run() for run in (*layer, head)] for head in heads]
    seconds = medians([*heads, *levels], REPEATS)
    parts = {"head": _saved(*seconds[:2]), "level": _saved(*seconds[2:])}
    return {"device": cpu_name(), "threads": threads, "rows": ROWS, "scheme": SCHEME.name, **parts}


def _saved(whole: float, listed: float) -> dict[str, float]:
    return {"whole_ms": 1e3 * whole, "list_ms": 1e3 * listed, "ratio": whole / listed}


def _product(n: int, k: int) -> Callable[[], Any]:
    """One product of ROWS rows with n x k weights. Its speed doesn't depend on the numbers."""
    traits = CpuTarget.of("native").traits
    scheme = SCHEME.beside("int8" if traits.int8_dot else "f32")
    factor = traits.sum_factor(scheme)
    operator = (
        Linear(n, k, scheme) if factor is None else LinearInt8(n, k, scheme, sum_factor=factor)
    )
    run = compiled(build(operator, traits))
    x = (
        _filled(quantized_shape(ROWS, k), "int32", 0)
        if scheme.int8
        else _filled((ROWS, k), "float32", 0)
    )
    weight = [_filled(tensor.shape, tensor.dtype, 1) for tensor in scheme.tensors(n, k)]
    out = _filled((ROWS, -(-n // LANES) * LANES), "float32", 0)
    return lambda: run(x, *weight, out)


def _filled(shape: tuple[int, ...], dtype: str, number: int) -> Any:
    """A tensor of one number, written: untouched pages would all be the system's one page of
    zeros.
    """
    array = reserve(shape, np.dtype(dtype))
    array[...] = number
    return tvm.runtime.from_dlpack(array)
