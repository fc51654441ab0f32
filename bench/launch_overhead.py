"""What a launch costs on a GPU runtime: a chain of tiny kernels, each reading what the one before
it wrote.

    python bench/launch_overhead.py --device vulkan
    # and what one decode step hands to the driver
    python bench/launch_overhead.py --device vulkan --bundle build/demo-vulkan

Microseconds per launch, median of the repeats: until the call returns, until the device is done,
and on the device alone where its runtime tells. The library's code around the kernel and the call
from Python are part of the first two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QUESTION = "What is 4827 + 356?"
COUNTERS, PROFILE = "minicpm.vulkan.counters", "minicpm.vulkan.profile"


def tiny_kernel(device: str, folder: Path) -> Callable[[Any], None]:
    """x += 1 for 64 numbers, compiled for the device."""
    import tvm
    from tvm.script import tirx as T

    from minicpm_mlc.ops.gpu.kernel import kernel, workgroups
    from minicpm_mlc.targets import get_target

    def emit(_: Any, x: Any) -> None:
        with workgroups(1, 64) as (_, thread):
            T.buffer_store(x, x[thread] + T.float32(1), [thread])

    target = get_target(device)
    function = kernel("tiny", {"x": ("float32", 64)}, emit).with_attr("global_symbol", "main")
    built = tvm.compile(
        tvm.IRModule({"main": function}), target.tvm_target(), tir_pipeline=target.tir_pipeline()
    )
    target.export(built, str(folder / "tiny.so"))
    return tvm.runtime.load_module(str(folder / "tiny.so"))["main"]


def measure(device: str, launches: int, repeats: int) -> dict[str, float]:
    """Microseconds per launch."""
    import tvm

    place: Any = tvm.device(device, 0)
    if not place.exist:
        raise SystemExit(f"no {device} device was found; see: minicpm-mlc devices")
    with tempfile.TemporaryDirectory() as folder:
        tiny = tiny_kernel(device, Path(folder))
    x = tvm.runtime.tensor(np.zeros(64, np.float32), place)
    returned, done = [], []
    for _ in range(repeats + 1):
        place.sync()
        start = time.perf_counter()
        for _ in range(launches):
            tiny(x)
        returned.append(time.perf_counter() - start)
        place.sync()
        done.append(time.perf_counter() - start)
    assert x.numpy()[0] == launches * (repeats + 1), (
        "every launch reads what the one before it wrote"
    )
    found = {"enqueued": statistics.median(returned[1:]), "done": statistics.median(done[1:])}
    found = {name: seconds * 1e6 / launches for name, seconds in found.items()}
    profile = tvm.get_global_func(PROFILE, allow_missing=True) if device == "vulkan" else None
    if profile:
        profile(0, True)
        for _ in range(launches):
            tiny(x)
        found["on the device"] = statistics.median(time for _, time in profile(0, False)) / 1000
    return found


def decode_step(bundle: Path, tokens: int = 32) -> dict[str, float]:
    """Launches and submissions of one decode step of a Vulkan bundle."""
    import tvm_ffi

    from minicpm_mlc import Engine

    with Engine(bundle, context=512) as engine:
        counters = tvm_ffi.get_global_func(COUNTERS)

        def counted(max_tokens: int) -> tuple[int, dict[str, int]]:
            before = dict(counters(0))
            engine.chat(
                [{"role": "user", "content": QUESTION}],
                max_tokens=max_tokens,
                temperature=0,
                speculate="off",
            )
            return len(engine.cached_tokens), {
                key: value - before[key] for key, value in dict(counters(0)).items()
            }

        counted(1)
        (cached, alone), (cached_after, all_steps) = counted(1), counted(1 + tokens)
    steps = cached_after - cached
    return {key: (all_steps[key] - alone[key]) / steps for key in ("launches", "submissions")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["vulkan", "opencl"], default="vulkan")
    parser.add_argument("--launches", type=int, default=1000, help="of a chain")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--bundle", type=Path, help="a bundle for vulkan")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = {"launch, us": measure(args.device, args.launches, args.repeats)}
    if args.bundle:
        found["decode step"] = decode_step(args.bundle)
    if args.json:
        print(json.dumps(found))
        return
    for title, rows in found.items():
        print(title)
        for name, value in rows.items():
            print(f"  {name:<14} {value:8.1f}")


if __name__ == "__main__":
    main()
