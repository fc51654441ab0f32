"""Tokens/s and memory over context length, both gears, as one SVG or PNG."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.files import write_whole
from minicpm_mlc.base.installed import pip_install
from minicpm_mlc.base.text import any_of
from minicpm_mlc.bench.decode import GEARS, bench_gears
from minicpm_mlc.bench.reports import Reports
from minicpm_mlc.bench.speed_report import SpeedReport
from minicpm_mlc.bundle.manifest import Manifest

FORMS = (".svg", ".png")


class PlotError(MiniCPMError):
    """A plot that can't be drawn or written."""


def bench_both_gears(path: str | Path, picture: str | Path, **options: Any) -> Reports:
    """Benchmark a bundle dense and sparse, in turns, and draw both. `options` are bench_gears'.

    Raises PlotError before anything is measured where nothing could be drawn, BenchError as
    bench_gears does.
    """
    manifest = Manifest.load(path)
    if manifest.dense_len is None:
        raise PlotError(
            f"{path} has no sparse attention, and --plot draws both gears; measure it without "
            "--plot"
        )
    check_picture(Path(picture))
    reports = bench_gears(
        path, GEARS[::-1], f"--plot {shlex.quote(str(picture))}", **options
    )  # the faster one fills the cache
    plot(reports, manifest, picture)
    return Reports(reports)


def plot(reports: dict[str, SpeedReport], manifest: Manifest, path: str | Path) -> None:
    """Draw one line per phase and gear. `reports` are the gears' benchmarks by name. Raises
    PlotError.
    """
    figure = figure_class()(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for axis, phase in zip(axes, ("decode", "prefill"), strict=False):
        for gear, report in reports.items():
            rows = [row for row in report.rows if row.phase == phase]
            axis.plot(
                [row.depth for row in rows],
                [row.tokens_per_second for row in rows],
                marker="o",
                label=gear,
            )
        axis.set(ylabel=f"{phase}, tokens/s", ylim=(0, None))
    depths = sorted({row.depth for report in reports.values() for row in report.rows})
    needs = [manifest.memory_need(max(depth, 1)) for depth in depths]
    unit, size = ("GiB", 2**30) if max(needs) >= 2**30 else ("MiB", 2**20)
    axes[2].plot(
        depths,
        [need / size for need in needs],
        marker="o",
        color="black",
        label=f"{' and '.join(reports)}: one cache, segment means in it",
    )
    axes[2].set(ylabel=f"memory needed, {unit}", xlabel="tokens in the cache", ylim=(0, None))
    for axis in axes:
        axis.legend()
    first = next(iter(reports.values()))
    figure.suptitle(f"{first.name} {first.scheme} on {first.device}, {first.threads} threads")
    write_figure(figure, Path(path))


def check_picture(path: Path) -> None:
    """Before anything is measured. Raises PlotError where nothing could be drawn or written."""
    figure_class()
    _form(path)
    if not path.absolute().parent.is_dir():
        raise PlotError(f"{path} can't be written: its folder is not there; choose another file")


def figure_class() -> Any:
    """matplotlib's Figure. Raises PlotError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError(f"--plot needs matplotlib; try: {pip_install('plot')}") from None
    return Figure


def _form(path: Path) -> str:
    """What kind of file a name asks for. Raises PlotError for one that is not drawn."""
    if path.suffix.lower() not in FORMS:
        raise PlotError(f"--plot {path}: name a file that ends in {any_of(FORMS)}")
    return path.suffix.lower().removeprefix(".")


def write_figure(figure: Any, path: Path) -> None:
    """As the file's name says. Raises PlotError."""
    form = _form(path)
    try:
        write_whole(path, lambda partial: figure.savefig(partial, format=form, dpi=150))
    except OSError as error:
        raise PlotError(f"{path} can't be written: {error.strerror}; choose another file") from None
