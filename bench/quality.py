"""What each way to store a model's weights costs its answers, in one table.

    python bench/off_grid.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2
    python bench/quality.py build/smollm2 --text LICENCE.txt --text MODULE.py --markdown

Compiles the variants that --work lacks, runs all over the same tokens, and compares what they say
after each token with the f32 bundle: the Kullback-Leibler divergence, how often the likeliest token
is the same, and the text's perplexity.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table

REFERENCE = "f32"
BASE = "w4"  # what ratios are to
VARIANTS = {
    REFERENCE: "--quant f32",
    "w8": "--quant w8",
    "w4, embedding and head w4": "--quant w4 --embedding-quant w4",
    BASE: "--quant w4",
    "w4, exact activations": "--quant w4 --activations f32",
    "w4a": "--quant w4a",
    "w4, calibrated": "--calibrate --quant w4",
    "w4, calibrated, KV int8": "--calibrate --quant w4 --kv int8",
    "w4a, calibrated": "--calibrate --quant w4a",
}


@dataclass
class Quality:
    """One variant: its weights' bytes, and by text what it says compared with f32."""

    variant: str
    weights: int
    divergence: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)


def compiled(variant: str, args: argparse.Namespace) -> Path:
    """The variant's bundle in --work, compiled unless it is there."""
    bundle = args.work / f"{args.checkpoint.name} {variant}".replace(", ", "-").replace(" ", "-")
    if not bundle.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        options = [*VARIANTS[variant].split(), "--context", str(args.tokens), "-o", str(bundle)]
        command = [sys.executable, "-m", "minicpm_mlc", "compile", str(args.checkpoint), *options]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit(f"{variant} was not compiled; the reason is printed above")
    return bundle


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits [n, vocab] -> float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def compare(row: Quality, text: str, ids: list[int], own: np.ndarray, exact: np.ndarray) -> None:
    """Adds to a row what `own` log probabilities [n, vocab] of a text are beside `exact` ones."""
    row.divergence[text] = float((np.exp(exact) * (exact - own)).sum(1).mean())
    row.agreement[text] = float((own.argmax(1) == exact.argmax(1)).mean())
    row.perplexity[text] = float(np.exp(-own[np.arange(len(ids) - 1), ids[1:]].mean()))


def measure(args: argparse.Namespace) -> list[Quality]:
    """A row for each variant, the reference first."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in args.text}
    exact: dict[str, np.ndarray] = {}
    rows = []
    for variant in dict.fromkeys([REFERENCE, *(args.variant or VARIANTS)]):
        with Engine(compiled(variant, args)) as engine:
            row = Quality(variant, engine.manifest.memory["weights"])
            for name, text in texts.items():
                ids = engine.tokenize(text)[: args.tokens]
                own = log_probabilities(engine.logits(ids))
                compare(row, name, ids, own, exact.setdefault(name, own))
        print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def cells(rows: list[Quality]) -> list[list[str]]:
    """The table: divergences, and their ratio to BASE's where it is there."""
    texts = list(rows[0].perplexity)
    head = ["stored as", "weights MB"]
    for name in ("KL", "same token", "perplexity"):
        head += [f"{name}, {text}" for text in texts]
    base = next((row.divergence for row in rows if row.variant == BASE), None)
    return [[*head, *(["of w4's KL"] if base else [])], *(_line(row, base) for row in rows)]


def _line(row: Quality, base: dict[str, float] | None) -> list[str]:
    line = [row.variant, f"{row.weights / 1e6:.1f}"]
    line += [f"{value:.4f}" for value in row.divergence.values()]
    line += [f"{value:.1%}" for value in row.agreement.values()]
    line += [f"{value:.2f}" for value in row.perplexity.values()]
    if base:
        line.append(" / ".join(f"{row.divergence[text] / base[text]:.2f}" for text in base))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=2048, help="of each text")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="f32 and only these")
    parser.add_argument(
        "--work", type=Path, default=Path("build/quality"), help="where the bundles are kept"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    try:
        rows = measure(args)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    if args.json:
        return print(json.dumps([asdict(row) for row in rows], indent=2))
    print((markdown_table if args.markdown else plain_table)(cells(rows)))


if __name__ == "__main__":
    main()
