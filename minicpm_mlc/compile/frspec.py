"""FR-Spec's lists: the tokens a draft head may propose, the most frequent ones first (arXiv
2502.14856).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.compile.checkpoint.torch_file import read_numbers

FORMATS = (".json", ".npy", ".pt")


def read_list(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token ids int32 [n] from a .json or .npy file, or from a published freq_*.pt without running
    its pickle.

    Raises CheckpointError for anything but distinct ids below `vocab_size`.
    """
    path = Path(path)
    values = _read(path)
    for place, value in enumerate(values):
        if type(value) is not int or not 0 <= value < vocab_size:
            raise CheckpointError(
                f"{path}: entry {place} is {value!r}, expected a token id below {vocab_size}"
            )
    ids, counts = np.unique(np.array(values, np.int64), return_counts=True)
    if not values or (counts > 1).any():
        what = (
            f"token {ids[counts > 1][0]} is listed {counts.max()} times"
            if values
            else "the list is empty"
        )
        raise CheckpointError(f"{path}: {what}; make a list with: minicpm-mlc frspec build")
    return np.array(values, np.int32)


def _read(path: Path) -> list[Any]:
    if path.suffix not in FORMATS:
        raise CheckpointError(f"{path}: a frequency list is a {', '.join(FORMATS)} file")
    try:
        if path.suffix == ".pt":
            return read_numbers(path)
        values = (
            json.loads(path.read_bytes())
            if path.suffix == ".json"
            else np.load(path, allow_pickle=False).tolist()
        )
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no {path.suffix} file of numbers ({error})") from None
    if not isinstance(values, list):
        raise CheckpointError(f"{path} holds no list; expected token ids, the most frequent first")
    return values


def write_list(path: str | Path, ids: np.ndarray) -> None:
    """Writes a .json or .npy list. Raises CompileError for another suffix."""
    path = Path(path)
    if path.suffix == ".json":
        path.write_text(json.dumps(ids.tolist(), separators=(",", ":")) + "\n", encoding="utf-8")
    elif path.suffix == ".npy":
        np.save(path, ids.astype(np.int32), allow_pickle=False)
    else:
        raise CompileError(f"{path}: name the list .json or .npy")
