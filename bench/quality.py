"""What each way to store a model's weights costs its answers, in one table.

    python bench/off_grid.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2
    python bench/quality.py build/smollm2 --text LICENCE.txt --text MODULE.py --markdown

Compiles the variants that --work lacks, runs all over the same tokens, and compares what they say
after each token with the f32 bundle, as `minicpm-mlc quality` does. llama.cpp's files of the same
weights are rows too (--gguf; bench/llama_files.py makes them).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.divergence import Answers, Comparison, TextQuality, compare
from minicpm_mlc.bench.quality import CHUNK, read_texts, token_ids

REFERENCE = "f32"
BASE = "w4"  # what ratios are to
VARIANTS = {
    REFERENCE: "--quant f32",
    "w8": "--quant w8",
    "w4, embedding and head w4": "--quant w4 --embedding-quant w4",
    BASE: "--quant w4",
    "w4, exact activations": "--quant w4 --activations f32",
    "w4k": "--quant w4k",
    "w4a": "--quant w4a",
    "w5k": "--quant w5k",
    "w6": "--quant w6",
    "w4, calibrated": "--calibrate --quant w4",
    "w4, calibrated, exact activations": "--calibrate --quant w4 --activations f32",
    "w4, calibrated, KV bf16": "--calibrate --quant w4 --kv bf16",
    "w4, calibrated, KV int8": "--calibrate --quant w4 --kv int8",
    "w4, calibrated, 4.85 bits": "--calibrate --quant w4 --bits 4.85",
    "w4k, calibrated": "--calibrate --quant w4k",
    "w4a, calibrated": "--calibrate --quant w4a",
    "w8, KV int8": "--quant w8 --kv int8",
}


@dataclass
class Row:
    """One variant: its weights' bytes, their bits each, and what it says of each text."""

    variant: str
    weights: int
    bits: float
    texts: list[TextQuality] = field(default_factory=list)


class Llama:
    """llama.cpp on a GGUF file."""

    def __init__(self, path: Path, tokens: int) -> None:
        import llama_cpp

        options = {"n_ctx": tokens, "n_batch": CHUNK, "logits_all": True, "verbose": False}
        self.model = llama_cpp.Llama(str(path), **options)

    def answers(self, ids: Sequence[int], chunk: int) -> Iterator[np.ndarray]:
        """Logits by chunk (an Answers)."""
        self.model.reset()
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            self.model.eval(part)
            yield self.model.scores[start : start + len(part)]


def tensor_sizes(path: Path) -> tuple[int, float]:
    """Bytes of all tensors in a GGUF file, and bits of a weight."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    size = sum(int(tensor.n_bytes) for tensor in tensors)
    return size, 8 * size / sum(int(tensor.n_elements) for tensor in tensors)


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


def measure(args: argparse.Namespace) -> list[Row]:
    """A row for each variant, the reference first, then one for each GGUF file."""
    with Engine(compiled(REFERENCE, args)) as engine:
        texts = read_texts(args.text).items()
        ids = {name: token_ids(engine, name, text, args.tokens) for name, text in texts}
        exact = {name: engine.logits(tokens) for name, tokens in ids.items()}
        whole, chunk = engine.manifest.memory["weights"], min(CHUNK, engine.prefill_chunk)

    def row(name: str, weights: int, bits: float, answers: Answers) -> Row:
        compared = [
            compare(Comparison(*text), answers, kept(exact[text[0]]), chunk) for text in ids.items()
        ]
        made = Row(name, weights, bits, compared)
        print(json.dumps(asdict(made)), file=sys.stderr, flush=True)
        return made

    rows = []
    for variant in dict.fromkeys([REFERENCE, *(args.variant or VARIANTS)]):
        with Engine(compiled(variant, args)) as own:
            weights = own.manifest.memory["weights"]
            rows.append(row(variant, weights, 32 * weights / whole, own.logits_by_chunk))
    for path in args.gguf:
        answers = Llama(path, args.tokens).answers
        rows.append(row(f"llama.cpp {path.stem}", *tensor_sizes(path), answers))
    return rows


def kept(logits: np.ndarray) -> Answers:
    """The answers that were given, float32 [tokens, vocab]."""
    return lambda ids, chunk: (logits[i : i + chunk] for i in range(0, len(ids), chunk))


def cells(rows: list[Row]) -> list[list[str]]:
    """The table: divergences, and their ratio to BASE's where it is there."""
    texts = [each.text for each in rows[0].texts]
    head = ["stored as", "weights MB", "bits a weight", *(f"KL, {text}" for text in texts)]
    base = next((row for row in rows if row.variant == BASE), None)
    head += ["same token", "perplexity", *(["of w4's KL"] if base else [])]
    return [head, *(_line(row, base) for row in rows)]


def _line(row: Row, base: Row | None) -> list[str]:
    line = [row.variant, f"{row.weights / 1e6:.1f}", f"{row.bits:.2f}"]
    line += [f"{text.divergence:.4f}" for text in row.texts]
    line.append(" / ".join(f"{text.agreement:.1%}" for text in row.texts))
    line.append(" / ".join(f"{text.perplexity:.2f}" for text in row.texts))
    if base:
        pairs = zip(row.texts, base.texts, strict=True)
        line.append(" / ".join(f"{own.divergence / w4.divergence:.2f}" for own, w4 in pairs))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=2048, help="of each text")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="f32 and only these")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="llama.cpp's files")
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
