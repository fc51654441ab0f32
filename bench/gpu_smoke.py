"""Does all of this work on that GPU, and how fast: every kernel, a chat, decode and prefill of the
published shapes.

    # where the compiler is
    python bench/gpu_smoke.py make FOLDER --device cuda,vulkan
    # where the GPU is; the runtime is enough
    python bench/gpu_smoke.py run FOLDER

What `make` writes is small: the shapes' weights are random numbers, which `run` makes on the GPU,
as their files would take longer to write, to hash and to copy than everything else. Its report
of all devices goes to standard output as Markdown; the exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from device_weights import random_engine

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bench import tune
from minicpm_mlc.bench.decode import (
    Filler,
    GearSide,
    measure,
    measured_rows,
    memory_reader,
    steps_note,
)
from minicpm_mlc.bench.speed_report import SpeedReport
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.bundle.manifest import MANIFEST, Bundle, Manifest, manifest_sha256
from minicpm_mlc.bundle.trust import allow
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.traffic import bundle_traffic
from minicpm_mlc.runtime_py.verify import verify_bundle
from minicpm_mlc.targets import get_target

DEMO = Path(__file__).parents[1] / "examples" / "demo_model"
DEMO_BUNDLES: dict[str, dict[str, Any]] = {
    "demo-w4": {"scheme": "w4", "draft": DEMO / "MiniCPM4.1-demo-Eagle3"},
    "demo-draft": {
        "scheme": "f32",
        "draft": DEMO / "MiniCPM4.1-demo-Eagle3",
        "prefill_chunk": 256,
    },
    "demo-kv-int8": {"scheme": "f32", "kv": "int8"},
    "demo-exact": {"scheme": "f32"},
}
SUMS = {"demo-exact": 47}  # questions that a bundle is asked beside the others
QUESTIONS = ["What is 4827 + 356?", "What does minicpm-mlc do? /no_think"]
LONG = 700  # tokens of a prompt beyond the demo's dense_len
PEAK, PLAN, CANDIDATES = "peak.so", "smoke.json", "candidates.so"


@dataclass(frozen=True)
class Sizes:
    """The demo bundles to check, the tokens of their answers, and what is timed: models, tokens
    cached, of a prompt and of an answer; the depths at which sparse attention is held against dense
    and parameters are swept.
    """

    demos: tuple[str, ...]
    answer: int
    presets: tuple[str, ...]
    depths: tuple[int, ...]
    prompts: tuple[int, ...]
    new_tokens: int
    repeats: int
    deep: int
    swept: int


SHAPES = {
    "full": Sizes(
        ("demo-w4", "demo-kv-int8", "demo-exact"),
        48,
        ("MiniCPM4-0.5B", "MiniCPM4.1-8B"),
        (0, 1024, 4096),
        (512, 2048),
        64,
        3,
        131072,
        1024,
    ),
    "tiny": Sizes(("demo-draft",), 12, ("tiny",), (0, 64), (16,), 4, 1, 192, 64),
}


def make(folder: Path, devices: list[str], arch: str | None, shapes: str) -> None:
    """A folder for each device. Raises SystemExit when the folder is there already, MiniCPMError
    for an unknown device.
    """
    if folder.exists():
        raise SystemExit(f"{folder} is there already; give another folder, or: rm -r {folder}")
    for device in devices:
        get_target(device)
    for device in devices:
        _make(
            folder / device,
            {"device": device, **({"arch": arch} if arch and device == "cuda" else {})},
            shapes,
        )


def _make(folder: Path, target: dict[str, Any], shapes: str) -> None:
    """Compile the demo, the shapes and the kernels that measure, and ask the CPU what the demo
    answers.
    """
    from minicpm_mlc.compile import compile_model

    folder.mkdir(parents=True)
    device = target["device"]
    plan: dict[str, Any] = {"device": device, "shapes": shapes, "answers": {}}
    checkpoint = DEMO / "MiniCPM4.1-demo"
    for name in SHAPES[shapes].demos:
        options = DEMO_BUNDLES[name]
        compile_model(checkpoint, folder / name, **target, **options)
        with tempfile.TemporaryDirectory() as scratch:
            rounded = "auto" if get_target(**target).int8_dot else "f32"  # as on that GPU
            compile_model(checkpoint, Path(scratch) / "cpu", activations=rounded, **options)
            with Engine(Path(scratch) / "cpu", context=1024) as engine:
                plan["answers"][name] = [
                    (ids, _greedy(engine, ids, "off", SHAPES[shapes].answer))
                    for ids in _prompts(engine, SUMS.get(name, 0))
                ]
    for preset in SHAPES[shapes].presets:
        with tempfile.TemporaryDirectory() as scratch:
            source = _tiny_source(Path(scratch)) if preset == "tiny" else preset
            compile_model(source, folder / preset, **target, random_weights=True)
        for weights in (folder / preset).glob("params_shard_*.bin"):
            weights.unlink()
    _compile_peak(folder / PEAK, target)
    _compile_candidates(folder, SHAPES[shapes].presets[-1])
    (folder / PLAN).write_text(json.dumps(plan))


def _prompts(engine: Engine, sums: int) -> Iterator[list[int]]:
    numbers = np.random.default_rng(0).integers(100, 5000, (sums, 2)).tolist()
    for question in (*QUESTIONS, *(f"What is {a} + {b}?" for a, b in numbers)):
        yield engine.template.prompt(
            engine.tokenizer.raw, [{"role": "user", "content": question}], None
        ).ids
    yield np.random.default_rng(0).integers(4, 1500, LONG).tolist()


def _tiny_source(folder: Path) -> Path:
    from shapes import shape, write_source

    sizes: dict[str, Any] = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256}
    config = replace(
        shape("MiniCPM4-0.5B", layers=1),
        num_heads=4,
        num_kv_heads=2,
        eos_token_ids=(2,),
        **sizes,
    )
    return write_source(config, folder)


def _compile_peak(path: Path, options: dict[str, str]) -> None:
    import tvm

    from minicpm_mlc.ops.gpu.speed_limits import fill, int8_peak, multiply_add_peak

    target = get_target(**options)
    kernels = {"fill": fill(), "multiply_add_peak": multiply_add_peak()}
    if target.int8_dot:
        kernels["int8_peak"] = int8_peak()
    module = tvm.IRModule(
        {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
    )
    target.export(
        tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline()), str(path)
    )


def _compile_candidates(folder: Path, preset: str) -> None:
    """The kernels of a bundle with all the parameters that they have."""
    target = tune.target_of(Manifest.load(folder / preset))
    cases = tune.first_cases(load_cases(folder / preset), target)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.move(tune.export_candidates(target, cases, Path(scratch)), folder / CANDIDATES)


def run(folder: Path) -> Iterator[str]:
    """Lines of the report. Raises SystemExit at its end if something is wrong, at once if `make`
    wrote nothing there.
    """
    wrong, plans = [], sorted(folder.glob(f"*/{PLAN}"))
    if not plans:
        raise SystemExit(
            f"{folder} has no */{PLAN}; make it first: python bench/gpu_smoke.py make {folder}"
        )
    for plan in plans:
        yield f"# {plan.parent.name}\n"
        for made in plan.parent.glob(f"*/{MANIFEST}"):  # on the machine that `make` ran on
            allow(manifest_sha256(made.parent))
        try:
            wrong += yield from _run(plan.parent)
        except MiniCPMError as error:
            yield f"{error}\n"
            wrong.append(f"{plan.parent.name}: {error}")
    if wrong:
        raise SystemExit(f"wrong: {'; '.join(wrong)}")


def _run(folder: Path) -> Generator[str, None, list[str]]:
    """Lines of one device's report; returns what is wrong."""
    plan, wrong = json.loads((folder / PLAN).read_bytes()), []
    sizes = SHAPES[plan["shapes"]]
    for name, answers in plan["answers"].items():
        report = verify_bundle(folder / name)
        wrong += [f"{name}: {operator}" for operator in report.failed]
        yield f"## {name}\n\n```\n{report.plain()}\n```\n"
        for speculate, same in chats(folder / name, answers, sizes.answer):
            yield f"- {len(answers)} answers, speculation {speculate}: {same} the CPU's"
            wrong += [f"{name}: answers, speculation {speculate}"] * (same < len(answers))
    for preset in sizes.presets:
        speed = _speed(folder / preset, tvm_ffi.load_module(folder / PEAK), sizes)
        yield f"\n## {preset}\n\n{speed.markdown()}\n"
    return wrong


def chats(
    path: Path, answers: list[tuple[list[int], list[int]]], most: int
) -> Iterator[tuple[str, int]]:
    """(way of speculation, answers of at most so many tokens that are as expected)."""
    with Engine(path, context=1024) as engine:
        for speculate in ("off", "ngram", *(["eagle"] if engine.manifest.draft else [])):
            yield (
                speculate,
                sum(_greedy(engine, ids, speculate, most) == tokens for ids, tokens in answers),
            )


def _greedy(engine: Engine, ids: list[int], speculate: str, most: int) -> list[int]:
    """The tokens that are cached then: the last one of an answer isn't."""
    engine.generate(ids, max_tokens=most, temperature=0, speculate=speculate)
    return engine.cached_tokens


def _speed(path: Path, library: Any, sizes: Sizes) -> SpeedReport:
    """Prefill and decode with random weights."""
    context = max(sizes.depths) + max(*sizes.prompts, sizes.new_tokens)
    with random_engine(path, context, library) as engine:
        return speeds(engine, ["auto"], sizes, "python bench/gpu_smoke.py run FOLDER")["auto"]


def speeds(
    engine: Engine, gears: list[str], sizes: Sizes, command: str, filler: Filler | None = None
) -> dict[str, SpeedReport]:
    """What is measured of an engine, in each of these gears, beside its device's memory."""
    reader = memory_reader(engine.library)
    assert reader, "the device is this machine's"
    sides = {gear: GearSide(engine, gear, filler) for gear in gears}
    measured = (sizes.depths, sizes.prompts, sizes.new_tokens, sizes.repeats)
    rows = measure(sides, *measured, before_each=lambda: reader.sample())
    about = (engine.manifest.name, engine.manifest.scheme, engine.library.device_identity)
    told = (*about, engine.threads, engine.context, command, reader.best)
    bundle = Bundle(engine.path, engine.manifest)
    traffic = {gear: bundle_traffic(bundle, Gears.of(bundle.manifest, gear)) for gear in gears}
    return {
        gear: SpeedReport(*told, measured_rows(rows[gear], side, traffic[gear]), steps_note(engine))
        for gear, side in sides.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["make", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--device", default="cuda", help="what to compile for; cuda,vulkan for both"
    )
    parser.add_argument("--arch", help="of CUDA: sm_90, ...")
    parser.add_argument("--shapes", choices=SHAPES, default="full")
    arguments = parser.parse_args()
    try:
        if arguments.step == "make":
            return make(
                arguments.folder, arguments.device.split(","), arguments.arch, arguments.shapes
            )
        for line in run(arguments.folder):
            print(line, flush=True)
    except MiniCPMError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
