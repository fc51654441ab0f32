"""What an EAGLE head costs at the 8B models' shapes, by the size of its vocabulary (FR-Spec).

    # compiles a bundle per size, 4 layers of base each
    python bench/draft_head.py --build /tmp/heads
    python bench/draft_head.py --measure /tmp/heads

`extend` appends the rows of the tokens accepted last, `step` runs one depth of a draft tree,
`draft` grows the whole tree as the engine does; the sizes take turns. The weights are random: speed
doesn't depend on their values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import shape, write_source

CONTEXT = 2048
PARTS = ("extend", "step", "draft")


class Head:
    """One bundle's head behind a sequence of `depth` tokens."""

    def __init__(self, path: Path, depth: int, threads: int) -> None:
        from minicpm_mlc.bundle.manifest import read_bundle
        from minicpm_mlc.runtime_py.draft_model import DraftModel
        from minicpm_mlc.runtime_py.kv_cache import Sequence
        from minicpm_mlc.runtime_py.library import LocalLibrary
        from minicpm_mlc.runtime_py.paged_cache import PagedCache

        library = LocalLibrary(read_bundle(path), threads)
        cache = PagedCache(library, CONTEXT)
        sequence = Sequence(cache.pages, CONTEXT)
        sequence.reserve(depth)
        sequence.append([5] * depth)
        self.model = DraftModel(cache, sequence)
        draft = library.manifest.draft
        assert draft
        self.vocab = draft["vocab"]
        self.features = np.random.default_rng(0).standard_normal(
            (depth, draft["features"]), dtype=np.float32
        )
        self.model.extend(5, self.features)

    def extend(self, rows: int) -> np.ndarray:
        return self.model.extend(5, self.features[:rows]).hidden

    def step(self, hidden: np.ndarray, nodes: int) -> np.ndarray:
        return self.model.step([5] * nodes, np.tile(hidden, (nodes, 1)), [-1] * nodes).hidden[:1]

    def draft(self, rows: int, nodes: int, depth: int) -> None:
        self.model.grow(5, self.features[:rows], depth, nodes, 0.0)


def build(folder: Path, base: str, kind: str, sizes: list[int], scheme: str) -> None:
    from minicpm_mlc.compile import compile_model

    source = write_source(shape(base, layers=4), folder / "source")
    for size in sizes:
        options: dict[str, Any] = {
            "attention": "dense",
            "scheme": scheme,
            "random_weights": True,
            "overwrite": True,
        }
        compile_model(source, folder / str(size), draft=f"random-{kind}:{size}", **options)


def measure(
    folder: Path, rows: int, nodes: int, depth: int, cached: int, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Median milliseconds of each part, per bundle, the largest vocabulary first."""
    heads = [
        Head(path, cached, threads)
        for path in sorted(folder.iterdir(), key=_size)
        if (path / "manifest.json").exists()
    ]
    seconds: dict[tuple[int, str], list[float]] = {}
    for _ in range(repeats + 1):  # the first round warms up
        for head in heads:
            hidden = head.extend(rows)
            parts: dict[str, Callable[[], Any]] = {
                "step": lambda head=head, hidden=hidden: head.step(hidden, nodes),
                "extend": lambda head=head: head.extend(rows),
                "draft": lambda head=head: head.draft(rows, nodes, depth),
            }
            for name, run in parts.items():
                start = time.perf_counter()
                run()
                seconds.setdefault((head.vocab, name), []).append(time.perf_counter() - start)
    return [
        {"vocab": head.vocab}
        | {name: 1e3 * statistics.median(seconds[head.vocab, name][1:]) for name in PARTS}
        for head in heads
    ]


def _size(path: Path) -> int:
    return -int(path.name) if path.name.isdigit() else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, help="folder to compile bundles into")
    parser.add_argument("--measure", type=Path, help="folder of such bundles")
    parser.add_argument("--base", default="MiniCPM4.1-8B")
    parser.add_argument("--kind", default="eagle3", choices=["eagle2", "eagle3"])
    parser.add_argument("--quant", default="w4")
    parser.add_argument("--vocab", default="73448,32768,8192")
    parser.add_argument("--rows", type=int, default=3, help="tokens accepted at a time")
    parser.add_argument("--nodes", type=int, default=8, help="nodes of a depth")
    parser.add_argument("--depth", type=int, default=4, help="depths of the tree")
    parser.add_argument("--cached", type=int, default=1024, help="tokens before the tree")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="instead of a Markdown table")
    args = parser.parse_args()
    if args.build:
        build(
            args.build,
            args.base,
            args.kind,
            [int(size) for size in args.vocab.split(",")],
            args.quant,
        )
    if args.measure:
        found = measure(
            args.measure, args.rows, args.nodes, args.depth, args.cached, args.repeats, args.threads
        )
        print(json.dumps(found, indent=1) if args.json else _table(found, args))


def _table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    from minicpm_mlc.base.text import markdown_table

    head = [
        "draft vocabulary",
        f"extend {args.rows}, ms",
        f"step {args.nodes}, ms",
        f"depth {args.depth} in all, ms",
        "speed",
    ]
    cells = [[f"{row['vocab']:,}", *(f"{row[name]:.2f}" for name in PARTS)] for row in rows]
    speed = [f"{rows[0]['draft'] / row['draft']:.2f}x" for row in rows]
    return markdown_table(
        [head, *([*line, ratio] for line, ratio in zip(cells, speed, strict=True))]
    )


if __name__ == "__main__":
    main()
