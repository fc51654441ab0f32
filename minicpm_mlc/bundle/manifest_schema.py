"""What every field of manifest.json must look like, alone and beside the others."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from minicpm_mlc.bundle.schema import (
    Check,
    Damaged,
    a_list,
    boolean,
    by_name,
    fields,
    list_of,
    number,
    one_of,
    optional,
    text,
    whole,
)

MANIFEST = "manifest.json"
PAGE_SIZE = 64  # tokens; one page is one InfLLM-v2 block
MAX_DRAFT_TOP_K = 16  # tokens that a draft head proposes after each row
WEIGHT_LAYOUTS = {
    "f32": "rows16",
    "int8": "rows16x4",
}  # of integer weights, by the activations that meet them
INT32 = (1 << 31) - 1  # the largest position, slot or token id
SHA256_DIGITS = 64


def is_plain_name(name: str) -> bool:
    """True for a file name that stays inside its folder on every system."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\:\0")


def is_sha256(value: Any) -> bool:
    """Whether it is 64 hexadecimal digits in lower case."""
    digits = set(string.hexdigits.lower())
    return isinstance(value, str) and len(value) == SHA256_DIGITS and set(value) <= digits


def file_name(value: Any) -> None:
    """The name of a file that a manifest may list (a schema.Check)."""
    text(value)
    if not is_plain_name(value) or value == MANIFEST:
        raise Damaged(value, "a file name without a folder")


def _sha256(value: Any) -> None:
    if not is_sha256(value):
        raise Damaged(value, "the 64 digits of a SHA-256")


def _plain(value: Any) -> None:
    """What a model's other fields hold: a number, text, true, false or null, or a list of them."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | None):
            (text if isinstance(item, str) else number)(item)


_COUNT = whole(1, INT32)
_SPARSE = fields(
    {
        "block_size": one_of(PAGE_SIZE),
        "init_blocks": whole(0, INT32),
        "window_size": whole(0, INT32),
        "topk": _COUNT,
        "dense_len": whole(-1, INT32),
    },
    others=_plain,
)
_MODEL = fields(
    {
        "num_layers": _COUNT,
        "vocab_size": _COUNT,
        "bos_token_id": optional(whole(0, INT32)),
        "eos_token_ids": list_of(whole(0, INT32)),
        "rope_factors": list_of(number, least=1),
        "tie_word_embeddings": boolean,
        "sparse": optional(_SPARSE),
    },
    others=_plain,
)
_DRAFT = fields(
    {
        "kind": text,
        "scheme": text,
        "layers": _COUNT,
        "features": _COUNT,
        "feature_layers": list_of(whole(0, INT32)),
        "hidden": _COUNT,
        "vocab": _COUNT,
        "top_k": whole(1, MAX_DRAFT_TOP_K),
        "state": a_list,  # bundle/state.py reads it
    }
)
_CALIBRATION = fields({"sha256": _sha256, "tokens": _COUNT})
_TARGET = fields(
    {"device": text, "triple": text, "cpu": text, "features": list_of(text)},
    maybe={"archs": list_of(text)},  # of CUDA
)

CHECK: Check = fields(
    {
        "format": whole(),
        "abi": whole(),
        "name": text,
        "scheme": text,
        "embedding_scheme": text,
        "mixed": by_name(text, text),
        "calibration": optional(_CALIBRATION),
        "source": optional(text),
        "activations": one_of(*WEIGHT_LAYOUTS),
        "weight_layout": one_of(*WEIGHT_LAYOUTS.values()),
        "target": _TARGET,
        "model": _MODEL,
        "kv_dtype": text,
        "state": a_list,  # bundle/state.py reads it
        "draft": optional(_DRAFT),
        "max_context": _COUNT,
        "prefill_chunk": _COUNT,
        "page_size": one_of(PAGE_SIZE),
        "params": list_of(text),
        "memory": fields({"weights": whole(), "kv_per_token": whole(1), "activations": whole()}),
        "tvm": text,
        "library": file_name,
        "files": by_name(file_name, fields({"bytes": whole(), "sha256": _sha256})),
    }
)


def check_together(manifest: dict[str, Any]) -> None:
    """What no field says alone. Raises Damaged."""
    for good, damaged in _together(manifest):
        if not good:
            raise damaged


def _together(manifest: dict[str, Any]) -> Iterator[tuple[bool, Damaged]]:
    """Whether each is so, and what is raised otherwise."""
    model, library, draft = manifest["model"], manifest["library"], manifest["draft"]
    layout, expected = manifest["weight_layout"], WEIGHT_LAYOUTS[manifest["activations"]]
    yield layout == expected, Damaged(layout, expected, "weight_layout")
    yield library in manifest["files"], Damaged(library, "one of files", "library")
    vocab = model["vocab_size"]
    for key in ("bos_token_id", "eos_token_ids"):
        ids = model[key] if isinstance(model[key], list) else [model[key] or 0]
        good = max(ids, default=0) < vocab
        yield good, Damaged(model[key], f"ids below {vocab}", "model", key)
    if draft:
        good = draft["top_k"] <= draft["vocab"] <= vocab
        yield good, Damaged(draft["vocab"], f"top_k to {vocab}", "draft", "vocab")
