"""The quick form of verify: a device is tried once with a bundle's kernels before anything it says
is believed.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import cache_file, remember
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, Case, load_cases
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, Bundle
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.protocols import Library

BUDGET = 0.25  # seconds: no case is begun later; a driver may compile a kernel at its first call
LARGEST = 4 << 20  # bytes of a case's arguments


def check_device(engine: Engine) -> None:
    """Try some kernels of an engine's bundle, once per library, device and driver version; nothing
    if it holds no cases.

    Raises BundleError, with the command that tells more, when one computes wrong or doesn't run.
    """
    library = engine.library
    bundle = Bundle(engine.path, engine.manifest)
    cases = bundle.named(KERNEL_CASES)
    if cases not in bundle.manifest.files:
        return
    file = None
    with suppress(RuntimeError):  # no home: tried each time
        file = cache_file("devices", _key(library, bundle, cases))
    if file and file.exists():
        return
    instead = "; the processor's library answers: --device cpu"
    start = time.perf_counter()
    for case in smallest(load_cases(bundle.path, cases)):
        if time.perf_counter() - start >= BUDGET:
            return  # the next engine finds more kernels compiled, and gets further
        result = library.check(case, timed=False)
        if not result.passed:
            raise BundleError(
                f"{library.device_name} computes {result.operator} wrong (NMSE "
                f"{result.nmse:.1e}, limit {result.limit:.0e}), "
                f"so no answer of it can be trusted; see: minicpm-mlc verify {bundle.path}"
                f"{instead if CPU_MANIFEST in bundle.manifest.files else ''}"
            )
    with suppress(OSError):  # only a saving of time
        if file:
            remember(file, json.dumps({"device": library.device_identity}))


def _key(library: Library, bundle: Bundle, cases: str) -> bytes:
    """What distinguishes a device, its driver and a library from others."""
    manifest = bundle.manifest
    files = manifest.files
    parts = [
        library.device_identity,
        manifest.tvm,
        files[manifest.library]["sha256"],
        files[cases]["sha256"],
    ]
    return "\n".join(parts).encode()


def smallest(cases: list[Case]) -> list[Case]:
    """One case of each operator, the least bytes first; none that is large."""
    first = {case.operator: case for case in sorted(cases, key=lambda case: -case.nbytes)}
    return sorted(
        (case for case in first.values() if case.nbytes <= LARGEST), key=lambda case: case.nbytes
    )
