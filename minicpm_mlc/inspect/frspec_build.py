"""Lists for FR-Spec from a user's own text, how much of the text they cover, and what they save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.installed import check_compiler
from minicpm_mlc.base.progress import Progress
from minicpm_mlc.base.text import MARK, decode_text
from minicpm_mlc.bundle.manifest import MANIFEST, Manifest
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.frspec import check_list_place, write_list
from minicpm_mlc.compile.model.registry import read_config_folder
from minicpm_mlc.compile.surroundings import some_home
from minicpm_mlc.prompt.library_tokenizer import library_errors, read_tokenizer

SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)  # whose coverage is printed
HELD_OUT = 10  # one line or file of so many
MOST_MARKS = 0.1  # share of characters that can't be read in what still is text
BATCH = 256  # lines encoded at once


@dataclass(frozen=True)
class Frequencies:
    """Occurrences of each token, int64 [vocab], in the text to count and in the text held out."""

    counted: np.ndarray
    held_out: np.ndarray

    def ranked(self, size: int, always: Sequence[int]) -> np.ndarray:
        """The `size` most frequent ids, int32, ties to the lower id; those in `always` take the
        last places.
        """
        order = np.argsort(-self.counted, kind="stable")
        others = order[~np.isin(order, always)][: size - len(always)]
        return np.array([*others, *always], np.int32)

    def coverage(self, ids: np.ndarray) -> float | None:
        """Share of the held-out tokens that are in the list; None where nothing was held out."""
        total = self.held_out.sum()
        return float(self.held_out[ids].sum() / total) if total else None


def count_tokens(tokenizer: Any, vocab_size: int, lines: Iterable[tuple[str, bool]]) -> Frequencies:
    """Counts the tokens of (text, whether it is held out) pairs. `tokenizer`: one of the tokenizers
    package.
    """
    counts = [
        np.zeros(vocab_size, np.int64) for _ in (False, True)
    ]  # not one array: a bool as its index is a mask
    batches: tuple[list[str], list[str]] = ([], [])

    def flush(held_out: bool) -> None:
        with library_errors(CompileError):
            encodings = tokenizer.encode_batch(batches[held_out], add_special_tokens=False)
        for encoding in encodings:
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
    """(text, held out) of each line of the text files in folders, or files; every tenth file is
    held out, and where there are fewer than ten, every tenth line. What is not UTF-8 becomes
    U+FFFD."""
    paths = [file for folder in folders for file in _files(Path(folder))]
    by_file = len(paths) >= HELD_OUT
    for number, path in enumerate(paths):
        whole = decode_text(path.read_bytes())
        if not _is_text(whole):
            continue  # pictures and the like
        for line, text in enumerate(whole.splitlines()):
            yield text, (number if by_file else line) % HELD_OUT == HELD_OUT - 1


def _is_text(read: str) -> bool:
    """False for other files, and for text in an encoding that shares few characters with UTF-8."""
    return "\0" not in read and read.count(MARK) <= MOST_MARKS * len(read)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CompileError(f"{path} is not there; give folders or files of text")
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def build_list(
    text: Iterable[str | Path], size: int, source: str | Path, out: str | Path
) -> dict[str, Any]:
    """Counts text with the tokenizer of a checkpoint or bundle, and writes the list of its `size`
    commonest tokens.

    Returns {"out", "size", "tokens", "held_out_tokens", "never_seen", "coverage": [{"size",
    "coverage", "head"}]}: how many of the listed tokens the counted text lacks, those that every
    list has aside; the share of the held-out tokens that lists of several sizes hold, None where
    nothing was held out; and the share of the full head's rows that they read.
    """
    folder = Path(source)
    tokenizer, config = _tokenizer(folder), _config(folder)
    ids = max(tokenizer.get_vocab().values(), default=0) + 1
    vocab_size = config.vocab_size if config else ids
    always = sorted(set(config.eos_token_ids)) if config else _special_ids(tokenizer)
    if ids > vocab_size:
        raise CompileError(
            f"{folder}: tokenizer.json has ids beyond vocab_size {vocab_size}; download the "
            "checkpoint again"
        )
    if not len(always) < size <= vocab_size:
        raise CompileError(
            f"--size {size}: choose more than {len(always)}, up to the vocabulary's {vocab_size}"
        )
    found = count_tokens(tokenizer, vocab_size, read_lines(text))
    if not found.counted.any():
        raise CompileError("there is no text to count; give folders or files of UTF-8 text")
    listed = found.ranked(size, always)
    write_list(out, listed)
    sizes = sorted({size, *(s for s in SIZES if s < vocab_size)})
    rows = [
        {"size": s, "coverage": found.coverage(found.ranked(s, always)), "head": s / vocab_size}
        for s in sizes
    ]
    never_seen = int((found.counted[np.setdiff1d(listed, always)] == 0).sum())
    totals = {
        "tokens": int(found.counted.sum()),
        "held_out_tokens": int(found.held_out.sum()),
        "never_seen": never_seen,
    }
    return {"out": str(out), "size": size, **totals, "coverage": rows}


def build_and_time(
    text: Iterable[str | Path], size: int, source: str | Path, out: str | Path, progress: Progress
) -> dict[str, Any]:
    """What build_list does, and under "speed" what the list saves (draft_speed.py); None where
    `source` has no config.
    """
    check_compiler()  # the list is for it
    check_list_place(out)
    progress("counting", 0, 1)
    report = build_list(text, size, source, out)
    progress("counting", 1, 1)
    config = _config(Path(source))
    if config is None:
        return report | {"speed": None}
    progress("timing", 0, 1)
    with some_home():
        from minicpm_mlc.bench.draft_speed import measure_draft_speed
    speed = measure_draft_speed(config, size)
    progress("timing", 1, 1)
    return report | {"speed": speed}


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise CompileError(
            f"{folder} has no tokenizer.json; give --tokenizer a checkpoint or a bundle"
        )
    return read_tokenizer(SmallFiles(folder, CompileError, "download the checkpoint again"))


def _config(folder: Path) -> ModelConfig | None:
    """A bundle's or a checkpoint's, None beside a tokenizer alone."""
    if (folder / MANIFEST).is_file():
        return ModelConfig.from_manifest(Manifest.load(folder).model)
    return read_config_folder(folder) if (folder / "config.json").is_file() else None


def _special_ids(tokenizer: Any) -> list[int]:
    """Those that end an answer, which every list has, are among them."""
    return sorted(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    head = (
        f"wrote {report['out']}: {report['tokens']:,} tokens counted, "
        f"{report['held_out_tokens']:,} held out"
    )
    return "\n".join(
        [head, *_gaps(report), *_coverage(report), _speed(report["speed"], report["size"])]
    )


def _gaps(report: dict[str, Any]) -> list[str]:
    never, size = report["never_seen"], report["size"]
    return (
        [f"{never:,} of the {size:,} tokens are never in this text; give more, or a smaller --size"]
        if never
        else []
    )


def _coverage(report: dict[str, Any]) -> list[str]:
    if not report["held_out_tokens"]:
        return [
            f"nothing was held out, so coverage is not known; give {HELD_OUT} or more lines, or "
            "files, of text"
        ]
    rows = report["coverage"]
    return [
        f"{r['size']:>8} tokens cover {r['coverage']:7.2%} and take {r['head']:6.1%} of the head"
        for r in rows
    ]


def _speed(speed: dict[str, Any] | None, size: int) -> str:
    if speed is None:
        return (
            "the speed it buys was not measured: no config.json gives a shape; give "
            "--tokenizer a checkpoint or a bundle"
        )
    where = (
        f"{speed['rows']} nodes, {speed['scheme']}, {speed['threads']} threads of {speed['device']}"
    )
    form = "{list_ms:.3g} ms instead of {whole_ms:.3g} ({ratio:.2f}x)"
    head, level = (form.format(**speed[part]) for part in ("head", "level"))
    return f"{size:>8} tokens ({where}): the draft head takes {head}, a whole draft level {level}"
