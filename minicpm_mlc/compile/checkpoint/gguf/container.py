"""One .gguf file, memory-mapped: its metadata, and where each tensor lies.

Little endian: a header of counts, then keys with values, then the tensors' names, sizes, types and
offsets, then their numbers. Every count and length is held against the file before it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import GIT_LFS
from minicpm_mlc.compile.checkpoint.gguf.blocks import Block
from minicpm_mlc.compile.checkpoint.gguf.types import BLOCKS, REFUSED

MAGIC = b"GGUF"
MAX_KEYS = 4096
MAX_TENSORS = 100_000
MAX_STRINGS = 2 << 20  # in all lists of texts together: a vocabulary and its merges
MAX_NAME = 256  # bytes; llama.cpp allows 64
MAX_TEXT = 4 << 20  # bytes, of a chat template for example
MAX_ALIGNMENT = 1 << 16
MAX_RANK = 4
STRING, ARRAY = 8, 9
NUMBERS = {
    kind: np.dtype(dtype) for kind, dtype in enumerate("u1 i1 <u2 <i2 <u4 <i4 <f4 ?".split())
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}

Value = int | float | bool | str | list[str] | np.ndarray


@dataclass(frozen=True)
class Tensor:
    """A tensor as stored: `shape` as published, rows first; `start` counts bytes of its `file`."""

    name: str
    shape: tuple[int, ...]
    block: Block
    start: int
    file: np.ndarray = field(repr=False, compare=False)  # uint8, memory-mapped

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, or of a vector."""
        return self.shape[-1] // self.block.values * self.block.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """`metadata` by key and `tensors` by name. Raises CheckpointError for a file that is damaged,
    cut off, or of a version or tensor type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            self._map = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        except OSError as error:
            raise CheckpointError(f"{path} can't be opened: {error.strerror}") from None
        self._at = 0
        self._strings = 0
        tensors, keys = self._header()
        self.metadata = self._metadata(keys)
        self.tensors = self._tensors(tensors)

    def raw(self, name: str) -> np.ndarray:
        """uint8 [rows, bytes of a row] of a tensor as stored; a vector is one row."""
        tensor = self.tensors[name]
        stored = tensor.file[tensor.start : tensor.start + tensor.nbytes]
        return stored.reshape(-1, tensor.row_bytes)

    def join(self, part: GgufFile) -> None:
        """Takes the tensors of another part of a split file. Raises CheckpointError for one that is
        here already.
        """
        if twice := sorted(self.tensors.keys() & part.tensors.keys()):
            raise part.error(f"tensor {twice[0]} is in another part too; download both again")
        self.tensors |= part.tensors

    def error(self, what: str) -> CheckpointError:
        """The error of this file."""
        return CheckpointError(f"{self.path}: {what}")

    def _header(self) -> tuple[int, int]:
        """The counts of tensors and keys."""
        begin = self._map[: len(GIT_LFS)].tobytes()
        if begin == GIT_LFS:
            raise self.error("is a Git LFS pointer, not the weights; fetch them: git lfs pull")
        if not begin:
            raise self.error("is empty; download it again")
        if begin[:4] != MAGIC:
            raise self.error(f"begins with {begin[:4]!r}, expected {MAGIC!r}: it is no GGUF file")
        self._take(4, "the header")
        version = self._count("the version", np.uint32)
        if version not in (2, 3):
            big = " (a big-endian file)" if version & 0xFFFF == 0 else ""
            raise self.error(
                f"is of GGUF version {version}{big}, expected 2 or 3; convert it again"
            )
        return (
            self._limited("tensors", MAX_TENSORS),
            self._limited("metadata keys", MAX_KEYS),
        )

    def _metadata(self, keys: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for number in range(keys):
            key = self._text(f"metadata key {number}", MAX_NAME)
            if key in values:
                raise self.error(f"names the key {key} twice; download it again")
            values[key] = self._value(key, self._count(f"the type of {key}", np.uint32))
        return values

    def _value(self, key: str, kind: int) -> Value:
        if kind == STRING:
            return self._text(key, MAX_TEXT)
        if kind == ARRAY:
            return self._array(key)
        return self._numbers(key, kind, 1)[0].item()

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind = self._count(f"the type of {key}", np.uint32)
        length = self._count(f"the length of {key}", np.uint64)
        if kind != STRING:
            return self._numbers(key, kind, length)
        self._strings += length
        if self._strings > MAX_STRINGS or 8 * length > self._left:
            raise self.error(
                f"{key} has {length:,} texts, expected {MAX_STRINGS:,} or fewer, which fit into "
                f"the file's last {self._left:,} bytes; download it again"
            )
        return [self._text(key, MAX_TEXT) for _ in range(length)]

    def _numbers(self, key: str, kind: int, length: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise self.error(
                f"{key} has values of type {kind}, expected 0 to 12 and no nested lists"
            )
        return self._take(length * NUMBERS[kind].itemsize, key).view(NUMBERS[kind])

    def _tensors(self, count: int) -> dict[str, Tensor]:
        found = [self._tensor(number) for number in range(count)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
            raise self.error(f"general.alignment is {alignment!r}, expected up to {MAX_ALIGNMENT}")
        if alignment & (alignment - 1):
            raise self.error(f"general.alignment is {alignment}, expected a power of two")
        data = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, block, offset in found:
            if name in tensors:
                raise self.error(f"names the tensor {name} twice; download it again")
            if offset % alignment:
                raise self.error(f"tensor {name} is at {offset}, no multiple of {alignment}")
            tensors[name] = Tensor(name, shape, block, data + offset, self._map)
        self._check_places(tensors)
        return tensors

    def _check_places(self, tensors: dict[str, Tensor]) -> None:
        """Every tensor is whole, and no two share bytes."""
        end = 0
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise self.error(f"tensor {tensor.name} begins within another; download it again")
            end = tensor.start + tensor.nbytes
            if end > self._map.size:
                raise self.error(
                    f"is cut off: it has {self._map.size:,} bytes, and tensor {tensor.name} ends "
                    f"at {end:,}; download it again"
                )

    def _tensor(self, number: int) -> tuple[str, tuple[int, ...], Block, int]:
        name = self._text(f"the name of tensor {number}", MAX_NAME)
        rank = self._count(f"the rank of tensor {name}", np.uint32)
        if not 1 <= rank <= MAX_RANK:
            raise self.error(f"tensor {name} has {rank} sizes, expected 1 to {MAX_RANK}")
        sizes = [self._count(f"the sizes of tensor {name}", np.uint64) for _ in range(rank)]
        kind = self._count(f"the type of tensor {name}", np.uint32)
        offset = self._count(f"the offset of tensor {name}", np.uint64)
        block = self._block(name, kind)
        if not all(0 < size < 1 << 48 for size in sizes) or sizes[0] % block.values:
            raise self.error(
                f"tensor {name} has sizes {sizes}, expected rows of whole {block.name} blocks, of "
                f"{block.values} numbers"
            )
        return name, tuple(reversed(sizes)), block, offset

    def _block(self, name: str, kind: int) -> Block:
        if kind in BLOCKS:
            return BLOCKS[kind]
        readable = ", ".join(block.name for block in BLOCKS.values())
        raise self.error(
            f"tensor {name} is stored as {REFUSED.get(kind, f'type {kind}')}, which is not read; "
            f"take a file of {readable}"
        )

    @property
    def _left(self) -> int:
        return self._map.size - self._at

    def _take(self, nbytes: int, what: str) -> np.ndarray:
        """The next bytes. Raises CheckpointError where the file ends before."""
        if nbytes > self._left:
            raise self.error(
                f"is cut off: {what} needs {nbytes:,} bytes at {self._at:,}, and the file has "
                f"{self._map.size:,}; download it again"
            )
        self._at += nbytes
        return self._map[self._at - nbytes : self._at]

    def _count(self, what: str, dtype: type[np.unsignedinteger]) -> int:
        stored = np.dtype(dtype).newbyteorder("<")
        return int(self._take(stored.itemsize, what).view(stored)[0])

    def _limited(self, what: str, most: int) -> int:
        """A count of things that take 8 bytes or more each."""
        count = self._count(f"the count of {what}", np.uint64)
        if count > min(most, self._left // 8):
            raise self.error(
                f"counts {count:,} {what} in {self._map.size:,} bytes, expected {most:,} or fewer; "
                "download it again"
            )
        return count

    def _text(self, what: str, most: int) -> str:
        length = self._count(f"the length of {what}", np.uint64)
        if length > most:
            raise self.error(f"{what} has {length:,} bytes, expected {most:,} or fewer")
        try:
            return self._take(length, what).tobytes().decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8 text; convert the file again") from None
