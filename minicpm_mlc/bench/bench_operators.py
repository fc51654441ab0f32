"""Where the time of one decode step of a bundle goes, held against limits measured in the same
run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minicpm_mlc.bench.decode import READS, need_depths, need_positive, need_room
from minicpm_mlc.bench.limits import measure_limits, memory_reader
from minicpm_mlc.bench.operators import OperatorReport, decode_operators
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.reports import Reports
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores

ROOM = 64  # tokens of context beside the depth


def bench_operators(
    path: str | Path,
    depths: Sequence[int] = (0, 1024),
    repeats: int = 3,
    threads: int | None = None,
    attention: str = "auto",
) -> Reports:
    """One operator table for each depth (tokens in the cache, random ones), by name. `threads` None
    means the physical cores.

    Raises BenchError for impossible counts and depths and for too deep ones, BundleError for the
    bundle.
    """
    threads = physical_cores() if threads is None else threads
    need_positive(repeats=repeats, threads=threads)
    need_depths(depths)
    context = max(depths) + ROOM
    need_room(Manifest.load(path), depths, context)
    reader = memory_reader(threads)
    limits = measure_limits(threads, reader)
    reports = {}
    with Engine(path, context=context, threads=threads, attention=attention) as engine:
        for depth in depths:
            fill_cache(engine, depth)
            seconds, rows = decode_operators(engine, repeats)
            reader.sample(READS)
            limits = replace(limits, bandwidth=reader.best)
            gear = "sparse" if engine.gears.sparse(depth + 1) else "dense"
            command = (
                f"minicpm-mlc bench {shlex.quote(str(path))} --operators --depth {depth} "
                f"--repeats {repeats} "
                f"--threads {threads} --attention {attention}"
            )
            name = f"{engine.manifest.name} {engine.manifest.scheme}"
            reports[f"depth {depth}"] = OperatorReport(
                name, cpu_name(), depth, gear, seconds, limits, command, rows
            )
    return Reports(reports)
