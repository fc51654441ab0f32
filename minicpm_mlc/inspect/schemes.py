"""What each weight scheme would make of a model: its size, and what it costs answers and speed.

Divergence and perplexity are a real model's, and speeds a 0.5B's, as `python bench/schemes.py`
measured and recorded them beside this file; docs/quality.md says on what.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from minicpm_mlc.base.text import human_bytes, plain_table
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stored_bytes
from minicpm_mlc.inspect.forecast import bundle_bytes
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme

RECORD = Path(__file__).with_name("schemes.json")
SIDE = 256  # rows and columns of a matrix whose bits are counted: whole blocks of every scheme

Row = dict[str, Any]
NOTE = """\
bits of a linear's weight; KL to the unquantised model and perplexity of SmolLM2-135M-Instruct on a
licence and a Python source; decode of a 0.5B model relative to w4: docs/quality.md"""
HEAD = ["scheme", "bits", "embedding", "bundle", "KL", "calibrated", "perplexity", "decode"]
TEXTS = {"divergence": ".3f", "calibrated": ".3f", "perplexity": ".1f"}


@cache
def recorded() -> dict[str, Any]:
    """By scheme: "divergence", "calibrated" (the same of calibrated weights) and "perplexity", of
    two texts each, and "decode" and "prefill", tokens/s relative to w4's. What was not measured is
    not there.
    """
    return json.loads(RECORD.read_text(encoding="utf-8"))


def scheme_rows(config: ModelConfig) -> list[Row]:
    """A row for each scheme, the smallest first."""
    rows = [_row(config, name) for name in SCHEMES]
    return sorted(rows, key=lambda row: row["bundle"])


def _row(config: ModelConfig, name: str) -> Row:
    scheme = SCHEMES[name]
    told = {"scheme": name, "bits a weight": bits(scheme), "embedding": scheme.tables or name}
    return told | {"bundle": bundle_bytes(config, name)} | recorded().get(name, {})


def bits(scheme: Scheme) -> float:
    """Bits of a linear's weight, scales and minimums included."""
    return 8 * stored_bytes([Param("", ("",), SIDE, SIDE, scheme)]) / SIDE**2


def as_text(rows: list[Row]) -> str:
    """The rows as a table, with a line that says what its numbers are."""
    return f"{plain_table([HEAD, *map(cells, rows)])}\n{NOTE}"


def cells(row: Row) -> list[str]:
    """One line of the table."""
    texts = [_both(row.get(key), form) for key, form in TEXTS.items()]
    speed = f"{row['decode']:.2f}" if "decode" in row else ""
    bits, size = f"{row['bits a weight']:.3g}", human_bytes(row["bundle"])
    return [row["scheme"], bits, row["embedding"], size, *texts, speed]


def _both(figures: list[float] | None, form: str) -> str:
    return " / ".join(format(figure, form) for figure in figures or ())
