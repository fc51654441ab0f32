"""A library for Windows, run under wine by a C program: what it computes is what the same
processor level computes on Linux, bit for bit.

make devices brings wine and TVM's libraries for Windows; without them this is skipped.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.runtime_py.library import LocalLibrary, Pools
from minicpm_mlc.runtime_py.protocols import COMMIT
from minicpm_mlc.targets.link import _import_library, zig

ROOT = Path(__file__).parents[1] / "build" / "windows"
DRIVER = Path(__file__).with_name("windows_driver.c")
WINE = shutil.which("wine64", path=f"{os.environ.get('PATH', '')}:/usr/lib/wine")
USED = {  # by the driver
    "tvm_ffi.dll": (
        "TVMFFIErrorMoveFromRaised",
        "TVMFFIFunctionCall",
        "TVMFFIFunctionGetGlobal",
        "TVMFFITensorFromDLPack",
    ),
    "kernel32.dll": (
        *("CloseHandle", "CreateFileA", "ExitProcess", "GetFileSize", "GetModuleHandleA"),
        *("GetProcAddress", "GetProcessHeap", "GetStdHandle", "HeapAlloc", "LoadLibraryA"),
        *("ReadFile", "VirtualAlloc", "WriteFile", "lstrlenA"),
    ),
}
LEVEL = "x86-64-v3"  # windows-x64's, unless it is given another
ALIGNMENT = 64  # bytes
CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's, by NumPy's kinds
PAGES = 4  # of 64 tokens, in an order of their own
ORDER = [2, 0, 3, 1]

pytestmark = pytest.mark.skipif(
    WINE is None or not (ROOT / "tvm_runtime.dll").exists(),
    reason="no wine, or no TVM for Windows: make devices",
)


@dataclass(frozen=True)
class Call:
    """A compiled function by its kind and gear, and the rows that it is given."""

    kind: str
    sparse: bool
    rows: Sequence[np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.kind}_sparse" if self.sparse else self.kind


def int32(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def span(start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and slots."""
    return np.arange(start, end, dtype=np.int32), np.arange(start, end, dtype=np.int32)


def conversation(tokens: np.ndarray, sparse_gear: bool) -> list[Call]:
    """A prompt in two chunks, behind each a step and a tree, and the last one's commit; the second
    chunk in the sparse gear where there is one.
    """
    table = int32(ORDER)
    calls = []
    for sparse, start, end in ((False, 0, 70), (sparse_gear, 70, 180)):
        rows = (tokens[start:end], *span(start, end), table, int32(end - start - 1))
        calls.append(Call("prefill", sparse, rows))
        calls.append(Call("decode", sparse, (int32(5), int32(end), int32(end), table)))
        nodes, positions = int32(7, 8, 9), int32(end + 1, end + 2, end + 2)
        masks = int32([1, 0], [3, 0], [5, 0])
        slots = np.arange(end + 1, end + 4, dtype=np.int32)
        calls.append(
            Call("verify", sparse, (nodes, positions, slots, int32(end + 1), table, masks))
        )
    moved = (int32(183), int32(182), table)
    return [*calls, Call(COMMIT, False, moved)]


class CallsFile:
    """calls.bin: numbers of 8 bytes, little-endian; texts and values lie behind them and are named
    by their address. Pools, parameters, then a call after the other.
    """

    def __init__(self, pools: Sequence[np.ndarray], params: Sequence[np.ndarray]) -> None:
        self._numbers: list[int | bytes] = []  # bytes: what the number is the address of
        self._list(pools)
        self._list(params)

    def write(self, path: Path, calls: Sequence[Call]) -> None:
        self._numbers.append(len(calls))
        for call in calls:
            self._numbers += [call.name.encode() + b"\0", len(call.rows), call.kind != COMMIT]
            for row in call.rows:
                self._tensor(row)
        at = 8 * len(self._numbers)
        numbers, behind = [], b""
        for number in self._numbers:
            if isinstance(number, bytes):
                behind += bytes(-(at + len(behind)) % ALIGNMENT)
                numbers.append(at + len(behind))
                behind += number
            else:
                numbers.append(number)
        path.write_bytes(struct.pack(f"<{len(numbers)}Q", *numbers) + behind)

    def _list(self, arrays: Sequence[np.ndarray]) -> None:
        self._numbers.append(len(arrays))
        for array in arrays:
            self._tensor(array)

    def _tensor(self, array: np.ndarray) -> None:
        kind = CODES[array.dtype.kind], 8 * array.dtype.itemsize, array.ndim
        self._numbers += [*kind, *array.shape, array.tobytes()]


def results(data: bytes) -> list[list[bytes]]:
    """results.bin: the tensors of every call, then those of the pools."""
    at, found = 0, []
    while at < len(data):
        (count,) = struct.unpack_from("<Q", data, at)
        at, held = at + 8, []
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", data, at)
            held.append(data[at + 8 : at + 8 + size])
            at += 8 + size
        found.append(held)
    return found


def build_driver(folder: Path) -> None:
    """The C program, beside the libraries that it loads."""
    for library in ROOT.glob("*.dll"):
        shutil.copy(library, folder)
    stubs = [_import_library(folder / name, symbols) for name, symbols in USED.items()]
    include = f"-I{Path(tvm_ffi.__file__).parent / 'include'}"
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-mno-stack-arg-probe", include)
    target, made = ("cc", "-target", "x86_64-windows-gnu"), str(folder / "driver.o")
    zig(*target, "-c", *flags, "-o", made, str(DRIVER))
    linked = ("-nostdlib", "-Wl,--entry=start", "-o", str(folder / "driver.exe"))
    zig(*target, *linked, made, *stubs)


def on_windows(folder: Path) -> list[list[bytes]]:
    # Microsoft's libraries as they are beside the program; wine would ask for the last two
    overrides = "msvcp140,vcruntime140,vcruntime140_1=n;mscoree,mshtml="
    # hundreds of MB, which wine's server may still be using when its program has ended
    with TemporaryDirectory(ignore_cleanup_errors=True) as prefix:
        env = os.environ | {"WINEPREFIX": prefix, "WINEDLLOVERRIDES": overrides}
        env |= {"WINEDEBUG": "-all", "DISPLAY": ""}
        started = {"cwd": folder, "env": env, "capture_output": True, "text": True}
        done = subprocess.run([str(WINE), "driver.exe"], check=False, **started)
        subprocess.run([str(Path(str(WINE)).with_name("wineserver")), "-k"], env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return results((folder / "results.bin").read_bytes())


def arrays_of(library: LocalLibrary, pools: Pools) -> list[np.ndarray]:
    return [library.memory.array(tensor) for tensor in pools.tensors]


def on_linux(library: LocalLibrary, pools: Pools, calls: list[Call]) -> list[list[bytes]]:
    found = []
    for call in calls:
        arrays = library.run(call.kind, call.rows, pools, call.sparse)
        found.append([array.tobytes() for array in arrays])
    return [*found, [array.tobytes() for array in arrays_of(library, pools)]]


@pytest.mark.parametrize("attention", ["dense", pytest.param("auto", marks=pytest.mark.campaign)])
def test_a_windows_library_computes_what_linuxs_does(
    compiled: Any, tmp_path: Path, attention: str
) -> None:
    config = tiny_config("MiniCPM4.1-8B")
    write_checkpoint(tmp_path / "checkpoint", config, dtype="f32")
    options = {"scheme": "w4a", "prefill_chunk": 256, "attention": attention}
    source = {"source": tmp_path / "checkpoint", "named": config}
    there = compiled(**source, device="windows-x64", **options)
    bundle = read_bundle(compiled(**source, cpu=LEVEL, **options))
    shutil.copy(there / "model.dll", tmp_path)
    build_driver(tmp_path)

    library = LocalLibrary(bundle, threads=1)
    pools = library.new_pools(PAGES)
    tokens = np.random.default_rng(0).integers(5, library.vocab_size, 180).astype(np.int32)
    calls = conversation(tokens, attention == "auto")
    file = CallsFile(arrays_of(library, pools), library._arrays)
    file.write(tmp_path / "calls.bin", calls)
    expected = on_linux(library, pools, calls)
    seen = on_windows(tmp_path)
    assert len(seen) == len(expected) == len(calls) + 1
    for call, held, right in zip([*calls, None], seen, expected, strict=True):
        if call is None or call.kind != COMMIT:
            assert held == right, call and call.name
    logits = np.frombuffer(seen[0][0], np.float32)
    assert np.isfinite(logits).all() and logits.std() > 0
