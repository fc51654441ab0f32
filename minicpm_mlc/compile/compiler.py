"""compile_model: a checkpoint folder or a GGUF file in, a bundle out."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from minicpm_mlc.base.choices import BUDGET_SCHEME, DEFAULT_SCHEME
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.interrupts import interrupts_told
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.bundle.params import DRAFT_IDS
from minicpm_mlc.compile.calibrate.asked import TextWork
from minicpm_mlc.compile.calibrate.layers import Calibration
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.companions import add_companions
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, convert
from minicpm_mlc.compile.draft import DraftHead, open_draft
from minicpm_mlc.compile.libraries import (
    add_library,
    add_second_library,
    needed_bytes,
    processor_beside,
    second_note,
)
from minicpm_mlc.compile.limits import choose_prefill_chunk
from minicpm_mlc.compile.result import CompileResult
from minicpm_mlc.compile.source import Source, open_source
from minicpm_mlc.compile.storage import draft_precision
from minicpm_mlc.compile.surroundings import some_home
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.targets import Target, get_target
from minicpm_mlc.targets.tuning import Tuning


def compile_model(
    source: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    cpu: str | None = None,
    gpu: str | None = None,  # beside an arm64 processor
    with_cpu: bool = False,  # a second library, for the processor beside the GPU
    arch: str | None = None,  # of CUDA: all, or for example sm_87,sm_90
    scheme: str | None = None,  # None: w4a, w4k with `bits`, or what holds most quantised weights
    embedding_scheme: str | None = None,
    activations: str = "auto",  # int8 beside integers if the processor multiplies it; int8; f32
    kv: str | None = None,  # None: f16, or f32 beside f32 weights
    context: int | None = None,  # the longest, in tokens; None: the model's
    prefill_chunk: int | None = None,  # most tokens of a prompt that are computed at a time
    attention: str = "auto",
    sparse_config: str | Path | None = None,  # a JSON file, for a checkpoint that has no settings
    draft: str | Path | None = None,  # an EAGLE head's folder, or a random one (compile/draft.py)
    draft_scheme: str | None = None,  # None: as the model
    frspec: str | Path | None = None,  # lists the tokens that the head proposes
    calibrate: Sequence[str | Path] | None = None,  # texts to round by; none: those shipped
    bits: float | None = None,  # of a linear's weight on average; richer schemes where most gained
    adapters: Sequence[str] = (),  # folders of LoRA adapters, each with ":WEIGHT" or without
    ternary: int | None = None,  # columns of a group that is rounded to three values, as BitCPM's
    tuning: str
    | Path
    | None = None,  # a table of `minicpm-mlc tune`; None: the nearest shipped one
    origin: str | None = None,  # what a hub calls the source, with its commit
    overwrite: bool = False,
    random_weights: bool = False,  # `source` may be a published model's name
    dry_run: bool = False,  # write nothing
    progress: Progress = no_progress,
    say: Callable[[str], object] = lambda note: None,  # told at once what the bundle will not do
) -> CompileResult:
    """Compile a checkpoint folder, a GGUF file or a bundle into the bundle `out`, by default
    NAME-SCHEME-DEVICE. What a bundle has quantised is carried. The same input gives the same bytes.

    Raises MiniCPMError (ConfigError, CheckpointError, CompileError) for anything a user can fix;
    then nothing is written. A calibration that was killed goes on where it was.
    """
    with interrupts_told(), some_home():
        opened = open_source(source, random_weights, adapters, ternary, sparse_config)
        _say_all(opened.notes, say)
        head = _open_head(draft, opened.config, frspec)
        longest, config = opened.for_context(context, attention)
        target = get_target(device, cpu, gpu, arch)
        tuned = _tuning(tuning, target, say)
        usual = DEFAULT_SCHEME if bits is None else BUDGET_SCHEME
        asked = (scheme, embedding_scheme, activations, kv)
        precision = opened.precision(*asked, target, usual)
        carried = opened.carries(precision)
        work = TextWork.asked(opened.files, config, calibrate, bits, carried)
        lost = opened.rounded(precision)
        _say_all(lost, say)
        if work:
            precision = work.spent(config, precision, opened.weights, progress)
        stored = (head.config, draft_precision(precision, draft_scheme)) if head else None
        chunk = choose_prefill_chunk(config, longest, prefill_chunk)
        told = (work.said if work else opened.calibration, origin or opened.origin)
        compilation = Compilation(config, precision, target, longest, chunk, stored, *told, tuned)
        second = None
        if with_cpu:
            host = processor_beside(target, device)
            rounding = opened.precision(*asked, host, usual).activations
            second = compilation.for_processor(host, rounding)
        name = "-".join([config.name, precision.linear.name, device, *([gpu] if gpu else [])])
        path = Path(out or name)
        if not dry_run:
            _write(path, compilation, second, opened, head, work, overwrite, progress)
        offer = None if carried or work else opened.offer(precision)
        notes = [*opened.notes, *lost, *([second_note(compilation, second)] if second else [])]
        return CompileResult.of(path, not dry_run, compilation.manifest, notes, offer)


def _say_all(notes: list[str], say: Callable[[str], object]) -> None:
    for note in notes:
        say(note)


def _tuning(path: str | Path | None, target: Target, say: Callable[[str], object]) -> Tuning | None:
    """The table that was given, or the nearest one, which is told. Raises CompileError for another
    kind of device's.
    """
    if path is None:
        nearest = Tuning.nearest(target)
        if nearest:
            say(
                f"kernels have the parameters measured on {nearest.name}, the nearest device with "
                "a table; for your own: minicpm-mlc tune BUNDLE"
            )
        return nearest
    table = Tuning.read(path)
    if not table.suits(target):
        raise CompileError(
            f"--tuning {path}: measured on {table.device}, and this is compiled for "
            f"{target.device}; give a table of that, or none"
        )
    return table


def _open_head(
    draft: str | Path | None, config: ModelConfig, frspec: str | Path | None
) -> DraftHead | None:
    if draft is None and frspec is not None:
        raise CompileError(f"--frspec {frspec}: it is for a draft head; give one with --draft PATH")
    return None if draft is None else open_draft(draft, config, frspec)


def _write(
    path: Path,
    compilation: Compilation,
    second: Compilation | None,
    opened: Source,
    head: DraftHead | None,
    work: TextWork | None,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Writes the bundle, or nothing. What calibration keeps beside it goes when it is there."""
    weights = opened.with_head(head)
    calibration = work and work.calibration(compilation, weights, path)
    needed = needed_bytes(compilation, second)
    with BundleWriter(path, need_bytes=needed, overwrite=overwrite) as bundle:
        _fill(bundle, compilation, second, opened, weights, head, calibration, progress)
    if calibration:
        shutil.rmtree(calibration.folder)


def _fill(
    bundle: BundleWriter,
    compilation: Compilation,
    second: Compilation | None,
    opened: Source,
    weights: Checkpoint,
    head: DraftHead | None,
    calibration: Calibration | None,
    progress: Progress,
) -> None:
    """Everything that is in a bundle. The library is built first: it tells whether it takes what is
    converted, and a machine that can't build it shows before all weights are read.
    """
    manifest = add_library(bundle, compilation, progress)
    rounded = calibration.run(progress) if calibration else {}

    def convert_all(params: Sequence[Param]) -> None:
        convert(params, weights, bundle, rounded=rounded, progress=progress)

    convert_all(compilation.params)
    add_companions(bundle, opened.files, manifest)
    if head:
        bundle.add_file(DRAFT_IDS, _npy(head.token_ids))
    if second:
        add_second_library(bundle, compilation, second, convert_all, progress)
    bundle.finish(manifest)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
