"""This machine's limits, measured once and remembered: some seconds of reading and multiplying."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict

from minicpm_mlc.base.files import cache_file, remember
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.tvm_runtime import tvm_version
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores

SAMPLES = 9


def machine_limits(again: bool = False) -> Limits:
    """Those of all physical cores that a program may count on; measured now if `again`, or if they
    weren't before.
    """
    threads = physical_cores()
    key = json.dumps([cpu_name(), threads, tvm_version()])
    with suppress(OSError, ValueError, TypeError, RuntimeError):
        if not again:
            return Limits(**json.loads(cache_file("limits", key.encode()).read_text()))
    from minicpm_mlc.bench.limits import UsualLimits  # imports TVM

    usual = UsualLimits(threads)
    for _ in range(SAMPLES):
        usual.sample()
    limits = usual.limits()
    with suppress(OSError, RuntimeError):
        remember(cache_file("limits", key.encode()), json.dumps(asdict(limits)))
    return limits
