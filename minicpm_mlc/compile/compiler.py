"""compile_model: a checkpoint folder in, a bundle out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from minicpm_mlc.base.choices import ACTIVATIONS, COMPILED_ATTENTION
from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.base.files import read_json
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import any_of, human_bytes
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, to_bytes
from minicpm_mlc.bundle.manifest import (
    KV_DTYPES,
    PAGE_SIZE,
    WEIGHT_LAYOUTS,
    Manifest,
    context_lengths,
)
from minicpm_mlc.bundle.params import DRAFT_IDS
from minicpm_mlc.compile.checkpoint import Checkpoint, RandomCheckpoint, open_checkpoint
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.convert import Param, convert, stored_bytes
from minicpm_mlc.compile.draft import DraftHead, open_draft
from minicpm_mlc.compile.mlc_chat_config import TOKENIZER_FILES, mlc_chat_config
from minicpm_mlc.compile.parameters import Precision, parameters, pool_bytes_per_token, pool_layout
from minicpm_mlc.compile.quantize import SCHEMES
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.targets import Target, get_target

PREFILL_CHUNK = 512  # tokens: enough to reach the kernels' peak, small enough for the caches
SCORE_BYTES = (
    48 << 20
)  # of a chunk's block scores; with 16 threads' logits of windows beside them, under 64 MiB
LIBRARY_BYTES = 16 << 20  # room for the library and the tokenizer
COPIED = (*TOKENIZER_FILES, "config.json", "generation_config.json", "chat_template.jinja")


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
    proposes.
    """
    config, checkpoint, folder = _open(source, random_weights)
    head = _draft(draft, config, frspec)
    longest = _positive("--context", context, config.max_position_embeddings)
    config = config.with_context(longest)
    config = replace(config, sparse=_sparse(config, attention, longest))
    target = get_target(device, cpu, gpu, arch)
    precision = _precision(scheme, embedding_scheme or scheme, activations, kv, target)
    params = parameters(config, precision)
    manifest = _manifest(config, precision, target, params, longest, prefill_chunk)
    if head:
        stored = _draft_precision(precision, draft_scheme)
        params += head.parameters(stored)
        manifest = _with_draft(manifest, head, stored, params)
        checkpoint = head.beside(checkpoint, config.tie_word_embeddings)
    path = Path(out) if out else Path(f"{config.name}-{scheme}-{device}{f'-{gpu}' if gpu else ''}")
    forecast = [
        {"context": n, "bytes": manifest.memory_need(n)}
        for n in context_lengths(manifest.max_context)
    ]
    result = CompileResult(str(path), not dry_run, manifest.memory["weights"], forecast)
    if dry_run:
        return result
    with BundleWriter(
        path, need_bytes=result.weights + LIBRARY_BYTES, overwrite=overwrite
    ) as bundle:
        names = convert(params, checkpoint, bundle, progress=progress)
        progress("library", 0, 1)
        drafting = (head.config, stored) if head else None
        _add_library(bundle, config, precision, target, manifest, names, drafting)
        progress("library", 1, 1)
        _add_companions(bundle, folder, manifest)
        if head:
            bundle.add_file(DRAFT_IDS, _npy(head.token_ids))
        bundle.finish(replace(manifest, params=names))
    return result


def _open(source: str | Path, random_weights: bool) -> tuple[ModelConfig, Checkpoint, Path | None]:
    """The config, the weights, and the folder with the tokenizer if there is one."""
    folder = Path(source)
    if random_weights and str(source) in PRESETS:
        return PRESETS[str(source)], RandomCheckpoint(PRESETS[str(source)], seed=0), None
    if not folder.is_dir() and str(source) in PRESETS:
        raise CheckpointError(
            f"{source} is a published model, not a folder; download it, or add --random-weights"
        )
    config = ModelConfig.from_folder(folder)
    return (
        config,
        RandomCheckpoint(config, seed=0) if random_weights else open_checkpoint(folder, config),
        folder,
    )


def _draft(
    draft: str | Path | None, config: ModelConfig, frspec: str | Path | None
) -> DraftHead | None:
    if draft is None and frspec is not None:
        raise CompileError(f"--frspec {frspec}: it is for a draft head; give one with --draft PATH")
    return None if draft is None else open_draft(draft, config, frspec)


def _sparse(config: ModelConfig, attention: str, longest: int) -> SparseConfig | None:
    """What to compile in for up to `longest` tokens: "auto" is what the model was trained for,
    "dense" nothing.
    """
    if attention not in COMPILED_ATTENTION:
        raise CompileError(
            f"--attention {attention}: choose {any_of(COMPILED_ATTENTION)}; a chat can force "
            "sparse attention"
        )
    sparse = config.sparse_attention if attention == "auto" else None
    if sparse and (sparse.block_size != PAGE_SIZE or sparse.use_nope):
        seen = f"block_size {sparse.block_size}, use_nope {sparse.use_nope}"
        raise CompileError(
            f"sparse_config has {seen}; 64 and false are implemented; compile with --attention "
            "dense"
        )
    return sparse and sparse.within(longest)


def _precision(
    scheme: str, embedding_scheme: str, activations: str, kv: str | None, target: Target
) -> Precision:
    for name in (scheme, embedding_scheme):
        if name not in SCHEMES:
            raise CompileError(
                f"{name} is not a quantisation scheme; there are {', '.join(SCHEMES)}"
            )
    schemes = (SCHEMES[scheme], SCHEMES[embedding_scheme])
    kv_dtype = _kv_dtype(kv or ("f32" if scheme == "f32" else "f16"))
    return Precision(
        *schemes, kv_dtype, _activations(activations, any(s.kind == "int" for s in schemes), target)
    )


def _kv_dtype(wanted: str) -> str:
    if wanted not in KV_DTYPES:
        raise CompileError(f"--kv {wanted}: choose {', '.join(KV_DTYPES)}")
    return KV_DTYPES[wanted]


def _activations(wanted: str, integer_weights: bool, target: Target) -> str:
    if wanted not in ACTIVATIONS:
        raise CompileError(f"--activations {wanted}: choose {any_of(ACTIVATIONS)}")
    if wanted == "int8" and not integer_weights:
        raise CompileError(
            "--activations int8: the weights are floats; use --quant w4 or w8, or --activations f32"
        )
    if wanted == "int8" and not target.int8_dot:
        raise CompileError(f"--activations int8: {target.no_int8_dot}; use --activations f32")
    return "int8" if wanted != "f32" and integer_weights and target.int8_dot else "f32"


def _manifest(
    config: ModelConfig,
    precision: Precision,
    target: Target,
    params: list[Param],
    longest: int,
    prefill_chunk: int | None,
) -> Manifest:
    c, chunk = config, _prefill_chunk(config, longest, prefill_chunk)
    # the widest moment of a prefill: gate and up, their product, and the residual stream beside
    # them
    activations = 4 * chunk * (3 * c.intermediate_size + 2 * c.hidden_size)
    kv_bytes = pool_bytes_per_token(c, precision.kv_dtype)
    return Manifest(
        name=c.name,
        scheme=precision.linear.name,
        embedding_scheme=precision.embedding.name,
        activations=precision.activations,
        weight_layout=WEIGHT_LAYOUTS[precision.activations],
        target=target.describe(),
        model=c.to_dict(),
        kv_dtype=precision.kv_dtype,
        kv_layout={kind: shape for kind, (shape, _) in pool_layout(c, precision.kv_dtype).items()},
        max_context=longest,
        prefill_chunk=chunk,
        params=[],
        memory={
            "weights": stored_bytes(params),
            "kv_per_token": kv_bytes,
            "activations": activations,
        },
        tvm=version("apache-tvm"),
        library=target.libraries[0],
    )


def _prefill_chunk(config: ModelConfig, longest: int, asked: int | None) -> int:
    """Rows of a prefill call. Sparse ones score every block of `longest` tokens for each KV head,
    in float32.
    """
    if config.sparse is None:
        return _positive("--prefill-chunk", asked, PREFILL_CHUNK)
    row_bytes = 4 * config.num_kv_heads * -(-longest // PAGE_SIZE)
    largest = max(SCORE_BYTES // row_bytes, 1)
    chunk = _positive("--prefill-chunk", asked, min(PREFILL_CHUNK, largest))
    if chunk > largest:
        size = human_bytes(chunk * row_bytes)
        raise CompileError(
            f"--prefill-chunk {chunk}: block scores of so many rows take {size} at {longest} "
            "tokens of context; "
            f"give --prefill-chunk {largest} or less"
        )
    return chunk


def _draft_precision(precision: Precision, scheme: str | None) -> Precision:
    """As the model is stored, or all of it in a scheme of its own; its cache is always as the
    model's.
    """
    if scheme is None:
        return precision
    if scheme not in SCHEMES:
        raise CompileError(
            f"--draft-quant {scheme} is not a quantisation scheme; there are {', '.join(SCHEMES)}"
        )
    return replace(precision, linear=SCHEMES[scheme], embedding=SCHEMES[scheme])


def _with_draft(
    manifest: Manifest, head: DraftHead, stored: Precision, params: list[Param]
) -> Manifest:
    c = head.config
    draft = {
        "kind": c.kind,
        "scheme": stored.linear.name,
        "layers": c.num_layers,
        "features": c.feature_width,
        "feature_layers": list(c.feature_layers),
        "hidden": c.hidden_size,
        "vocab": c.vocab_size,
        "top_k": c.top_k,
        "kv_layout": {kind: shape for kind, (shape, _) in pool_layout(c, stored.kv_dtype).items()},
    }
    memory = {
        "weights": stored_bytes(params),
        "kv_per_token": manifest.memory["kv_per_token"] + pool_bytes_per_token(c, stored.kv_dtype),
        "activations": manifest.memory["activations"]
        + 4 * manifest.prefill_chunk * c.feature_width,
    }
    return replace(manifest, draft=draft, memory=memory)


def _positive(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise CompileError(f"{option} {value}: it must be at least 1")
    return default if value is None else value


def _add_library(
    bundle: BundleWriter,
    config: ModelConfig,
    precision: Precision,
    target: Target,
    manifest: Manifest,
    stored: list[str],
    draft: tuple[DraftConfig, Precision] | None,
) -> None:
    from minicpm_mlc.compile.pipeline import build_library

    with TemporaryDirectory() as scratch:
        prefix = re.sub(r"\W", "_", f"{manifest.name}_{manifest.scheme}_")
        build = (config, precision, target, manifest.prefill_chunk, Path(scratch), prefix, draft)
        expected, cases = build_library(*build)
        if expected != stored:
            raise AssertionError("the model's parameters and compile/parameters.py disagree")
        for library in target.libraries:
            bundle.add_file(library, Path(scratch) / library)
        bundle.add_file(KERNEL_CASES, to_bytes(cases))


def _add_companions(bundle: BundleWriter, folder: Path | None, manifest: Manifest) -> None:
    """Copy the tokenizer, template and generation defaults, and describe the bundle for MLC's
    tools.
    """
    present = (
        {name: folder / name for name in COPIED if (folder / name).is_file()} if folder else {}
    )
    for name, path in present.items():
        bundle.add_file(name, path)
    contents = {
        name: read_json(path, CheckpointError, "download it again")
        for name, path in present.items()
        if name.endswith(".json")
    }
    config, generation = (
        contents.get(name, {}) for name in ("config.json", "generation_config.json")
    )
    tokenizer_files = [name for name in present if name in TOKENIZER_FILES]
    described = mlc_chat_config(
        manifest, config, generation, contents.get("tokenizer.json"), tokenizer_files
    )
    bundle.add_json("mlc-chat-config.json", described)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
