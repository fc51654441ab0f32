"""compile_model: a checkpoint folder in, a bundle out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..describe import context_lengths, human_bytes
from ..errors import CheckpointError, CompileError
from ..manifest import PAGE_SIZE, WEIGHT_LAYOUTS, Manifest
from ..targets import get_target
from ..targets.cpu import CpuTarget
from .bundle import BundleWriter
from .checkpoint import Checkpoint, RandomCheckpoint, open_checkpoint
from .config import ModelConfig, SparseConfig
from .convert import Param, convert, stored_bytes
from .mlc_chat_config import TOKENIZER_FILES, mlc_chat_config
from .parameters import Precision, parameters, pool_bytes_per_token, pool_layout
from .presets import PRESETS
from .quantize import SCHEMES

Progress = Callable[[str, int, int], None]  # stage, done, total

PREFILL_CHUNK = 512  # tokens: enough to reach the kernels' peak, small enough for the caches
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
        head = f"{'wrote' if self.written else 'would write'} {self.out}: weights {human_bytes(self.weights)}"
        rows = [f"  {row['context']:>8} tokens of context need {human_bytes(row['bytes'])}" for row in self.memory]
        return "\n".join([head, *rows])


def compile_model(
    source: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    cpu: str = "native",
    scheme: str = "w4",
    embedding_scheme: str | None = None,
    activations: str = "auto",
    context: int | None = None,
    prefill_chunk: int | None = None,
    attention: str = "auto",
    overwrite: bool = False,
    random_weights: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CompileResult:
    """Compile a checkpoint folder, or with `random_weights` a published model's name, into a bundle.

    Raises MiniCPMError (ConfigError, CheckpointError, CompileError) for anything a user can mend; then nothing is
    written. The same input gives the same bytes. `activations` are rounded to int8 where they meet w4 or w8 weights
    ("auto", if the processor multiplies int8; "int8" insists) or stay exact ("f32").
    """
    report = progress or (lambda stage, done, total: None)
    config, checkpoint, folder = _open(source, random_weights)
    config = config.with_context(_positive("--context", context, config.max_position_embeddings))
    config = replace(config, sparse=_sparse(config, attention))
    target = get_target(device, cpu)
    precision = _precision(scheme, embedding_scheme or scheme, activations, target)
    params = parameters(config, precision)
    manifest = _manifest(config, precision, target, params, context, prefill_chunk)
    path = Path(out) if out else Path(f"{config.name}-{scheme}-{device}")
    forecast = [{"context": n, "bytes": manifest.memory_need(n)} for n in context_lengths(manifest.max_context)]
    result = CompileResult(str(path), not dry_run, manifest.memory["weights"], forecast)
    if dry_run:
        return result
    with BundleWriter(path, need_bytes=result.weights + LIBRARY_BYTES, overwrite=overwrite) as bundle:
        names = convert(params, checkpoint, bundle, progress=lambda done, total: report("weights", done, total))
        report("library", 0, 1)
        _add_library(bundle, config, precision, target, manifest, names)
        report("library", 1, 1)
        _add_companions(bundle, folder, manifest)
        bundle.finish(replace(manifest, params=names))
    return result


def _open(source: str | Path, random_weights: bool) -> tuple[ModelConfig, Checkpoint, Path | None]:
    """The config, the weights, and the folder with the tokenizer if there is one."""
    folder = Path(source)
    if random_weights and str(source) in PRESETS:
        return PRESETS[str(source)], RandomCheckpoint(PRESETS[str(source)], seed=0), None
    if not folder.is_dir() and str(source) in PRESETS:
        raise CheckpointError(f"{source} is a published model, not a folder; download it, or add --random-weights")
    config = ModelConfig.from_folder(folder)
    return config, RandomCheckpoint(config, seed=0) if random_weights else open_checkpoint(folder, config), folder


def _sparse(config: ModelConfig, attention: str) -> SparseConfig | None:
    """What to compile in: "auto" is what the model was trained for, "dense" nothing."""
    if attention not in ("auto", "dense"):
        raise CompileError(f"--attention {attention}: choose auto or dense; a chat can force sparse attention")
    sparse = config.sparse_attention if attention == "auto" else None
    if sparse and (sparse.block_size != PAGE_SIZE or sparse.use_nope):
        seen = f"block_size {sparse.block_size}, use_nope {sparse.use_nope}"
        raise CompileError(f"sparse_config has {seen}; 64 and false are implemented; compile with --attention dense")
    return sparse


def _precision(scheme: str, embedding_scheme: str, activations: str, target: CpuTarget) -> Precision:
    for name in (scheme, embedding_scheme):
        if name not in SCHEMES:
            raise CompileError(f"{name} is not a quantisation scheme; there are {', '.join(SCHEMES)}")
    schemes = (SCHEMES[scheme], SCHEMES[embedding_scheme])
    kv_dtype = "float32" if scheme == "f32" else "float16"
    return Precision(*schemes, kv_dtype, _activations(activations, any(s.kind == "int" for s in schemes), target))


def _activations(wanted: str, integer_weights: bool, target: CpuTarget) -> str:
    if wanted not in ("auto", "int8", "f32"):
        raise CompileError(f"--activations {wanted}: choose auto, int8 or f32")
    if wanted == "int8" and not integer_weights:
        raise CompileError("--activations int8: the weights are floats; use --quant w4 or w8, or --activations f32")
    if wanted == "int8" and not target.int8_dot:
        raise CompileError(f"--activations int8: {target.cpu} has no int8 dot products; use --activations f32")
    return "int8" if wanted != "f32" and integer_weights and target.int8_dot else "f32"


def _manifest(
    config: ModelConfig,
    precision: Precision,
    target: CpuTarget,
    params: list[Param],
    context: int | None,
    prefill_chunk: int | None,
) -> Manifest:
    c, chunk = config, _positive("--prefill-chunk", prefill_chunk, PREFILL_CHUNK)
    longest = _positive("--context", context, c.max_position_embeddings)
    # the widest moment of a prefill: gate and up, their product, and the residual stream beside them
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
        memory={"weights": stored_bytes(params), "kv_per_token": kv_bytes, "activations": activations},
        tvm=version("apache-tvm"),
    )


def _positive(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise CompileError(f"{option} {value}: it must be at least 1")
    return default if value is None else value


def _add_library(
    bundle: BundleWriter,
    config: ModelConfig,
    precision: Precision,
    target: CpuTarget,
    manifest: Manifest,
    stored: list[str],
) -> None:
    from .pipeline import build_library  # loads TVM's compiler: bad input was refused before that

    with TemporaryDirectory() as scratch:
        library = Path(scratch) / manifest.library
        expected = build_library(config, precision, target, manifest.prefill_chunk, library)
        if expected != stored:
            raise AssertionError("the model's parameters and compile/parameters.py disagree")
        bundle.add_file(manifest.library, library)


def _add_companions(bundle: BundleWriter, folder: Path | None, manifest: Manifest) -> None:
    """Copy the tokenizer, template and generation defaults, and describe the bundle for MLC's tools."""
    present = {name: folder / name for name in COPIED if (folder / name).is_file()} if folder else {}
    for name, path in present.items():
        bundle.add_file(name, path)
    contents = {name: _read_json(path) for name, path in present.items() if name.endswith(".json")}
    config, generation = (contents.get(name, {}) for name in ("config.json", "generation_config.json"))
    tokenizer_files = [name for name in present if name in TOKENIZER_FILES]
    described = mlc_chat_config(manifest, config, generation, contents.get("tokenizer.json"), tokenizer_files)
    bundle.add_json("mlc-chat-config.json", described)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again") from None
