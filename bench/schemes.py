"""Decode and prefill speed of each weight scheme beside w4's, and the record that
`minicpm-mlc inspect` shows.

    python bench/quality.py build/smollm2 --text LICENCE.txt --text MODULE.py --json > rows.json
    python bench/schemes.py --quality rows.json --record

Random weights of one shape, each scheme in a process of its own, taking turns; ratios are medians
of those within the rounds. `--record` writes them, and the divergences of the rows, to
minicpm_mlc/inspect/schemes.json. Prints what was measured, then README's table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from shapes import shape, write_source
from sides import Remote, ours
from vs_llama import compile_unless_there

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.files import write_text
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench import decode as bench
from minicpm_mlc.bench.speed_report import SpeedRow
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.inspect import schemes as told
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores

BASE = "w4"
INTEGERS = [name for name, scheme in SCHEMES.items() if scheme.takes_int8]
CALIBRATED = ", calibrated"  # behind a scheme's name in bench/quality.py

Record = dict[str, dict[str, Any]]


def bundle(args: argparse.Namespace, scheme: str) -> Path:
    """The shape in a scheme, compiled unless --work has it."""
    config = shape(args.preset, args.layers)
    source = str(write_source(config, args.work))
    path = args.work / f"{config.name}-{scheme}-whole"
    compile_unless_there(path, source, "--random-weights", "--quant", scheme)
    return path


def speeds(args: argparse.Namespace) -> dict[str, list[SpeedRow]]:
    """Prefill, then decode, of each scheme."""
    room = bench.room_needed([0], [args.prompt_tokens], args.new_tokens)
    sides = {
        name: Remote(ours, str(bundle(args, name)), room, args.threads, "dense", False)
        for name in dict.fromkeys([BASE, *args.scheme])
    }
    return bench.measure(sides, [0], [args.prompt_tokens], args.new_tokens, args.repeats)


def ratio(own: SpeedRow, base: SpeedRow) -> float:
    """The median of the ratios within the rounds."""
    pairs = zip(own.samples, base.samples, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def of_speeds(rows: dict[str, list[SpeedRow]]) -> Record:
    """ "prefill" and "decode" of each scheme relative to BASE's."""
    return {
        name: {row.phase: ratio(row, base) for row, base in zip(own, rows[BASE], strict=True)}
        for name, own in rows.items()
    }


def of_quality(rows: list[dict[str, Any]]) -> Record:
    """The rows of bench/quality.py that are a scheme of integers, plain or calibrated."""
    found: Record = {}
    for row in rows:
        name = row["variant"].removesuffix(CALIBRATED)
        if name not in INTEGERS:
            continue
        divergence = [text["divergence"] for text in row["texts"]]
        if row["variant"] != name:
            found.setdefault(name, {})["calibrated"] = divergence
        else:
            perplexity = [text["perplexity"] for text in row["texts"]]
            found.setdefault(name, {}).update(divergence=divergence, perplexity=perplexity)
    return found


def merged(*records: Record) -> Record:
    """What is in any of them; the last one counts. Four digits are enough."""
    found: Record = {}
    for record in records:
        for name, figures in record.items():
            found.setdefault(name, {}).update({key: _short(at) for key, at in figures.items()})
    return dict(sorted(found.items()))


def _short(figure: Any) -> Any:
    return [_short(each) for each in figure] if isinstance(figure, list) else float(f"{figure:.4g}")


def cells(rows: dict[str, list[SpeedRow]]) -> list[list[str]]:
    """tokens/s of each scheme, and their ratio to BASE's."""
    head = ["scheme", *(f"{row.phase} {row.tokens}, tokens/s" for row in rows[BASE])]
    lines = [
        [
            name,
            *(
                f"{row.tokens_per_second:.1f} ({ratio(row, base):.2f}x)"
                for row, base in zip(own, rows[BASE], strict=True)
            ),
        ]
        for name, own in rows.items()
    ]
    return [head, *lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", type=Path, help="rows of bench/quality.py --json")
    parser.add_argument("--record", action="store_true", help="for minicpm-mlc inspect")
    parser.add_argument("--preset", choices=PRESETS, default="MiniCPM4-0.5B")
    parser.add_argument("--layers", type=int, help="instead of the preset's")
    parser.add_argument("--scheme", action="append", choices=INTEGERS, help="beside w4  [all]")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64, help="0 leaves decode out")
    parser.add_argument("--repeats", type=int, default=7, help="0 measures no speed")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    args.scheme = args.scheme or INTEGERS
    args.work.mkdir(parents=True, exist_ok=True)
    table = markdown_table if args.markdown else plain_table
    kept = json.loads(told.RECORD.read_text(encoding="utf-8")) if told.RECORD.exists() else {}
    if args.quality:
        kept = merged(kept, of_quality(json.loads(args.quality.read_text(encoding="utf-8"))))
    if args.repeats:
        try:
            rows = speeds(args)
        except MiniCPMError as error:
            sys.exit(f"error: {error}")
        kept = merged(kept, of_speeds(rows))
        print(f"{args.preset}, {args.threads} threads of {cpu_name()}")
        print(table(cells(rows)))
    if args.record:
        write_text(told.RECORD, json.dumps(kept, indent=1) + "\n")
    rows = told.scheme_rows(PRESETS["MiniCPM4.1-8B"])
    print(f"\n{table([told.HEAD, *map(told.cells, rows)])}")


if __name__ == "__main__":
    main()
