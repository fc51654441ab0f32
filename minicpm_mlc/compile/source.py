"""What is compiled, as it is found: a checkpoint folder, a GGUF file, a bundle, or a published
model's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicpm_mlc.base.choices import DEFAULT_SCHEME
from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.bundle.manifest_schema import MANIFEST
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile.calibrate.asked import calibration_offer
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
from minicpm_mlc.compile.companions import check_companions, open_companions, with_end_tokens
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.draft import DraftHead
from minicpm_mlc.compile.limits import choose_context, choose_sparse
from minicpm_mlc.compile.model.registry import (
    build_model,
    read_config_folder,
    read_sparse_file,
    with_context,
)
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.storage import choose_precision
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets import Target


@dataclass(frozen=True)
class Source:
    """A model's config, its weights, the small files beside them, and what to say of these."""

    config: ModelConfig
    weights: Checkpoint
    files: SmallFiles
    notes: list[str]

    @property
    def stored(self) -> BundleWeights | None:
        """The weights, if they are a bundle's."""
        return self.weights if isinstance(self.weights, BundleWeights) else None

    def _schemes(
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

    def precision(
        self,
        scheme: str | None,
        embedding: str | None,
        activations: str,
        kv: str | None,
        target: Target,
        usual: str = DEFAULT_SCHEME,
    ) -> Precision:
        """How to store what the source holds; None takes what suits it, `usual` for floats. Raises
        CompileError.
        """
        kv = kv or (self.stored.precision.kv.name if self.stored else None)
        schemes = self._schemes(scheme, embedding, usual)
        precision = choose_precision(*schemes, activations, kv, target)
        return replace(precision, mixed=self._mixed(precision, scheme))

    def _mixed(self, precision: Precision, asked: str | None) -> Mapping[str, Scheme]:
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

    @property
    def origin(self) -> str | None:
        """Where a bundle's checkpoint was from."""
        return self.stored.manifest.source if self.stored else None

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

    def for_context(self, context: int | None, attention: str) -> tuple[int, ModelConfig]:
        """The longest context, and the config for it; None is what suits the source."""
        longest = choose_context(
            self.config, self.stored.context(context) if self.stored else context
        )
        config = with_context(self.config, longest)
        return longest, replace(config, sparse=choose_sparse(config, attention, longest))

    def with_head(self, head: DraftHead | None) -> Checkpoint:
        """The weights, and those of a draft head beside them."""
        return head.beside(self.weights, self.config.tie_word_embeddings) if head else self.weights


def open_source(
    source: str | Path,
    random_weights: bool,
    adapters: Sequence[str],
    ternary: int | None,
    sparse_config: str | Path | None,
) -> Source:
    """Reads what is small of a folder, a GGUF file, a bundle or a published model's name; weights
    are read later. Raises ConfigError, CheckpointError, CompileError.
    """
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
        return Source(PRESETS[name], weights, open_companions(None), [])
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
        return Source(config, RandomCheckpoint(config, seed=0), files, notes)
    weights = gguf.weights if gguf else open_checkpoint(folder, base, ternary)
    return Source(config, loras.weights(weights, base), files, notes)


def _open_bundle(folder: Path) -> Source:
    weights = BundleWeights(folder)
    files = open_companions(folder)
    left = [DRAFT_LEFT] if weights.manifest.draft else []
    return Source(weights.config, weights, files, left + check_companions(files, weights.config))
