"""FR-Spec: the tokens a draft head may propose, the most frequent ones first (arXiv 2502.14856)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, CompileError
from .checkpoint.torch_file import read_numbers

SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)  # whose coverage is printed
HELD_OUT = 10  # one line or file of so many
BATCH = 256  # lines encoded at once
FORMATS = (".json", ".npy", ".pt")


def read_list(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token ids int32 [n] from a .json or .npy file, or from a published freq_*.pt without running its pickle.

    Raises CheckpointError for anything but distinct ids below `vocab_size`.
    """
    path = Path(path)
    values = _read(path)
    for place, value in enumerate(values):
        if type(value) is not int or not 0 <= value < vocab_size:
            raise CheckpointError(f"{path}: entry {place} is {value!r}, expected a token id below {vocab_size}")
    ids, counts = np.unique(np.array(values, np.int64), return_counts=True)
    if not values or (counts > 1).any():
        what = f"token {ids[counts > 1][0]} is listed {counts.max()} times" if values else "the list is empty"
        raise CheckpointError(f"{path}: {what}; make a list with: minicpm-mlc frspec build")
    return np.array(values, np.int32)


def _read(path: Path) -> list[Any]:
    if path.suffix not in FORMATS:
        raise CheckpointError(f"{path}: a frequency list is a {', '.join(FORMATS)} file")
    try:
        if path.suffix == ".pt":
            return read_numbers(path)
        values = json.loads(path.read_bytes()) if path.suffix == ".json" else np.load(path, allow_pickle=False).tolist()
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


@dataclass(frozen=True)
class Frequencies:
    """Occurrences of each token, int64 [vocab], in the text to count and in the text held out."""

    counted: np.ndarray
    held_out: np.ndarray

    def ranked(self, size: int, always: Sequence[int]) -> np.ndarray:
        """The `size` most frequent ids, int32, ties to the lower id; those in `always` take the last places."""
        order = np.argsort(-self.counted, kind="stable")[:size].tolist()
        missing = [i for i in always if i not in order]
        return np.array([*order[: size - len(missing)], *missing], np.int32)

    def coverage(self, ids: np.ndarray) -> float:
        """Share of the held-out tokens that are in the list."""
        return float(self.held_out[ids].sum() / max(1, self.held_out.sum()))


def count_tokens(tokenizer: Any, vocab_size: int, lines: Iterable[tuple[str, bool]]) -> Frequencies:
    """Counts the tokens of (text, whether it is held out) pairs. `tokenizer`: one of the tokenizers package."""
    counts = [np.zeros(vocab_size, np.int64) for _ in (False, True)]  # not one array: a bool as its index is a mask
    batches: tuple[list[str], list[str]] = ([], [])

    def flush(held_out: bool) -> None:
        for encoding in tokenizer.encode_batch(batches[held_out], add_special_tokens=False):
            np.add.at(counts[held_out], encoding.ids, 1)
        batches[held_out].clear()

    for text, held_out in lines:
        batches[held_out].append(text)
        if len(batches[held_out]) == BATCH:
            flush(held_out)
    flush(False)
    flush(True)
    return Frequencies(*counts)


def read_lines(folders: Iterable[str | Path]) -> Iterator[tuple[str, bool]]:
    """(text, held out) of each line of the UTF-8 files in folders, or files; every tenth file is held out, and where
    there are fewer than ten, every tenth line."""
    paths = [file for folder in folders for file in _files(Path(folder))]
    by_file = len(paths) >= HELD_OUT
    for number, path in enumerate(paths):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # pictures and the like
        for line, text in enumerate(lines):
            yield text, (number if by_file else line) % HELD_OUT == HELD_OUT - 1


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CompileError(f"{path} is not there; give folders or files of text")
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def build_list(text: Iterable[str | Path], size: int, source: str | Path, out: str | Path) -> dict[str, Any]:
    """Counts text with the tokenizer of a checkpoint or bundle, and writes the list of its `size` commonest tokens.

    Returns {"out", "tokens", "held_out_tokens", "coverage": [{"size", "coverage", "head"}]}: the share of the held-out
    tokens that lists of several sizes hold, and the share of the full head's rows that they read.
    """
    from tokenizers import Tokenizer

    folder = Path(source)
    if not (folder / "tokenizer.json").is_file():
        raise CompileError(f"{folder} has no tokenizer.json; give a checkpoint or a bundle")
    vocab_size, always = _vocabulary(folder)
    if not len(always) < size <= vocab_size:
        raise CompileError(f"--size {size}: choose more than {len(always)}, up to the vocabulary's {vocab_size}")
    found = count_tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), vocab_size, read_lines(text))
    if not found.counted.any():
        raise CompileError("there is no text to count; give folders or files of UTF-8 text")
    write_list(out, found.ranked(size, always))
    sizes = sorted({size, *(s for s in SIZES if s < vocab_size)})
    rows = [{"size": s, "coverage": found.coverage(found.ranked(s, always)), "head": s / vocab_size} for s in sizes]
    totals = {"tokens": int(found.counted.sum()), "held_out_tokens": int(found.held_out.sum())}
    return {"out": str(out), **totals, "coverage": rows}


def _vocabulary(folder: Path) -> tuple[int, Sequence[int]]:
    """Size, and the ids that end an answer, which every list has."""
    from ..manifest import MANIFEST, Manifest
    from .config import ModelConfig

    if (folder / MANIFEST).is_file():
        model = Manifest.load(folder).model
        return model["vocab_size"], model["eos_token_ids"]
    config = ModelConfig.from_folder(folder)
    return config.vocab_size, config.eos_token_ids


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    head = f"wrote {report['out']}: {report['tokens']:,} tokens counted, {report['held_out_tokens']:,} held out"
    rows = report["coverage"]
    lines = [f"{r['size']:>8} tokens cover {r['coverage']:7.2%} and take {r['head']:6.1%} of the head" for r in rows]
    return "\n".join([head, *lines])
