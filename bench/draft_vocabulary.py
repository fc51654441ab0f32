"""Accept length and draft time by the size of the draft vocabulary, side by side: the demo's
EAGLE-3 head, cut as FR-Spec cuts.

    python bench/draft_vocabulary.py

Keeps the rows of the head's output that belong to its most frequent tokens (freq_512.json),
compiles the demo with each cut unless --work has it, and lets all of them draft trees of one form
for the same held-out prompts, greedily and in turns. The time of a draft is the median of the
prompts'. What a smaller vocabulary saves at the 8B models' shapes: bench/draft_head.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from demo import HEAD, compiled, prompts

from minicpm_mlc import Engine
from minicpm_mlc.base.text import markdown_table, plain_table

DTYPES = {"BF16": np.dtype("<u2"), "I64": np.dtype("<i8"), "BOOL": np.dtype("u1")}


@dataclass
class Cut:
    """One size of draft vocabulary and what came of it."""

    vocabulary: int
    engine: Engine
    trees: int = 0
    accepted: int = 0
    milliseconds: list[float] = field(default_factory=list)  # of drafting a tree, by prompt

    def answer(self, ids: list[int], tokens: int, **options: Any) -> None:
        """Drafts and verifies one greedy answer; the head begins anew."""
        self.engine.truncate(0)
        self.engine.generate(ids, max_tokens=tokens, temperature=0, speculate="eagle", **options)
        figures = self.engine.stats.speculation
        if figures.rounds:
            self.trees += figures.rounds
            self.accepted += figures.accepted
            self.milliseconds.append(1e3 * figures.draft_seconds / figures.rounds)

    def figures(self) -> dict[str, Any]:
        length = 1 + self.accepted / self.trees
        time = statistics.median(self.milliseconds)
        return {
            "vocabulary": self.vocabulary,
            "trees": self.trees,
            "accept_length": length,
            "draft_milliseconds": time,
        }


def read_tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """(dtype, values) of each tensor of a safetensors file; bfloat16 as its bits."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, found = json.loads(data[8 : 8 + size]), {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = (
                entry["dtype"],
                np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"]),
            )
    return found


def write_tensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    header, offset = {}, 0
    for name, (dtype, value) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": value.shape,
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(
        len(text).to_bytes(8, "little")
        + text
        + b"".join(value.tobytes() for _, value in tensors.values())
    )


def cut_head(size: int, out: Path) -> Path:
    """The demo's head with the `size` most frequent tokens of its vocabulary."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = read_tensors(HEAD / "model.safetensors")
    ids = np.arange(len(tensors["d2t"][1])) + tensors["d2t"][1]
    rows = np.flatnonzero(np.isin(ids, json.loads((HEAD / "freq_512.json").read_text())[:size]))
    tensors["lm_head.weight"] = "BF16", tensors["lm_head.weight"][1][rows]
    tensors["d2t"] = "I64", ids[rows] - np.arange(len(rows))
    tensors["t2d"] = "BOOL", np.isin(np.arange(len(tensors["t2d"][1])), ids[rows]).astype(np.uint8)
    write_tensors(out / "model.safetensors", tensors)
    config = json.loads((HEAD / "config.json").read_text()) | {"draft_vocab_size": len(rows)}
    (out / "config.json").write_text(json.dumps(config))
    return out


def cut_bundle(size: int, work: Path) -> Path:
    """The demo with a head of so many tokens."""
    return compiled(
        work / f"demo-eagle3-cut-{size}",
        "--draft",
        str(cut_head(size, work / f"eagle3-cut-{size}")),
    )


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    cuts = [
        Cut(size, Engine(cut_bundle(size, args.work), threads=args.threads))
        for size in map(int, args.vocab.split(","))
    ]
    trees = {"tree_size": args.tree_size, "draft_depth": args.draft_depth}
    made = prompts(cuts[0].engine, args.count)
    for cut in cuts:
        cut.engine.generate(
            made[0], max_tokens=args.tokens, temperature=0, speculate="eagle", **trees
        )  # warms up
    for ids in made:
        for cut in cuts:
            cut.answer(ids, args.tokens, **trees)
    return [cut.figures() for cut in cuts]


def table(found: list[dict[str, Any]], markdown: bool) -> str:
    head = ["draft vocabulary", "accept length", "draft, ms a tree", "trees"]
    forms = {"vocabulary": "d", "accept_length": ".2f", "draft_milliseconds": ".3f", "trees": "d"}
    lines = [[format(figures[name], form) for name, form in forms.items()] for figures in found]
    return (markdown_table if markdown else plain_table)([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where heads and bundles are kept"
    )
    parser.add_argument(
        "--vocab", default="512,384,256,128", help="sizes, of the head's 512 tokens"
    )
    parser.add_argument("--count", type=int, default=5, help="prompts of each skill")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--tree-size", type=int, default=16)
    parser.add_argument("--draft-depth", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="instead of a table")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    print(json.dumps(found, indent=1) if args.json else table(found, args.markdown))


if __name__ == "__main__":
    main()
