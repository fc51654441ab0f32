"""What each way to store a model's weights costs its answers, in one table.

    python bench/off_grid.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2
    python bench/quality.py build/smollm2 --text LICENCE.txt --text MODULE.py --markdown

Compiles the variants that --work lacks, runs all over the same tokens, and compares what they say
after each token with the f32 bundle, as `minicpm-mlc quality` does. llama.cpp's files of the same
weights are rows too (--gguf; bench/llama_files.py makes them). Rows are kept in --work: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.files import write_text
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.divergence import Answers, Comparison, TextQuality, compare
from minicpm_mlc.bench.quality import CHUNK, read_texts, token_ids
from minicpm_mlc.bundle.manifest import manifest_sha256

REFERENCE = "f32"
BASE = "w4"  # what ratios are to


class Variant(NamedTuple):
    """Options of `compile`, what it compiles if not the checkpoint (another variant's bundle), and
    the gear that answers.
    """

    options: str
    source: str | None = None
    attention: str = "dense"


VARIANTS = {
    REFERENCE: Variant("--quant f32"),
    "f32, KV f16": Variant("--quant f32 --kv f16"),
    "f32, KV bf16": Variant("--quant f32 --kv bf16"),
    "f32, KV int8": Variant("--quant f32 --kv int8"),
    "f32, sparse attention": Variant("--quant f32", attention="sparse"),
    "w8, exact activations": Variant("--quant w8 --activations f32"),
    "w8": Variant("--quant w8"),
    "w6": Variant("--quant w6"),
    "w5k": Variant("--quant w5k"),
    "w4a": Variant("--quant w4a"),
    "w4z": Variant("--quant w4z"),
    "w4k": Variant("--quant w4k"),
    BASE: Variant("--quant w4"),
    "w4, embedding and head w4": Variant("--quant w4 --embedding-quant w4"),
    "w4k, 4.85 bits": Variant("--bits 4.85"),
    "w4a, calibrated": Variant("--calibrate --quant w4a"),
    "w4k, calibrated": Variant("--calibrate --quant w4k"),
    "w4, calibrated": Variant("--calibrate --quant w4"),
    "w4k, calibrated, 4.85 bits": Variant("--calibrate --bits 4.85"),
    "w4a, calibrated, exact activations": Variant("--activations f32", "w4a, calibrated"),
    "w4a, calibrated, KV bf16": Variant("--kv bf16", "w4a, calibrated"),
    "w4a, calibrated, KV int8": Variant("--kv int8", "w4a, calibrated"),
    "w8, KV int8": Variant("--quant w8 --kv int8"),
    "w8, sparse attention": Variant("--quant w8", attention="sparse"),
    "w8, KV int8, sparse attention": Variant("--quant w8 --kv int8", attention="sparse"),
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


def compiled(name: str, args: argparse.Namespace) -> Path:
    """A variant's bundle in --work, compiled unless it is there."""
    variant = VARIANTS[name]
    if (variant.options, variant.source) == (VARIANTS[REFERENCE].options, None):
        name = REFERENCE
    bundle = args.work / f"{args.checkpoint.name} {name}".replace(", ", "-").replace(" ", "-")
    if not bundle.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        source = compiled(variant.source, args) if variant.source else args.checkpoint
        options = [*variant.options.split(), "--context", str(args.tokens), "-o", str(bundle)]
        command = [sys.executable, "-m", "minicpm_mlc", "compile", str(source), *options]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit(f"{name} was not compiled; the reason is printed above")
    return bundle


def measure(args: argparse.Namespace) -> list[Row]:
    """A row for each variant, the reference first, then one for each GGUF file."""
    with Engine(compiled(REFERENCE, args), attention="dense") as engine:
        texts = read_texts(args.text).items()
        ids = {name: token_ids(engine, name, text, args.tokens) for name, text in texts}
        exact = {name: engine.logits(tokens) for name, tokens in ids.items()}
        whole, chunk = engine.manifest.memory["weights"], min(CHUNK, engine.prefill_chunk)

    def row(name: str, weights: int, bits: float, answers: Answers) -> Row:
        compared = [
            compare(Comparison(*text), answers, given(exact[text[0]]), chunk)
            for text in ids.items()
        ]
        return Row(name, weights, bits, compared)

    def of_variant(name: str, bundle: Path) -> Row:
        with Engine(bundle, attention=VARIANTS[name].attention) as own:
            weights = own.manifest.memory["weights"]
            return row(name, weights, 32 * weights / whole, own.logits_by_chunk)

    def of_file(path: Path) -> Row:
        answers = Llama(path, args.tokens).answers
        return row(f"llama.cpp {path.stem}", *tensor_sizes(path), answers)

    rows = []
    for name in dict.fromkeys([REFERENCE, *(args.variant or VARIANTS)]):
        bundle = compiled(name, args)
        what = name, manifest_sha256(bundle), ids
        rows.append(kept(args.work, what, partial(of_variant, name, bundle)))
    for path in args.gguf:
        what = path.stem, path.stat().st_size, path.stat().st_mtime, ids
        rows.append(kept(args.work, what, partial(of_file, path)))
    return rows


def kept(work: Path, what: tuple, measured: Callable[[], Row]) -> Row:
    """A row that an earlier run has measured of the same, or one measured now."""
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    file = work / "rows" / f"{key}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(measured())))
    found = json.loads(file.read_text())
    print(json.dumps(found), file=sys.stderr, flush=True)
    return Row(**found | {"texts": [TextQuality(**text) for text in found["texts"]]})


def given(logits: np.ndarray) -> Answers:
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
