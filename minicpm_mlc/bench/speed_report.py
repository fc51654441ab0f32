"""The table of prefill and decode speeds."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field

from minicpm_mlc.base.text import markdown_table, plain_table

PARTS = ("kernels", "launches", "host")  # of a decode step: see runtime_py/spent.py


@dataclass(frozen=True)
class SpeedRow:
    """One line of the table: the median of `samples` (tokens/s). `gb_per_second` and `parts` are of
    decode only.

    `attention` is the gear that ran, both where it shifted on the way; `parts`: shares of the
    time, by PARTS.
    """

    phase: str
    depth: int
    tokens: int
    samples: tuple[float, ...]
    gb_per_second: float | None = None
    attention: str = ""
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class SpeedReport:
    """A benchmark and everything needed to repeat it. `bandwidth` is the memory's, in bytes per
    second; None where it is another machine's. `note`: how a GPU's steps are launched.
    """

    name: str
    scheme: str
    device: str
    threads: int
    context: int
    command: str
    bandwidth: float | None
    rows: list[SpeedRow] = field(default_factory=list)
    note: str | None = None

    def head(self) -> str:
        """Two lines: what was measured, and the command."""
        parts = [
            f"{self.name} {self.scheme} on {self.device}",
            f"{self.threads} threads",
            f"context {self.context}",
        ]
        parts += [f"memory reads {self.bandwidth / 1e9:.1f} GB/s"] if self.bandwidth else []
        parts += [self.note] if self.note else []
        return f"{', '.join(parts)}\n{self.command}"

    def cells(self) -> list[list[str]]:
        """The table, its heading first."""
        head = [
            "phase",
            "attention",
            "depth",
            "tokens",
            "tokens/s",
            "lowest",
            "highest",
            "GB/s",
            "of memory",
            *self._parts,
        ]
        return [head, *map(self._line, self.rows)]

    def _line(self, row: SpeedRow) -> list[str]:
        speeds = [
            f"{speed:.1f}" for speed in (row.tokens_per_second, min(row.samples), max(row.samples))
        ]
        return [
            row.phase,
            row.attention,
            f"{row.depth}",
            f"{row.tokens}",
            *speeds,
            *bandwidth_cells(row, self.bandwidth),
            *(f"{row.parts[part]:.0%}" if row.parts else "" for part in self._parts),
        ]

    @property
    def _parts(self) -> list[str]:
        """The parts that its rows tell of."""
        return [part for part in PARTS if any(part in row.parts for row in self.rows)]

    def plain(self) -> str:
        """For a terminal."""
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        """As a Markdown table."""
        title, command = self.head().splitlines()
        return f"{title}\n\n`{command}`\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        """One JSON object, each row with its median."""
        rows = [asdict(row) | {"tokens_per_second": row.tokens_per_second} for row in self.rows]
        return json.dumps(asdict(self) | {"rows": rows}, indent=2)


def bandwidth_cells(row: SpeedRow, bandwidth: float | None) -> list[str]:
    """GB/s and its share of the memory's `bandwidth` (bytes/s), if known; empty for prefill, which
    arithmetic bounds.
    """
    if row.gb_per_second is None:
        return ["", ""]
    return [
        f"{row.gb_per_second:.1f}",
        f"{row.gb_per_second * 1e9 / bandwidth:.0%}" if bandwidth else "",
    ]
