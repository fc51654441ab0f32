"""FR-Spec's lists: the tokens a draft head may propose, the most frequent ones first (arXiv
2502.14856).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.base.files import check_place, read_json, write_text, write_whole
from minicpm_mlc.bundle.npy import from_npy
from minicpm_mlc.compile.checkpoint.torch_file import read_numbers
from minicpm_mlc.compile.checkpoint.torch_pickle import MAX_STEPS

MAX_ARRAY = 8 * MAX_STEPS + 1024  # bytes of an .npy file with its header


def read_list(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token ids int32 [n] from a .json or .npy file, or from a published freq_*.pt without running
    its pickle.

    Raises CheckpointError for anything but distinct ids below `vocab_size`.
    """
    path = Path(path)
    values = _read(path)
    if len(values) > vocab_size:
        raise CheckpointError(
            f"{path} lists {len(values):,} tokens, and the vocabulary has {vocab_size:,}"
        )
    for place, value in enumerate(values):
        if type(value) is not int or not 0 <= value < vocab_size:
            raise CheckpointError(
                f"{path}: entry {place} is {_shown(value)}, expected a token id below {vocab_size}"
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


def _shown(value: object) -> str:
    """A value in at most 60 characters, however it is nested."""
    return f"{reprlib.repr(value):.60}"


def _read(path: Path) -> Sequence[Any]:
    if path.suffix not in FORMATS:
        raise CheckpointError(f"{path}: a frequency list is a {', '.join(FORMATS)} file")
    try:
        values = FORMATS[path.suffix](path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is no {path.suffix} file of numbers ({error})") from None
    if not isinstance(values, list):
        raise CheckpointError(f"{path} holds no list; expected token ids, the most frequent first")
    return values


def _read_json(path: Path) -> object:
    return read_json(path, CheckpointError, "make a list with: minicpm-mlc frspec build")


def _read_array(path: Path) -> object:
    """None for a file larger than any list."""
    return from_npy(path.read_bytes()).tolist() if path.stat().st_size <= MAX_ARRAY else None


FORMATS: dict[str, Callable[[Path], object]] = {
    ".json": _read_json,
    ".npy": _read_array,
    ".pt": read_numbers,
}


def write_list(path: str | Path, ids: np.ndarray) -> None:
    """Writes a .json or .npy list, whole or not at all. Raises CompileError as check_list_place
    does, OSError where it can't.
    """
    check_list_place(path)
    path = Path(path)
    if path.suffix == ".json":
        write_text(path, json.dumps(ids.tolist(), separators=(",", ":")) + "\n")
    else:
        write_whole(path, lambda partial: _write_array(partial, ids.astype(np.int32)))


def check_list_place(path: str | Path) -> None:
    """Raises CompileError where no list can be written, or for a name that is no list's."""
    if Path(path).suffix not in (".json", ".npy"):
        raise CompileError(f"{path}: name the list .json or .npy")
    check_place(path, "-o", CompileError)


def _write_array(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would give a path another suffix
        np.save(file, values, allow_pickle=False)
