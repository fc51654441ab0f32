"""One .safetensors file, memory-mapped: rows come out as float32, only those asked for, and nothing
else is read.

The format is a little-endian u64 header length, a JSON header, then the tensors' bytes without
gaps. The safetensors package hands bf16 out through torch alone, so the header is read here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import GIT_LFS, json_value
from minicpm_mlc.base.text import any_of, shown
from minicpm_mlc.ops.formats.bfloat16 import bfloat16_numbers

MAX_HEADER = 16 << 20  # bytes; a tensor takes some 150
MAX_TENSORS = 100_000
MAX_RANK = 8
STORED = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
# How everything that may stand in a file lies in memory; bf16 and 8-bit floats are their bits.
DTYPES = (
    STORED
    | {"F64": np.dtype("<f8"), "BOOL": np.dtype("?"), "F8_E4M3": np.dtype("u1")}
    | {f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
    | {f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
)
ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `start` counts bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class SafetensorsFile:
    """`entries` by tensor name. Raises CheckpointError for a damaged or truncated file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            size = path.stat().st_size
            self._map = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        except OSError as error:
            raise CheckpointError(f"{path} can't be opened: {error.strerror}") from None
        if self._map[: len(GIT_LFS)].tobytes() == GIT_LFS:
            raise self._error("is a Git LFS pointer, not the weights; fetch them: git lfs pull")
        self.entries = self._read_entries()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 copy of rows [start:stop) of a 1-D or 2-D tensor."""
        entry = self.entries[name]
        if entry.dtype not in STORED:
            raise self._error(f"tensor {name} is {entry.dtype}, expected BF16, F16 or F32")
        stored = self._map[entry.start : entry.start + entry.nbytes].view(STORED[entry.dtype])
        picked = stored.reshape(entry.shape)[start:stop]
        if entry.dtype == "BF16":
            return bfloat16_numbers(picked)
        return picked.astype(np.float32)

    def array(self, name: str) -> np.ndarray:
        """A view of a tensor in its own dtype; of bf16 and 8-bit floats, of their bits."""
        entry = self.entries[name]
        return self.raw(name).view(DTYPES[entry.dtype]).reshape(entry.shape)

    def expect(self, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Raises CheckpointError unless a tensor has one of these dtypes and of these shapes."""
        entry = self.entries[name]
        if entry.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise self._error(
                f"tensor {name} has shape {list(entry.shape)}, expected {expected} from config.json"
            )
        if entry.dtype not in dtypes:
            raise self._error(f"tensor {name} has dtype {entry.dtype}, expected {any_of(dtypes)}")

    def raw(self, name: str) -> np.ndarray:
        """uint8 view of a tensor's bytes as stored."""
        entry = self.entries[name]
        return self._map[entry.start : entry.start + entry.nbytes]

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}")

    def _read_entries(self) -> dict[str, Entry]:
        header, start = self._read_header()
        header.pop("__metadata__", None)
        entries = {name: self._entry(shown(name), value, start) for name, value in header.items()}
        end = start
        for name, entry in sorted(
            entries.items(), key=lambda item: (item[1].start, item[1].nbytes)
        ):
            if entry.start != end:
                raise self._error(
                    f"tensor {shown(name)} starts at byte {entry.start}, expected {end}; "
                    "download it again"
                )
            end += entry.nbytes
        if end != self._map.size:
            state = "truncated" if end > self._map.size else "followed by bytes of no tensor"
            raise self._error(
                f"is {state}: {self._map.size} bytes, its header needs {end}; download it again"
            )
        return entries

    def _read_header(self) -> tuple[dict[str, object], int]:
        """The parsed header and the byte where tensors begin."""
        if not self._map.size:
            raise self._error("is empty; download it again")
        length = int.from_bytes(self._map[:8].tobytes(), "little")
        if self._map.size < 8 or not 2 <= length <= min(MAX_HEADER, self._map.size - 8):
            raise self._error(
                f"header of {length} bytes doesn't fit a file of {self._map.size}; download it "
                "again"
            )
        try:
            header = json_value(self._map[8 : 8 + length].tobytes(), nested=3 * MAX_TENSORS)
        except ValueError as error:
            raise self._error(f"header isn't JSON ({error}); download it again") from None
        if not isinstance(header, dict):
            raise self._error("header isn't a JSON object; download it again")
        return header, 8 + length

    def _entry(self, name: str, value: object, base: int) -> Entry:
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                pass
            case _:
                raise self._error(
                    f"tensor {name} has no dtype, shape and data_offsets in the header"
                )
        if len(shape) > MAX_RANK:
            raise self._error(f"tensor {name} has {len(shape)} sizes, expected {MAX_RANK} or fewer")
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)):
            raise self._error(
                f"tensor {name} has a shape or offset that isn't a whole number below 2^63"
            )
        if dtype not in ITEM_BYTES:
            raise self._error(f"tensor {name} has dtype {shown(dtype)}, expected BF16, F16 or F32")
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        if end - begin != nbytes:
            raise self._error(
                f"tensor {name} spans {end - begin} bytes, its shape {shape} in {dtype} needs "
                f"{nbytes}"
            )
        return Entry(dtype, tuple(shape), base + begin, nbytes)
