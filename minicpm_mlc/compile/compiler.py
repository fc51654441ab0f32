"""compile_model: a checkpoint folder or a GGUF file in, a bundle out."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicpm_mlc.base.choices import BUDGET_SCHEME, DEFAULT_SCHEME
from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.base.interrupts import interrupts_told
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.contexts import context_lengths
from minicpm_mlc.bundle.facts import Facts, TensorFact
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, to_bytes
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.manifest_schema import MANIFEST
from minicpm_mlc.bundle.params import DRAFT_IDS
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile.calibrate.asked import TextWork, calibration_offer
from minicpm_mlc.compile.calibrate.layers import Calibration
from minicpm_mlc.compile.checkpoint import (
    Checkpoint,
    RandomCheckpoint,
    Weights,
    open_checkpoint,
)
from minicpm_mlc.compile.checkpoint.adapters import Adapters
from minicpm_mlc.compile.checkpoint.bundle import DRAFT_LEFT, BundleWeights
from minicpm_mlc.compile.checkpoint.files import check_whole_model
from minicpm_mlc.compile.checkpoint.gguf import find_gguf, open_gguf
from minicpm_mlc.compile.checkpoint.mixed import own_schemes
from minicpm_mlc.compile.companions import (
    add_companions,
    check_companions,
    open_companions,
    with_end_tokens,
)
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.convert import Param, convert
from minicpm_mlc.compile.draft import DraftHead, open_draft
from minicpm_mlc.compile.limits import choose_context, choose_prefill_chunk, choose_sparse
from minicpm_mlc.compile.model.registry import (
    build_model,
    read_config_folder,
    read_sparse_file,
    with_context,
)
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.storage import choose_precision, draft_precision
from minicpm_mlc.compile.surroundings import some_home, temporary_files_in
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets import get_target

if TYPE_CHECKING:
    from minicpm_mlc.compile.pipeline import Program  # imports TVM

LIBRARY_BYTES = 16 << 20  # room for the library and the tokenizer


@dataclass(frozen=True)
class CompileResult:
    """What was written (or would be), in bytes and tokens; `notes` are what the bundle can't do,
    `offer` what could still be done for its answers.
    """

    out: str
    written: bool
    weights: int
    memory: list[dict[str, int]]  # {"context", "bytes"}
    notes: list[str]
    offer: str | None = None

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
        notes = [*(f"note: {note}" for note in self.notes), *([self.offer] if self.offer else [])]
        return "\n".join([head, *rows, *notes])


def compile_model(
    source: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    cpu: str | None = None,
    gpu: str | None = None,
    arch: str | None = None,
    scheme: str | None = None,
    embedding_scheme: str | None = None,
    activations: str = "auto",
    kv: str | None = None,
    context: int | None = None,
    prefill_chunk: int | None = None,
    attention: str = "auto",
    sparse_config: str | Path | None = None,
    draft: str | Path | None = None,
    draft_scheme: str | None = None,
    frspec: str | Path | None = None,
    calibrate: Sequence[str | Path] | None = None,
    bits: float | None = None,
    adapters: Sequence[str] = (),
    ternary: int | None = None,
    overwrite: bool = False,
    random_weights: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    say: Callable[[str], object] = lambda note: None,
) -> CompileResult:
    """Compile a checkpoint folder, a GGUF file or a bundle, or with `random_weights` a published
    model's name, into a bundle. What a bundle has quantised is carried.

    Raises MiniCPMError (ConfigError, CheckpointError, CompileError) for anything a user can fix;
    then nothing is written. The same input gives the same bytes. `scheme` is w4a by default, w4k
    with `bits`, and of quantised weights the one that holds most of them as they are.
    `activations` are rounded to int8 where they meet integer weights ("auto", if the processor
    multiplies int8; "int8" insists) or stay exact ("f32"). `kv` is how keys and values are stored:
    f32, f16, bf16 or int8; f16 by default, f32 beside f32 weights. `draft` is an EAGLE head's
    folder or a random one (compile/draft.py), stored in `draft_scheme` or as the model is; `frspec`
    lists the tokens it proposes. `calibrate`: texts to run the model on, so that rounding keeps its
    outputs close (compile/calibrate); none of them means the texts that are shipped, and a run that
    was killed goes on where it was. `bits`: of a linear's weight, on average; what is left of them
    goes to the linears that gain most by a richer scheme. `adapters`: folders of LoRA adapters that
    are merged one after another, each with ":WEIGHT" or without. `ternary` rounds linears to three
    values in groups of so many columns, as BitCPM's training does. `sparse_config`: a JSON file
    with the settings of sparse attention, for a checkpoint that has none. `say` is told at once
    what the bundle will not do; it is in the result too.
    """
    with interrupts_told(), some_home():
        opened = _open(source, random_weights, adapters, ternary, sparse_config)
        for note in opened.notes:
            say(note)
        head = _open_draft(draft, opened.config, frspec)
        context = opened.stored.context(context) if opened.stored else context
        longest, config = _for_context(opened.config, context, attention)
        target = get_target(device, cpu, gpu, arch)
        usual = DEFAULT_SCHEME if bits is None else BUDGET_SCHEME
        schemes = opened.schemes(scheme, embedding_scheme, usual)
        precision = choose_precision(*schemes, activations, kv or opened.kv, target)
        precision = replace(precision, mixed=opened.mixed(precision, scheme))
        carried = opened.carries(precision)
        work = TextWork.asked(opened.files, config, calibrate, bits, carried)
        again = opened.rounded(precision)
        for note in again:
            say(note)
        if work:
            precision = work.spent(config, precision, opened.weights, progress)
        stored = (head.config, draft_precision(precision, draft_scheme)) if head else None
        chunk = choose_prefill_chunk(config, longest, prefill_chunk)
        said = work.said if work else opened.calibration
        compilation = Compilation(config, precision, target, longest, chunk, stored, said)
        suffix = f"-{gpu}" if gpu else ""
        path = Path(out) if out else Path(f"{config.name}-{schemes[0]}-{device}{suffix}")
        result = _result(path, compilation.manifest, opened.notes + again, written=not dry_run)
        result = replace(result, offer=None if carried or work else opened.offer(precision))
        if not dry_run:
            whole = opened.with_head(head)
            calibration = work and work.calibration(compilation, whole, path)
            needed = result.weights + LIBRARY_BYTES
            with BundleWriter(path, need_bytes=needed, overwrite=overwrite) as bundle:
                _write(bundle, compilation, opened, whole, head, calibration, progress)
            if calibration:
                shutil.rmtree(calibration.folder)
        return result


@dataclass(frozen=True)
class _Opened:
    """A model's config, its weights, the small files beside them, and what to say of these."""

    config: ModelConfig
    weights: Checkpoint
    files: SmallFiles
    notes: list[str]

    @property
    def stored(self) -> BundleWeights | None:
        """The weights, if they are a bundle's."""
        return self.weights if isinstance(self.weights, BundleWeights) else None

    def schemes(
        self, scheme: str | None, embedding: str | None, usual: str
    ) -> tuple[str, str | None]:
        """Those of the weights, `usual` for floats, and of embedding and head, of which None is
        what suits the weights.
        """
        if self.stored:
            self.stored.require(scheme, embedding)
        if scheme is not None:
            return scheme, embedding
        linear, tables = self.weights.schemes()
        return linear or usual, embedding or tables

    @property
    def kv(self) -> str | None:
        """How a bundle stores keys and values; None where that is open."""
        return self.stored.precision.kv.name if self.stored else None

    def mixed(self, precision: Precision, asked: str | None) -> Mapping[str, Scheme]:
        """The linears that other schemes suit, unless the user `asked` for one."""
        if self.stored:
            return self.stored.precision.mixed
        if asked or not isinstance(self.weights, Weights):
            return {}
        return own_schemes(self._params(precision), self.weights, precision.linear.name)

    def rounded(self, precision: Precision) -> list[str]:
        """What is lost where the weights are integers already."""
        params = [param for param in self._params(precision) if param.columns]
        return self.weights.notes({name: p.scheme for p in params for name in p.sources})

    def _params(self, precision: Precision) -> list[Param]:
        return build_model(self.config, precision).parameters()

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What a bundle's manifest says of it."""
        return self.stored.manifest.calibration if self.stored else None

    def offer(self, precision: Precision) -> str | None:
        """What calibration could do for weights that are rounded here."""
        if isinstance(self.weights, RandomCheckpoint) or self.config.lightning_layers:
            return None
        return calibration_offer(self._params(precision))

    def carries(self, precision: Precision) -> bool:
        """Whether any weights are stored as the source has them in integers."""
        return any(
            self.weights.carried(source, param.scheme, 0, 1)
            for param in self._params(precision)
            if param.columns
            for source in param.sources
        )

    def with_head(self, head: DraftHead | None) -> Checkpoint:
        """The weights, and those of a draft head beside them."""
        return head.beside(self.weights, self.config.tie_word_embeddings) if head else self.weights


def _for_context(
    config: ModelConfig, context: int | None, attention: str
) -> tuple[int, ModelConfig]:
    """The longest context, and the config for it."""
    longest = choose_context(config, context)
    config = with_context(config, longest)
    return longest, replace(config, sparse=choose_sparse(config, attention, longest))


def _write(
    bundle: BundleWriter,
    compilation: Compilation,
    opened: _Opened,
    weights: Checkpoint,
    head: DraftHead | None,
    calibration: Calibration | None,
    progress: Progress,
) -> None:
    """Everything that is in a bundle. The library is built first: it tells whether it takes what is
    converted, and a machine that can't build it shows before all weights are read.
    """
    program = compilation.program()
    progress("library", 0, 1)
    manifest = replace(compilation.manifest, params=[each.name for each in compilation.tensors])
    _add_library(bundle, program, manifest, compilation.tensors)
    progress("library", 1, 1)
    rounded = calibration.run(progress) if calibration else {}
    convert(compilation.params, weights, bundle, rounded=rounded, progress=progress)
    add_companions(bundle, opened.files, manifest)
    if head:
        bundle.add_file(DRAFT_IDS, _npy(head.token_ids))
    bundle.finish(manifest)


def _open(
    source: str | Path,
    random_weights: bool,
    adapters: Sequence[str],
    ternary: int | None,
    sparse_config: str | Path | None,
) -> _Opened:
    name, folder = str(source), Path(source)
    sparse = None if sparse_config is None else read_sparse_file(Path(sparse_config))
    if random_weights and adapters:
        raise CompileError("--adapter changes a model's weights; leave --random-weights out")
    if (folder / MANIFEST).is_file():
        if adapters or ternary is not None or sparse:
            raise CompileError(
                f"--adapter, --ternary and --sparse-config: {folder} is a bundle, whose weights "
                "and config are carried; compile the checkpoint"
            )
        return _open_bundle(folder)
    if sparse and not folder.exists():
        raise CompileError(f"--sparse-config {sparse_config}: it is for a checkpoint; leave it out")
    if random_weights and name in PRESETS:
        weights = RandomCheckpoint(PRESETS[name], seed=0)
        return _Opened(PRESETS[name], weights, open_companions(None), [])
    if not folder.is_dir() and name in PRESETS:
        raise CheckpointError(
            f"{name} is a published model, not a folder; give its repository, ORG/{name}, or add "
            "--random-weights"
        )
    path = find_gguf(folder)
    gguf = open_gguf(path, sparse) if path else None
    if gguf and ternary is not None:
        raise CompileError(f"--ternary {ternary}: {path} is quantised already; leave it out")
    if gguf is None:
        check_whole_model(folder)
    loras = Adapters.open(adapters)
    base = gguf.config if gguf else read_config_folder(folder, sparse)
    config = loras.config(base)
    files = loras.files(gguf.files if gguf else open_companions(folder), config)
    notes = [*(gguf.notes if gguf else []), *check_companions(files, config)]
    config = with_end_tokens(config, files)
    if random_weights:
        return _Opened(config, RandomCheckpoint(config, seed=0), files, notes)
    weights = gguf.weights if gguf else open_checkpoint(folder, base, ternary)
    return _Opened(config, loras.weights(weights, base), files, notes)


def _open_bundle(folder: Path) -> _Opened:
    weights = BundleWeights(folder)
    files = open_companions(folder)
    left = [DRAFT_LEFT] if weights.manifest.draft else []
    return _Opened(weights.config, weights, files, left + check_companions(files, weights.config))


def _open_draft(
    draft: str | Path | None, config: ModelConfig, frspec: str | Path | None
) -> DraftHead | None:
    if draft is None and frspec is not None:
        raise CompileError(f"--frspec {frspec}: it is for a draft head; give one with --draft PATH")
    return None if draft is None else open_draft(draft, config, frspec)


def _result(path: Path, manifest: Manifest, notes: list[str], *, written: bool) -> CompileResult:
    forecast = [
        {"context": n, "bytes": manifest.memory_need(n)}
        for n in context_lengths(manifest.max_context)
    ]
    return CompileResult(str(path), written, manifest.memory["weights"], forecast, notes)


def _add_library(
    bundle: BundleWriter, program: Program, manifest: Manifest, tensors: list[TensorFact]
) -> None:
    """The library, which tells its bundle from others, and the cases of its kernels."""
    cases = to_bytes(program.cases())
    facts = Facts.of(manifest, tensors, hashlib.sha256(cases).hexdigest())
    prefix = re.sub(r"\W", "_", f"{manifest.name}_{manifest.scheme}_")
    with bundle.scratch() as scratch, temporary_files_in(scratch):
        program.write(scratch, prefix, facts)
        for library in program.target.libraries:
            bundle.add_file(library, scratch / library)
    bundle.add_file(KERNEL_CASES, cases)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
