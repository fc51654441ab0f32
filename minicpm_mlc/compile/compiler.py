"""compile_model: a checkpoint folder in, a bundle out."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, to_bytes
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.params import DRAFT_IDS
from minicpm_mlc.compile.checkpoint import Checkpoint, RandomCheckpoint, open_checkpoint
from minicpm_mlc.compile.companions import add_companions
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.convert import Param, convert, stored_tensors
from minicpm_mlc.compile.draft import DraftHead, open_draft
from minicpm_mlc.compile.limits import choose_context, choose_prefill_chunk, choose_sparse
from minicpm_mlc.compile.make_manifest import make_manifest, with_draft
from minicpm_mlc.compile.model.registry import build_model, read_config_folder, with_context
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.storage import choose_precision, draft_precision
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.inspect.describe import context_lengths, human_bytes
from minicpm_mlc.targets import Target, get_target

if TYPE_CHECKING:
    from minicpm_mlc.compile.pipeline import Program  # imports TVM

Progress = Callable[[str, int, int], None]  # stage, done, total

LIBRARY_BYTES = 16 << 20  # room for the library and the tokenizer


@dataclass(frozen=True)
class CompileResult:
    """What was written (or would be), in bytes and tokens."""

    out: str
    written: bool
    weights: int
    memory: list[dict[str, int]]  # {"context", "bytes"}

    def json(self) -> str:
        return json.dumps(asdict(self))

    def plain(self) -> str:
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
    overwrite: bool = False,
    random_weights: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CompileResult:
    """Compile a checkpoint folder, or with `random_weights` a published model's name, into a
    bundle.

    Raises MiniCPMError (ConfigError, CheckpointError, CompileError) for anything a user can fix;
    then nothing is written. The same input gives the same bytes. `activations` are rounded to int8
    where they meet w4 or w8 weights ("auto", if the processor multiplies int8; "int8" insists) or
    stay exact ("f32"). `kv` is how keys and values are stored: f32, f16, bf16 or int8; f16 by
    default, f32 beside f32 weights. `draft` is an EAGLE head's folder or a random one
    (compile/draft.py), stored in `draft_scheme` or as the model is; `frspec` lists the tokens it
    proposes.
    """
    config, checkpoint, folder = _open(source, random_weights)
    head = _open_draft(draft, config, frspec)
    longest = choose_context(config, context)
    config = with_context(config, longest)
    config = replace(config, sparse=choose_sparse(config, attention, longest))
    target = get_target(device, cpu, gpu, arch)
    precision = choose_precision(scheme, embedding_scheme, activations, kv, target)
    chunk = choose_prefill_chunk(config, longest, prefill_chunk)
    plan = _Plan(config, precision, target, longest, chunk)
    if head:
        plan = replace(plan, draft=(head.config, draft_precision(precision, draft_scheme)))
        checkpoint = head.beside(checkpoint, config.tie_word_embeddings)
    path = Path(out) if out else Path(f"{config.name}-{scheme}-{device}{f'-{gpu}' if gpu else ''}")
    params = plan.params()
    manifest = plan.manifest(params)
    result = _result(path, manifest, written=not dry_run)
    if dry_run:
        return result
    needed = result.weights + LIBRARY_BYTES
    with BundleWriter(path, need_bytes=needed, overwrite=overwrite) as bundle:
        report = progress or (lambda stage, done, total: None)
        program = plan.program(params)
        names = convert(params, checkpoint, bundle, progress=partial(report, "weights"))
        report("library", 0, 1)
        _add_library(bundle, program, manifest)
        report("library", 1, 1)
        add_companions(bundle, folder, manifest)
        if head:
            bundle.add_file(DRAFT_IDS, _npy(head.token_ids))
        bundle.finish(replace(manifest, params=names))
    return result


@dataclass(frozen=True)
class _Plan:
    """What is compiled: a model, with a draft head or without, how it is stored, for which target,
    for up to `longest` tokens of context and `chunk` rows of a prefill.
    """

    config: ModelConfig
    precision: Precision
    target: Target
    longest: int
    chunk: int
    draft: tuple[DraftConfig, Precision] | None = None

    def params(self) -> list[Param]:
        """What is converted, in the library's order."""
        return build_model(self.config, self.precision, self.draft).parameters()

    def manifest(self, params: list[Param]) -> Manifest:
        """The manifest, but for the names of the stored tensors."""
        made = make_manifest(
            self.config, self.precision, self.target, params, self.longest, self.chunk
        )
        return with_draft(made, *self.draft, params) if self.draft else made

    def program(self, params: list[Param]) -> Program:
        """The functions to lower. Raises AssertionError if they take other parameters."""
        from minicpm_mlc.compile.pipeline import build_program

        program = build_program(self.config, self.precision, self.target, self.chunk, self.draft)
        stored = [tensor.name for param in params for tensor in stored_tensors(param)]
        if program.params != stored:
            raise AssertionError("the library takes other parameters than those converted")
        return program


def _open(source: str | Path, random_weights: bool) -> tuple[ModelConfig, Checkpoint, Path | None]:
    """The config, the weights, and the folder with the tokenizer if there is one."""
    folder = Path(source)
    if random_weights and str(source) in PRESETS:
        return PRESETS[str(source)], RandomCheckpoint(PRESETS[str(source)], seed=0), None
    if not folder.is_dir() and str(source) in PRESETS:
        raise CheckpointError(
            f"{source} is a published model, not a folder; download it, or add --random-weights"
        )
    config = read_config_folder(folder)
    return (
        config,
        RandomCheckpoint(config, seed=0) if random_weights else open_checkpoint(folder, config),
        folder,
    )


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
