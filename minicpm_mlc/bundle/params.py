"""Memory-mapped weights of a bundle, in the order the compiled library takes them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import REPAIR, Bundle
from minicpm_mlc.bundle.manifest_schema import INT32, file_name
from minicpm_mlc.bundle.npy import from_npy
from minicpm_mlc.bundle.schema import (
    Damaged,
    fields,
    list_of,
    number,
    one_of,
    text,
    whole,
)

TENSOR_CACHE = "tensor-cache.json"
DRAFT_IDS = "draft-ids.npy"
DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "uint16", "int32", "uint32")

_RECORD = fields(
    {
        "name": text,
        "shape": list_of(whole(1, INT32), least=1),
        "dtype": one_of(*DTYPES),
        "format": one_of("raw"),
        "nbytes": whole(),
        "byteOffset": whole(),
    }
)
_SHARD = fields(
    {
        "dataPath": file_name,
        "format": one_of("raw-shard"),
        "nbytes": whole(1),
        "md5sum": text,
        "records": list_of(_RECORD),
    }
)
_METADATA = fields({"BitsPerParam": number}, others=number)
_CACHE = fields({"metadata": _METADATA, "records": list_of(_SHARD)})


def load_params(bundle: Bundle) -> list[np.ndarray]:
    """Arrays of `manifest.params`; bfloat16 comes as uint16 bits. Nothing is read until used.
    Raises BundleError where tensor-cache.json doesn't describe them.

    Copy-on-write maps: DLPack hands out writable pointers, and the files can't change through them.
    """
    shards = _read_shards(bundle)
    try:
        arrays = {
            record["name"]: array for shard in shards for record, array in _map_shard(bundle, shard)
        }
    except Damaged as damaged:
        raise _damaged(bundle, str(damaged)) from None
    except (OSError, ValueError) as error:  # of mapping a file; an empty one is a ValueError
        raise BundleError(f"{bundle.path}: a shard can't be mapped: {error}; {REPAIR}") from None
    if missing := [name for name in bundle.manifest.params if name not in arrays]:
        raise _damaged(bundle, f"{missing[0]!r}: it isn't there")
    return [arrays[name] for name in bundle.manifest.params]


def mapped_files(bundle: Bundle) -> list[Path]:
    """The files that load_params maps."""
    return [bundle.file(shard["dataPath"]) for shard in _read_shards(bundle)]


def bits_per_weight(bundle: Bundle) -> float | None:
    """All stored bits by the number of weights; None where the bundle doesn't say."""
    if TENSOR_CACHE not in bundle.manifest.files:
        return None
    return _read_cache(bundle)["metadata"].get("BitsPerParam")


def numpy_dtype(dtype: str) -> np.dtype:
    """How NumPy sees a dtype of tensor-cache.json: bfloat16, which it lacks, as uint16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def load_draft_ids(bundle: Bundle) -> np.ndarray:
    """The token id, int32 [draft vocab], of each id of the draft head's own vocabulary. Raises
    BundleError for a file that holds anything else.
    """
    path = bundle.file(DRAFT_IDS)
    draft, vocab = bundle.manifest.draft or {}, bundle.manifest.model["vocab_size"]
    try:
        ids = from_npy(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} doesn't hold the draft head's token ids ({error}); {REPAIR}"
        ) from None
    if (ids.shape, ids.dtype) != ((draft.get("vocab"),), np.int32):
        raise BundleError(
            f"{path} holds {ids.dtype} {list(ids.shape)}, expected the token ids of the draft "
            f"head's vocabulary, int32 [{draft.get('vocab')}]; {REPAIR}"
        )
    if (wrong := ids[(ids < 0) | (ids >= vocab)]).size:
        raise BundleError(f"{path} holds the id {wrong[0]}, expected 0 to {vocab - 1}; {REPAIR}")
    return ids


def _read_shards(bundle: Bundle) -> list[dict[str, Any]]:
    return _read_cache(bundle)["records"]


def _read_cache(bundle: Bundle) -> dict[str, Any]:
    try:
        cache = json.loads(bundle.file(TENSOR_CACHE).read_bytes())
        _CACHE(cache)
    except Damaged as damaged:
        raise _damaged(bundle, str(damaged)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(bundle, str(error)) from None
    return cache


def _map_shard(bundle: Bundle, shard: dict[str, Any]) -> list[tuple[dict[str, Any], np.ndarray]]:
    data = np.memmap(bundle.file(shard["dataPath"]), np.uint8, mode="c")
    return [(record, _view(data, record)) for record in shard["records"]]


def _view(data: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    dtype, start, nbytes = numpy_dtype(record["dtype"]), record["byteOffset"], record["nbytes"]
    expected = prod(record["shape"]) * dtype.itemsize
    if nbytes != expected:
        raise Damaged(nbytes, f"{expected}, as its shape says", record["name"], "nbytes")
    if start + nbytes > len(data):
        raise Damaged(start, f"at most {len(data) - nbytes}", record["name"], "byteOffset")
    return data[start : start + nbytes].view(dtype).reshape(record["shape"])


def _damaged(bundle: Bundle, why: str) -> BundleError:
    path = bundle.path / TENSOR_CACHE
    return BundleError(f"{path} doesn't describe the weights at {why}; {REPAIR}")
