"""What storing weights, activations and the cache in fewer bits costs the demo model, in one table.

    python bench/perplexity.py --work build/bench --markdown
    python bench/perplexity.py --skills 100

Compiles the variants that --work lacks. Perplexity is of held-out text
(examples/demo_model/heldout.py) in both gears. Block overlap is of the sparse gear: how many of the
blocks that f32 chooses by score the variant chooses too; blocks that every row reads don't count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table

DEMO = Path(__file__).parents[1] / "examples" / "demo_model"
VARIANTS = {
    "f32": "--quant f32",
    "f32, KV bf16": "--quant f32 --kv bf16",
    "f32, KV int8": "--quant f32 --kv int8",
    "w8": "--quant w8 --activations f32",
    "w8, int8 activations": "--quant w8 --activations int8",
    "w4a, int8 activations": "--quant w4a --activations int8",
    "w4": "--quant w4 --embedding-quant w4 --activations f32",
    "w4, int8 activations": "--quant w4 --embedding-quant w4 --activations int8",
    "w4, int8 activations, KV bf16": "--quant w4 --embedding-quant w4 --activations int8 --kv bf16",
    "w4, int8 activations, KV int8": "--quant w4 --embedding-quant w4 --activations int8 --kv int8",
}
GEARS = ("dense", "sparse")
PLACES = 8  # per long text, where the selected blocks are compared

Selection = list[
    set[tuple[int, int, int]]
]  # per place: (layer, key/value head, block) chosen by score


@dataclass
class Perplexity:
    """One variant; perplexity per gear, overlap and skills as shares."""

    variant: str
    weights: int
    kv_per_token: int
    perplexity: dict[str, float] = field(default_factory=dict)
    overlap: float = 1.0
    skills: dict[str, float] = field(default_factory=dict)


def compiled(variant: str, work: Path) -> Path:
    """The variant's bundle in `work`, compiled unless it is there."""
    bundle = work / f"demo {variant}".replace(", ", "-").replace(" ", "-")
    if not bundle.exists():
        work.mkdir(parents=True, exist_ok=True)
        command = [
            "compile",
            str(DEMO / "MiniCPM4.1-demo"),
            *VARIANTS[variant].split(),
            "--out",
            str(bundle),
        ]
        if subprocess.run(
            [sys.executable, "-m", "minicpm_mlc", *command], stdout=sys.stderr
        ).returncode:
            sys.exit(f"{variant} was not compiled; the reason is printed above")
    return bundle


def perplexity(engine: Engine, texts: list[list[int]]) -> float:
    """exp of the mean surprise of every token but each text's first."""
    return float(
        np.exp(np.concatenate([surprise(engine.logits(ids), ids) for ids in texts]).mean())
    )


def surprise(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """-log p of every token but the first; float64 [n - 1]."""
    before = logits[:-1].astype(np.float64)
    largest = before.max(axis=1)
    log_sum = largest + np.log(np.exp(before - largest[:, None]).sum(axis=1))
    return log_sum - before[np.arange(len(ids) - 1), ids[1:]]


def chosen_blocks(engine: Engine, texts: list[list[int]]) -> Selection:
    """What decode steps spread over the texts chose, beside the first and the latest blocks that
    every row reads.
    """
    sparse = engine.manifest.model["sparse"]
    budget, size = engine.gears.budget, engine.manifest.page_size
    shortest = (budget + 1) * size  # below it no block is left out
    selections = []
    for ids in texts:
        engine.truncate(0)
        for at in range(shortest, len(ids), max(2, (len(ids) - shortest) // PLACES)):
            engine.prefill(ids[len(engine.cached_tokens) : at])
            engine.decode(ids[at])
            local = at // size - sparse["window_size"] // size
            selections.append(
                {
                    (layer, head, int(block))
                    for layer, blocks in enumerate(engine.selected)
                    for head, row in enumerate(blocks)
                    for block in row
                    if sparse["init_blocks"] <= block <= local
                }
            )
    return selections


def overlap(chosen: Selection, reference: Selection) -> float:
    same = sum(len(mine & theirs) for mine, theirs in zip(chosen, reference, strict=True))
    return same / sum(len(theirs) for theirs in reference)


def measure(variants: list[str], args: argparse.Namespace) -> list[Perplexity]:
    """A row for each variant; block overlap needs f32 among them, as the first."""
    texts = importlib.import_module("heldout").held_out_text(tokens=args.tokens)
    reference: Selection | None = None
    rows, ids = [], None
    for variant in variants:
        bundle = compiled(variant, args.work)
        with Engine(bundle) as engine:
            ids = ids or [engine.tokenize(text) for text in texts]
            row = Perplexity(
                variant, engine.manifest.memory["weights"], engine.manifest.memory["kv_per_token"]
            )
        for gear in GEARS:
            with Engine(bundle, attention=gear) as engine:
                row.perplexity[gear] = perplexity(engine, ids)
                if gear == "sparse":
                    chosen = chosen_blocks(engine, ids)
                    reference = chosen if reference is None else reference
                    row.overlap = overlap(chosen, reference)
        row.skills = skills(bundle, args.skills) if args.skills else {}
        rows.append(row)
    return rows


def skills(bundle: Path, count: int) -> dict[str, float]:
    """The demo model's accuracy per skill, greedy, on `count` held-out prompts each."""
    evaluate = importlib.import_module("evaluate")
    return evaluate.skills(
        evaluate.from_bundle(bundle, "auto"), list(evaluate.SKILLS), count, quiet=True
    )


def cells(rows: list[Perplexity]) -> list[list[str]]:
    names = [name for name in rows[0].skills]
    head = [
        "stored as",
        "weights MB",
        "KV bytes/token",
        "perplexity, dense",
        "perplexity, sparse",
        "block overlap",
        *names,
    ]
    return [head, *(line(row, rows[0], names) for row in rows)]


def line(row: Perplexity, first: Perplexity, names: list[str]) -> list[str]:
    losses = [
        f"{row.perplexity[gear]:.4f} ({row.perplexity[gear] / first.perplexity[gear] - 1:+.2%})"
        for gear in GEARS
    ]
    sizes = [f"{row.weights / 1e6:.2f}", f"{row.kv_per_token}"]
    return [
        row.variant,
        *sizes,
        *losses,
        f"{row.overlap:.1%}",
        *(f"{row.skills[name]:.1%}" for name in names),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where the bundles are kept"
    )
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="only these, compared with the first"
    )
    parser.add_argument("--tokens", type=int, default=100_000, help="of held-out text, at least")
    parser.add_argument(
        "--skills", type=int, default=0, metavar="N", help="also accuracy on N prompts per skill"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(DEMO))
    try:
        rows = measure(args.variant or list(VARIANTS), args)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    if args.json:
        return print(json.dumps([vars(row) for row in rows], indent=2))
    print((markdown_table if args.markdown else plain_table)(cells(rows)))


if __name__ == "__main__":
    main()
