"""How long it takes to load computed tokens, against reading the file.

    python bench/saved_state.py                      # 32K tokens of MiniCPM4.1-8B's int8 cache
    python bench/saved_state.py --tokens 131072

Both sides take turns in one run, from the page cache into memory that is new each time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from minicpm_mlc.runtime_py.kv_cache import PagePool
from minicpm_mlc.runtime_py.machine import cpu_name
from minicpm_mlc.runtime_py.prefix_cache import Kept
from minicpm_mlc.runtime_py.saved_state import load_state, save_state

PAGE, LAYERS = 64, 32
SHAPES = [((2, 136, 64), "int8"), ((2, 64, 128), "int8"), ((2, 4, 128), "float32")]


def pools(pages: int) -> list[np.ndarray]:
    """Memory that is not touched yet."""
    return [np.empty((pages, *shape), dtype) for shape, dtype in SHAPES for _ in range(LAYERS)]


def read(path: Path) -> float:
    """Seconds to read a file whole."""
    start = time.perf_counter()
    memory = np.empty(path.stat().st_size, np.uint8)
    with open(path, "rb") as file:
        file.readinto(memory.data)
    return time.perf_counter() - start


def load(path: Path, pages: int) -> float:
    """Seconds to load it as a state."""
    arrays, pool = pools(pages), PagePool(pages, PAGE)
    start = time.perf_counter()
    load_state(path, "", pool, arrays)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    pages = args.tokens // PAGE
    arrays = pools(pages)
    for array in arrays:
        array.reshape(-1).view(np.uint8)[:] = np.arange(array.nbytes, dtype=np.uint32)
    kept = [Kept(i - 1, tuple(range(i * PAGE, (i + 1) * PAGE)), i) for i in range(pages)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        save_state(path, "", kept, range(args.tokens), arrays)
        del arrays
        pairs = [(read(path), load(path, pages)) for _ in range(args.repeats + 1)][1:]
        size = path.stat().st_size / 1e9
    reading, loading = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{cpu_name()}, {args.tokens} tokens, {size:.2f} GB: read {size / reading:.1f} GB/s, "
        f"loaded {size / loading:.1f} GB/s, {ratio:.2f}x the time"
    )


if __name__ == "__main__":
    main()
