"""Computed tokens in a file: the pages that an engine keeps and its own sequence, so that another
engine of the same bundle goes on from there.

    MAGIC | texts, int32 | each pool's pages, as stored | footer, JSON | its length, its SHA-256

The texts are those of the pages, each with the place of the page before it. What lies before the
footer is in parts of at most PART_BYTES, whose checksums the footer has: they tell damage, as fast
as a file is read; nothing keeps out who writes a file of his own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.base.files import as_object, parse_json, write_whole
from minicpm_mlc.runtime_py.device_pool import DevicePool, page_bytes
from minicpm_mlc.runtime_py.kv_cache import PagePool
from minicpm_mlc.runtime_py.prefix_cache import Kept

Pool = np.ndarray | DevicePool
MAGIC = b"minicpm-mlc state 1\n"
PART_BYTES = 2 << 20
ROW = 512  # words of 64 bits that are summed up
THREADS = 2  # that check what was read
TAIL = 8 + 32  # bytes: the footer's length and SHA-256
MAX_FOOTER = 64 << 20
ADVICE = "open the engine without resume; the text is computed again"


@dataclass(frozen=True)
class Footer:
    """What the rest of a file is. `manifest`: SHA-256 of the bundle's, whose library computed the
    pages; `own`: tokens of the engine's own sequence, the last of the texts.
    """

    manifest: str
    pages: int
    tokens: int
    own: int
    sums: list[str]


def save_state(
    path: str | Path,
    manifest: str,
    kept: Sequence[Kept],
    own: Sequence[int],
    pools: Sequence[Pool],
) -> None:
    """Writes pages and the tokens of the engine's own sequence; all or nothing. Raises
    EngineError.
    """
    texts = _texts(kept, own)
    pages = [each.page for each in kept]
    parts = [texts.view(np.uint8), *_gathered(pools, pages)] if pages else [texts.view(np.uint8)]

    def write(partial: Path) -> None:
        sums = []
        with open(partial, "wb") as file:
            file.write(MAGIC)
            for part in parts:
                sums.append(checksum(part))
                file.write(part.data)
            footer = Footer(manifest, len(pages), len(texts), len(own), sums)
            said = json.dumps(asdict(footer)).encode()
            file.write(said)
            file.write(len(said).to_bytes(8, "little") + hashlib.sha256(said).digest())

    try:
        write_whole(path, write)
    except OSError as error:
        raise EngineError(f"{path} can't be written ({error.strerror or error})") from None


def load_state(
    path: str | Path, manifest: str, pool: PagePool, pools: Sequence[Pool]
) -> tuple[list[Kept], list[int]]:
    """Reads a file's pages into new pages of `pool`, of one owner each; returns them, each behind
    its parent, and the tokens of the engine's own sequence.

    Raises EngineError for a file that is damaged or another bundle's, ContextError for more pages
    than are free; all is then as it was.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            footer = _read_footer(file, Path(path), manifest, pools)
            if footer.pages > pool.free_pages:
                raise ContextError(
                    f"{path} has {footer.pages} pages of {pool.page_size} tokens and the cache has "
                    f"room for {pool.free_pages}; open the engine with a larger context"
                )
            return _read_pages(file, Path(path), footer, pool, pools)
    except OSError as error:
        raise EngineError(f"{path} can't be read ({error.strerror or error}); {ADVICE}") from None


def _texts(kept: Sequence[Kept], own: Sequence[int]) -> np.ndarray:
    """int32: each page's parent, each page's number of tokens, all their tokens, the own ones."""
    heads = [each.parent for each in kept], [len(each.tokens) for each in kept]
    tokens = [token for each in kept for token in each.tokens]
    return np.array([*heads[0], *heads[1], *tokens, *own], np.int32)


def _gathered(pools: Sequence[Pool], pages: list[int]) -> Iterator[np.ndarray]:
    """The pages of each pool, a part at a time, as bytes."""
    for pool, start, end in _parts(pools, len(pages)):
        yield pool[pages[start:end]].reshape(-1).view(np.uint8)


def _parts(pools: Sequence[Pool], pages: int) -> Iterator[tuple[Pool, int, int]]:
    """Each pool, and the pages from one to another that are one part."""
    for pool in pools:
        step = max(1, PART_BYTES // page_bytes(pool))
        for start in range(0, pages, step):
            yield pool, start, min(pages, start + step)


def _read_footer(file: FileIO, path: Path, manifest: str, pools: Sequence[Pool]) -> Footer:
    """The footer of a whole file of this bundle. Raises EngineError."""
    size = os.fstat(file.fileno()).st_size
    if size < len(MAGIC) + TAIL or file.read(len(MAGIC)) != MAGIC:
        raise EngineError(f"{path} is not a saved state of this version; {ADVICE}")
    file.seek(size - TAIL)
    length, digest = int.from_bytes(file.read(8), "little"), file.read(32)
    if length > min(MAX_FOOTER, size - TAIL - len(MAGIC)):
        raise _damaged(path)
    file.seek(size - TAIL - length)
    said = file.read(length)
    if hashlib.sha256(said).digest() != digest:
        raise _damaged(path)
    footer = Footer(
        **as_object(parse_json(said, path, EngineError, ADVICE), path, EngineError, ADVICE)
    )
    if footer.manifest != manifest:
        raise EngineError(
            f"{path} was saved by the bundle with the SHA-256 {footer.manifest}, this one has "
            f"{manifest}; {ADVICE}"
        )
    expected = 4 * footer.tokens + footer.pages * sum(map(page_bytes, pools))
    if size != len(MAGIC) + expected + length + TAIL:
        raise _damaged(path)
    return footer


def _read_pages(
    file: FileIO, path: Path, footer: Footer, pool: PagePool, pools: Sequence[Pool]
) -> tuple[list[Kept], list[int]]:
    texts = np.empty(footer.tokens, np.int32)
    taken = [pool.take() for _ in range(footer.pages)]
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            file.seek(len(MAGIC))
            sums = [threads.submit(checksum, _filled(file, texts))]
            for array, start, end in _parts(pools, footer.pages):
                read = _filled(file, _place(array, taken[start:end]))
                sums.append(threads.submit(checksum, read))
                if read.base is None:  # the pages don't lie side by side, or in a device
                    array[taken[start:end]] = read
        if [each.result() for each in sums] != footer.sums:
            raise _damaged(path)
        return _kept(path, texts, footer, taken, pool.page_size)
    except BaseException:
        for page in taken[::-1]:
            pool.release(page)
        raise


def _place(array: Pool, pages: list[int]) -> np.ndarray:
    """Where pages of a pool are read to: a view of them, or new memory."""
    first, last = pages[0], pages[-1]
    if isinstance(array, np.ndarray) and pages == list(range(first, last + 1)):
        return array[first : last + 1]
    return np.empty((len(pages), *array.shape[1:]), array.dtype)


def _filled(file: FileIO, array: np.ndarray) -> np.ndarray:
    left = array.reshape(-1).view(np.uint8).data
    while left and (read := file.readinto(left)):
        left = left[read:]
    return array


def checksum(array: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of the sums of an array's rows and columns of 64-bit words and of
    the bytes that fill no row.
    """
    data = array.reshape(-1).view(np.uint8)
    whole = len(data) // (8 * ROW) * 8 * ROW
    words = data[:whole].view(np.uint64).reshape(-1, ROW)
    digest = hashlib.sha256(words.sum(0).data)
    digest.update(words.sum(1).data)
    digest.update(data[whole:].data)
    return digest.hexdigest()


def _kept(
    path: Path, texts: np.ndarray, footer: Footer, taken: list[int], page_size: int
) -> tuple[list[Kept], list[int]]:
    """The pages with their tokens. Raises EngineError where the texts are no tree of pages."""
    n = footer.pages
    parents, lengths = texts[:n].tolist(), texts[n : 2 * n]
    tokens, own = np.split(texts[2 * n :], [len(texts) - 2 * n - footer.own])
    ends = np.cumsum(lengths)
    fits = len(lengths) == n and (n == 0 or ends[-1] == len(tokens))
    fits = fits and bool(((lengths > 0) & (lengths <= page_size)).all())
    fits = fits and all(
        -1 <= parent < i and (parent < 0 or lengths[parent] == page_size)
        for i, parent in enumerate(parents)
    )
    if not fits:
        raise _damaged(path)
    parts = np.split(tokens, ends[:-1]) if n else []
    return [
        Kept(parent, tuple(part.tolist()), page)
        for parent, part, page in zip(parents, parts, taken, strict=True)
    ], own.tolist()


def _damaged(path: Path) -> EngineError:
    return EngineError(f"{path} is damaged; {ADVICE}")
