"""Tokens/s and memory over context length, both gears, as one SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MiniCPMError
from ..files import write_whole
from ..manifest import Manifest
from .bench import Report, bench_bundle
from .reports import Reports


class PlotError(MiniCPMError):
    """A plot that can't be drawn or written."""


def bench_both_gears(path: str | Path, depths: list[int], svg: str | Path, attention: str, **options: Any) -> Reports:
    """Benchmark a bundle dense and sparse and draw both. `attention` is not used: both gears are forced in turn."""
    reports = {gear: bench_bundle(path, depths, attention=gear, **options) for gear in ("dense", "sparse")}
    plot(reports, Manifest.load(path), svg)
    return Reports(reports)


def plot(reports: dict[str, Report], manifest: Manifest, path: str | Path) -> None:
    """Draw one line per phase and gear. `reports` are the gears' benchmarks by name. Raises PlotError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError("--plot needs matplotlib; try: pip install 'minicpm-mlc[plot]'") from None
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for axis, phase in zip(axes, ("decode", "prefill"), strict=False):
        for gear, report in reports.items():
            rows = [row for row in report.rows if row.phase == phase]
            axis.plot([row.depth for row in rows], [row.tokens_per_second for row in rows], marker="o", label=gear)
        axis.set(ylabel=f"{phase}, tokens/s", ylim=(0, None))
        axis.legend()
    depths = sorted({row.depth for report in reports.values() for row in report.rows})
    axes[2].plot(depths, [manifest.memory_need(max(depth, 1)) / 2**30 for depth in depths], marker="o", color="black")
    axes[2].set(ylabel="memory needed, GiB", xlabel="tokens in the cache", ylim=(0, None))
    first = next(iter(reports.values()))
    figure.suptitle(f"{first.name} {first.scheme} on {first.device}, {first.threads} threads")
    _write(figure, Path(path))


def _write(figure: Any, path: Path) -> None:
    try:
        write_whole(path, lambda partial: figure.savefig(partial, format="svg"))
    except OSError as error:
        raise PlotError(f"{path} can't be written: {error.strerror}; choose another file") from None
