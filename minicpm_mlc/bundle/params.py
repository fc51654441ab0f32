"""Memory-mapped weights of a bundle, in the order the compiled library takes them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import REPAIR, Bundle, is_plain_name

TENSOR_CACHE = "tensor-cache.json"
DRAFT_IDS = "draft-ids.npy"


def load_params(bundle: Bundle) -> list[np.ndarray]:
    """Arrays of `manifest.params`; bfloat16 comes as uint16 bits. Nothing is read until used.

    Copy-on-write maps: DLPack hands out writable pointers, and the files can't change through them.
    """
    try:
        shards = json.loads((bundle.path / TENSOR_CACHE).read_bytes())["records"]
        arrays = {
            record["name"]: array for shard in shards for record, array in _map_shard(bundle, shard)
        }
        return [arrays[name] for name in bundle.manifest.params]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{bundle.path / TENSOR_CACHE} doesn't describe the weights ({type(error).__name__}: "
            f"{error}); {REPAIR}"
        ) from error


def numpy_dtype(dtype: str) -> np.dtype:
    """How NumPy sees a dtype of tensor-cache.json: bfloat16, which it lacks, as uint16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def load_draft_ids(bundle: Bundle) -> np.ndarray:
    """The token id, int32 [draft vocab], of each id of the draft head's own vocabulary."""
    path = bundle.path / DRAFT_IDS
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} doesn't hold the draft head's token ids ({error}); {REPAIR}"
        ) from error
    return ids


def _map_shard(bundle: Bundle, shard: dict[str, Any]) -> list[tuple[dict[str, Any], np.ndarray]]:
    if not is_plain_name(shard["dataPath"]):
        raise ValueError(f"{shard['dataPath']} isn't a file name")
    data = np.memmap(bundle.path / shard["dataPath"], np.uint8, mode="c")
    return [(record, _view(data, record)) for record in shard["records"]]


def _view(data: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    start = record["byteOffset"]
    stored = data[start : start + record["nbytes"]]
    return stored.view(numpy_dtype(record["dtype"])).reshape(record["shape"])
