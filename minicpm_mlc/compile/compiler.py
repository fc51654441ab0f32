"""compile_model: a checkpoint folder in, a bundle out."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.contexts import context_lengths
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, to_bytes
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.params import DRAFT_IDS
from minicpm_mlc.compile.calibrate.layers import Calibration
from minicpm_mlc.compile.calibrate.texts import calibration_sequences
from minicpm_mlc.compile.checkpoint import Checkpoint, RandomCheckpoint, open_checkpoint
from minicpm_mlc.compile.companions import add_companions
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.convert import convert
from minicpm_mlc.compile.draft import DraftHead, open_draft
from minicpm_mlc.compile.limits import choose_context, choose_prefill_chunk, choose_sparse
from minicpm_mlc.compile.model.registry import read_config_folder, with_context
from minicpm_mlc.compile.storage import choose_precision, draft_precision
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.targets import get_target

if TYPE_CHECKING:
    from minicpm_mlc.compile.pipeline import Program  # imports TVM

LIBRARY_BYTES = 16 << 20  # room for the library and the tokenizer


@dataclass(frozen=True)
class CompileResult:
    """What was written (or would be), in bytes and tokens."""

    out: str
    written: bool
    weights: int
    memory: list[dict[str, int]]  # {"context", "bytes"}

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    def plain(self) -> str:
        """The same for people, on a few lines."""
        head = (
            f"{'wrote' if self.written else 'would write'} {self.out}: weights "
            f"{human_bytes(self.weights)}"
        )
        rows = [
            f"  {row['context']:>8} tokens of context need {human_bytes(row['bytes'])}"
            for row in self.memory
        ]
        return "\n".join([head, *rows])


def compile_model(
    source: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    cpu: str | None = None,
    gpu: str | None = None,
    arch: str | None = None,
    scheme: str = "w4",
    embedding_scheme: str | None = None,
    activations: str = "auto",
    kv: str | None = None,
    context: int | None = None,
    prefill_chunk: int | None = None,
    attention: str = "auto",
    draft: str | Path | None = None,
    draft_scheme: str | None = None,
    frspec: str | Path | None = None,
    calibrate: Sequence[str | Path] | None = None,
    overwrite: bool = False,
    random_weights: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> CompileResult:
    """Compile a checkpoint folder, or with `random_weights` a published model's name, into a
    bundle.

    Raises MiniCPMError (ConfigError, CheckpointError, CompileError) for anything a user can fix;
    then nothing is written. The same input gives the same bytes. `activations` are rounded to int8
    where they meet w4 or w8 weights ("auto", if the processor multiplies int8; "int8" insists) or
    stay exact ("f32"). `kv` is how keys and values are stored: f32, f16, bf16 or int8; f16 by
    default, f32 beside f32 weights. `draft` is an EAGLE head's folder or a random one
    (compile/draft.py), stored in `draft_scheme` or as the model is; `frspec` lists the tokens it
    proposes. `calibrate`: texts to run the model on, so that rounding keeps its outputs close
    (compile/calibrate); none of them means the texts that are shipped. A run that was killed goes
    on where it was.
    """
    opened = _open(source, random_weights)
    head = _open_draft(draft, opened.config, frspec)
    longest = choose_context(opened.config, context)
    config = with_context(opened.config, longest)
    config = replace(config, sparse=choose_sparse(config, attention, longest))
    target = get_target(device, cpu, gpu, arch)
    precision = choose_precision(scheme, embedding_scheme, activations, kv, target)
    stored = (head.config, draft_precision(precision, draft_scheme)) if head else None
    chunk = choose_prefill_chunk(config, longest, prefill_chunk)
    compilation = Compilation(config, precision, target, longest, chunk, stored)
    path = Path(out) if out else Path(f"{config.name}-{scheme}-{device}{f'-{gpu}' if gpu else ''}")
    result = _result(path, compilation.manifest, written=not dry_run)
    if not dry_run:
        needed = result.weights + LIBRARY_BYTES
        with BundleWriter(path, need_bytes=needed, overwrite=overwrite) as bundle:
            rounded = _calibrated(compilation, opened, calibrate, path, progress)
            _write(bundle, compilation, opened, head, rounded, progress)
        shutil.rmtree(_progress_folder(path), ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Opened:
    """A model's config, its weights, and the folder with its tokenizer if there is one."""

    config: ModelConfig
    weights: Checkpoint
    folder: Path | None

    def with_head(self, head: DraftHead | None) -> Checkpoint:
        """The weights, and those of a draft head beside them."""
        return head.beside(self.weights, self.config.tie_word_embeddings) if head else self.weights


def _write(
    bundle: BundleWriter,
    compilation: Compilation,
    opened: _Opened,
    head: DraftHead | None,
    rounded: Mapping[str, Parts],
    progress: Progress,
) -> None:
    """Everything that is in a bundle. The library is built first, as it tells whether it takes what
    is converted.
    """
    program = compilation.program()
    weights = opened.with_head(head)
    names = convert(compilation.params, weights, bundle, rounded=rounded, progress=progress)
    progress("library", 0, 1)
    _add_library(bundle, program, compilation.manifest)
    progress("library", 1, 1)
    add_companions(bundle, opened.folder, compilation.manifest)
    if head:
        bundle.add_file(DRAFT_IDS, _npy(head.token_ids))
    bundle.finish(replace(compilation.manifest, params=names))


def _calibrated(
    compilation: Compilation,
    opened: _Opened,
    texts: Sequence[str | Path] | None,
    path: Path,
    progress: Progress,
) -> Mapping[str, Parts]:
    """The linears rounded on these texts; nothing without any."""
    if texts is None:
        return {}
    sequences = calibration_sequences(opened.folder, opened.config, [Path(t) for t in texts])
    calibration = Calibration(
        compilation.config,
        compilation.precision,
        opened.weights,
        sequences,
        _progress_folder(path),
    )
    return calibration.run(progress)


def _progress_folder(path: Path) -> Path:
    """What a calibration for this bundle keeps until the bundle is written."""
    return path.absolute().with_name(f".{path.name}.calibration")


def _open(source: str | Path, random_weights: bool) -> _Opened:
    name, folder = str(source), Path(source)
    if random_weights and name in PRESETS:
        return _Opened(PRESETS[name], RandomCheckpoint(PRESETS[name], seed=0), None)
    if not folder.is_dir() and name in PRESETS:
        raise CheckpointError(
            f"{name} is a published model, not a folder; download it, or add --random-weights"
        )
    config = read_config_folder(folder)
    if random_weights:
        return _Opened(config, RandomCheckpoint(config, seed=0), folder)
    return _Opened(config, open_checkpoint(folder, config), folder)


def _open_draft(
    draft: str | Path | None, config: ModelConfig, frspec: str | Path | None
) -> DraftHead | None:
    if draft is None and frspec is not None:
        raise CompileError(f"--frspec {frspec}: it is for a draft head; give one with --draft PATH")
    return None if draft is None else open_draft(draft, config, frspec)


def _result(path: Path, manifest: Manifest, *, written: bool) -> CompileResult:
    forecast = [
        {"context": n, "bytes": manifest.memory_need(n)}
        for n in context_lengths(manifest.max_context)
    ]
    return CompileResult(str(path), written, manifest.memory["weights"], forecast)


def _add_library(bundle: BundleWriter, program: Program, manifest: Manifest) -> None:
    with TemporaryDirectory() as scratch:
        program.write(Path(scratch), re.sub(r"\W", "_", f"{manifest.name}_{manifest.scheme}_"))
        for library in program.target.libraries:
            bundle.add_file(library, Path(scratch) / library)
    bundle.add_file(KERNEL_CASES, to_bytes(program.cases()))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
