"""RoPE of a GGUF file: the `rope_scaling` of config.json that its keys and its lists of factors
stand for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile
from minicpm_mlc.compile.checkpoint.gguf.metadata import Metadata

LONG, SHORT, FREQUENCIES = "rope_factors_long", "rope_factors_short", "rope_freqs"
# config.json's key: the metadata key after rope.scaling
YARN = {
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "attention_factor": "yarn_attn_factor",
}
ONES = ("yarn_ext_factor", "attn_factor")  # read where they change nothing
KEYS = {
    f"rope.scaling.{key}"
    for key in ("type", "factor", "original_context_length", *YARN.values(), *ONES)
}


def rope_scaling(metadata: Metadata, context: int) -> dict[str, Any]:
    """RoPE as config.json has it, for a model of so many tokens of context; empty where nothing is
    scaled. Raises ConfigError for a scaling that is not read, CheckpointError for a damaged list.
    """
    for key in ONES:
        if metadata.own(f"rope.scaling.{key}", 1.0) != 1:
            raise _refuse(metadata, key, "1")
    file, kind = metadata.file, metadata.own("rope.scaling.type")
    factor = metadata.number("rope.scaling.factor") or 1.0
    lists = {name: found for name in (SHORT, LONG, FREQUENCIES) if (found := _list(file, name))}
    scaled = kind == "yarn" or (factor != 1 and kind != "none")
    if not scaled and set(lists) in ({SHORT, LONG}, {FREQUENCIES}):
        return _divisors([*lists.values()], context)
    if lists:
        raise file.error(f"scales RoPE as {kind!r:.60} and by {', '.join(lists)}; convert it again")
    if kind == "yarn":
        return _yarn(metadata, factor, context)
    if kind not in (None, "none", "linear"):
        raise _refuse(metadata, "type", "none, linear or yarn, or longrope with its factors")
    # llama.cpp takes a factor without a type for linear scaling
    return {} if factor == 1 or kind == "none" else {"rope_type": "linear", "factor": factor}


def _divisors(lists: list[list[float]], context: int) -> dict[str, Any]:
    """LongRoPE's two lists, or Llama 3's one. Cos and sin are not scaled."""
    factors = {"short_factor": lists[0], "long_factor": lists[-1]}
    return {"rope_type": "longrope", **factors, "original_max_position_embeddings": context}


def _yarn(metadata: Metadata, factor: float, context: int) -> dict[str, Any]:
    original = metadata.own("rope.scaling.original_context_length", context)
    names = {key: f"rope.scaling.{name}" for key, name in YARN.items()}
    given = {key: metadata.number(name) for key, name in names.items() if metadata.own(name)}
    sizes = {"factor": factor, "original_max_position_embeddings": original}
    return {"rope_type": "yarn", **sizes, **given}


def _refuse(metadata: Metadata, key: str, expected: str) -> ConfigError:
    key = f"rope.scaling.{key}"
    return metadata.refuse(key, metadata.own(key), expected)


def _list(file: GgufFile, name: str) -> list[float] | None:
    """A list of factors, one for each rotary frequency; None where it changes none."""
    stored = f"{name}.weight"
    if stored not in file.tensors:
        return None
    tensor = file.tensors[stored]
    if len(tensor.shape) != 1 or tensor.block.name != "F32":
        shape = f"{tensor.block.name} {list(tensor.shape)}"
        raise file.error(f"tensor {stored} is {shape}, expected F32")
    numbers: np.ndarray = tensor.block.numbers(file.raw(stored))[0]
    return numbers.tolist() if name != FREQUENCIES or (numbers != 1).any() else None
