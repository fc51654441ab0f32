"""Checkpoint -> weight shards, a block of rows at a time: memory stays small whatever the model's
size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.compile.shards import ShardWriter, StoredTensor
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme

if TYPE_CHECKING:  # a checkpoint is checked against parameters
    from minicpm_mlc.compile.checkpoint import Checkpoint

BLOCK_BYTES = 1 << 20  # f32 rows per step: with its temporaries it stays in the cache
MAX_THREADS = 4  # each holds about 8 blocks

PartsOf = Callable[[int, int], Parts]


@dataclass(frozen=True)
class Param:
    """One parameter: the rows of `sources` stacked, [rows, columns] in `scheme`; columns 0 is an
    f32 vector.
    """

    name: str
    sources: tuple[str, ...]
    rows: int
    columns: int
    scheme: Scheme

    @property
    def weights(self) -> int:
        """Number of weights it holds."""
        return self.rows * (self.columns or 1)


def stored_tensors(param: Param) -> list[StoredTensor]:
    """What is written for `param`, in order: NAME.weight, and NAME.scale and what else the scheme
    stores.
    """
    if not param.columns:
        return [StoredTensor(f"{param.name}.weight", (param.rows,), "float32")]
    return [
        StoredTensor(f"{param.name}.{tensor.name}", tensor.shape, tensor.written_as)
        for tensor in param.scheme.tensors(param.rows, param.columns)
    ]


def stored_bytes(params: Iterable[Param]) -> int:
    """Bytes of all weights on disk and in memory."""
    return sum(tensor.nbytes for param in params for tensor in stored_tensors(param))


def convert(
    params: Sequence[Param],
    checkpoint: Checkpoint,
    bundle: BundleWriter,
    *,
    rounded: Mapping[str, Parts] | None = None,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> list[str]:
    """Quantise, pack and write every parameter into `bundle`; returns the stored names in the
    library's ABI order. `rounded`: parameters that are quantised already, by name.

    `progress` counts stored bytes, as the stage "weights". Same input, same bytes, whatever
    `threads`.
    """
    for param in params:
        _check_sources(param, checkpoint)
    tensors = [tensor for param in params for tensor in stored_tensors(param)]
    shards = ShardWriter(bundle, tensors, sum(param.weights for param in params))
    count = _Counter(sum(tensor.nbytes for tensor in tensors), progress)
    with ThreadPoolExecutor(threads or min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for param in params:
            parts_of = _parts_of(param, checkpoint, (rounded or {}).get(param.name))
            _write(param, parts_of, shards, pool, count)
    shards.close()
    return [tensor.name for tensor in tensors]


@dataclass
class _Counter:
    """Passes chunks through and reports how many bytes went by."""

    total: int
    progress: Progress
    done: int = 0

    def watch(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The chunks as they come, each one's bytes reported once it is used."""
        for chunk in chunks:
            yield chunk
            self.done += chunk.nbytes
            self.progress("weights", self.done, self.total)


def _check_sources(param: Param, checkpoint: Checkpoint) -> None:
    shapes = [tuple(checkpoint.shape(source)) for source in param.sources]
    width = (param.columns,) if param.columns else ()
    if (
        any(shape[1:] != width for shape in shapes)
        or sum(shape[0] for shape in shapes) != param.rows
    ):
        raise CompileError(
            f"parameter {param.name} is {(param.rows, *width)}, "
            f"and {', '.join(param.sources)} of shapes {shapes} don't stack to it"
        )


def _parts_of(param: Param, checkpoint: Checkpoint, rounded: Parts | None) -> PartsOf:
    """The parts of rows [start, stop) of a parameter: as `rounded`, as the checkpoint carries them,
    or quantised here.
    """

    def slices(start: int, stop: int) -> Parts:
        assert rounded is not None
        return {name: part[start:stop] for name, part in rounded.items()}

    def stored(start: int, stop: int) -> Parts:
        if param.columns:
            return _stacked_parts(param, checkpoint, start, stop)
        vector = stacked_rows(param, checkpoint, start, stop)
        return param.scheme.quantize(vector[:, None], param.name)

    return slices if rounded else stored


def _write(
    param: Param,
    parts_of: PartsOf,
    shards: ShardWriter,
    pool: ThreadPoolExecutor,
    count: _Counter,
) -> None:
    names = [tensor.name for tensor in stored_tensors(param)]
    if not param.columns:
        vector = parts_of(0, param.rows)["weight"]
        return shards.add(names[0], count.watch([vector.reshape(-1)]))
    others: dict[str, list[np.ndarray]] = {name: [] for name in names[1:]}
    shards.add(names[0], count.watch(_packed_blocks(param, parts_of, pool, others)))
    for name, blocks in others.items():
        shards.add(name, count.watch(blocks))


def _packed_blocks(
    param: Param,
    parts_of: PartsOf,
    pool: ThreadPoolExecutor,
    others: dict[str, list[np.ndarray]],
) -> Iterator[np.ndarray]:
    """Packed values block by block; the other tensors' blocks gather in `others`, since they follow
    all values on disk.
    """

    def pack_block(start: int) -> Parts:
        return param.scheme.pack(parts_of(start, min(start + step, param.rows)))

    step = max(1, BLOCK_BYTES // (4 * param.columns * LANES)) * LANES
    for packed in _map_ahead(pool, pack_block, range(0, param.rows, step)):
        for name, block in packed.items():
            if name != "weight":
                others[f"{param.name}.{name}"].append(block)
        yield packed["weight"]


def _map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], Parts], items: Iterable[int]
) -> Iterator[Parts]:
    """pool.map that runs only a few items ahead of the consumer, so results can't pile up in
    memory.
    """
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > MAX_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _stacked_parts(param: Param, checkpoint: Checkpoint, start: int, stop: int) -> Parts:
    """Rows [start, stop) of the stacked sources in the parameter's scheme: carried where a source
    has its integers, else quantised.
    """
    found = [
        checkpoint.carried(source, param.scheme, low, high)
        or param.scheme.quantize(_float_rows(checkpoint.rows(source, low, high)), param.name)
        for source, low, high in _ranges(param, checkpoint, start, stop)
    ]
    return (
        found[0]
        if len(found) == 1
        else {key: np.concatenate([parts[key] for parts in found]) for key in found[0]}
    )


def stacked_rows(param: Param, checkpoint: Checkpoint, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of the stacked sources; f32, contiguous."""
    ranges = _ranges(param, checkpoint, start, stop)
    parts = [_float_rows(checkpoint.rows(*place)) for place in ranges]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _ranges(
    param: Param, checkpoint: Checkpoint, start: int, stop: int
) -> Iterator[tuple[str, int, int]]:
    """The sources that rows [start, stop) of their stack come from, with the rows of each."""
    first = 0
    for source in param.sources:
        rows = checkpoint.shape(source)[0]
        low, high = max(start - first, 0), min(stop - first, rows)
        if low < high:
            yield source, low, high
        first += rows


def _float_rows(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, dtype=np.float32)
