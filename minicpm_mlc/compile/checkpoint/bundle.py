"""A bundle as the source of another for some other device: its integers are carried, whatever their
layout, so that nothing is calibrated twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import BundleError, CompileError, ConfigError
from minicpm_mlc.bundle.manifest import REPAIR, Bundle, Manifest, check_files
from minicpm_mlc.bundle.manifest_schema import MANIFEST
from minicpm_mlc.bundle.params import TENSOR_CACHE, load_params, numpy_dtype
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stored_tensors
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv.base import KVFormat
from minicpm_mlc.ops.formats.weights import LANES, SCHEMES
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme

DRAFT_LEFT = "the bundle's draft head is not carried; give its folder again with --draft"


class BundleWeights(Checkpoint):
    """A bundle's weights by their published names, without its draft head's."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError for a bundle that is damaged, or whose weights aren't those of the
        model that its manifest describes. Nothing in it is run.
        """
        self.manifest = Manifest.load(path)
        bundle = Bundle(path.absolute(), self.manifest)
        check_files(bundle, again=False)
        self.config, self.precision, model = _described(bundle)
        self._params = model.parameters()
        self._arrays = dict(zip(self.manifest.params, load_params(bundle), strict=True))
        self._check(bundle)
        self._places: dict[str, tuple[Param, int]] = {}  # the parameter, and the first of its rows
        self._shapes = model.published()
        for param in self._params:
            first = 0
            for source in param.sources:
                self._places[source] = param, first
                first += self._shapes[source][0]

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        start, stop, _ = slice(start, stop).indices(self._shapes[name][0])
        param, _ = self._places[name]
        if not param.columns:
            return self._arrays[f"{param.name}.weight"][start:stop].copy()
        return param.scheme.dequantize(self._parts(name, start, stop))

    def carried(self, name: str, scheme: Scheme, start: int, stop: int) -> Parts | None:
        stored = self._places[name][0].scheme
        same = (stored.name, stored.group) == (scheme.name, scheme.group)
        return self._parts(name, start, stop) if same else None

    @property
    def bytes(self) -> int:
        return self.manifest.memory["weights"]

    def schemes(self) -> tuple[str, str]:
        """Those of the bundle."""
        return self.manifest.scheme, self.manifest.embedding_scheme

    def require(self, scheme: str | None, embedding: str | None) -> None:
        """Raises CompileError where other schemes are asked for: rounding again what was rounded
        loses more than either.
        """
        asked = {"--quant": scheme, "--embedding-quant": embedding}
        for (option, wanted), own in zip(asked.items(), self.schemes(), strict=True):
            if wanted not in (None, own):
                raise CompileError(
                    f"{option} {wanted}: the bundle's are {own}, and are carried; leave {option} "
                    "out, or compile the checkpoint"
                )

    def context(self, asked: int | None) -> int:
        """The longest context, by default the bundle's. Raises CompileError for a longer one."""
        longest = self.manifest.max_context
        if asked is not None and asked > longest:
            raise CompileError(
                f"--context {asked}: the bundle was compiled for {longest} tokens; give no more, "
                "or compile the checkpoint"
            )
        return asked or longest

    def _parts(self, name: str, start: int, stop: int) -> Parts:
        param, first = self._places[name]
        low, high = first + start, first + stop
        blocks = slice(low // LANES, -(-high // LANES))
        tensors = param.scheme.tensors(param.rows, param.columns)
        stored = {t.name: self._arrays[f"{param.name}.{t.name}"][blocks] for t in tensors}
        parts = param.scheme.unpack(stored, (blocks.stop - blocks.start) * LANES)
        skipped = low - blocks.start * LANES
        return {key: part[skipped : skipped + stop - start] for key, part in parts.items()}

    def _check(self, bundle: Bundle) -> None:
        for tensor in (each for param in self._params for each in stored_tensors(param)):
            array = self._arrays.get(tensor.name)
            seen = None if array is None else (array.shape, array.dtype)
            if seen != (tensor.shape, numpy_dtype(tensor.dtype)):
                raise BundleError(
                    f"{bundle.path / TENSOR_CACHE}: tensor {tensor.name} is not {tensor.dtype} "
                    f"{list(tensor.shape)}, as {MANIFEST} says of the model; {REPAIR}"
                )


def _described(bundle: Bundle) -> tuple[ModelConfig, Precision, Decoder]:
    """The model and how it is stored. Raises BundleError for a manifest that makes no sense."""
    manifest = bundle.manifest
    try:
        config = ModelConfig.from_manifest(manifest.model)
        if config.num_layers > len(manifest.params):
            raise ValueError(f"{config.num_layers} layers")
        linear, tables = SCHEMES[manifest.scheme], SCHEMES[manifest.embedding_scheme]
        mixed = {source: SCHEMES[name] for source, name in manifest.mixed.items()}
        kv = KVFormat.of_dtype(manifest.kv_dtype)
        precision = Precision(linear, tables, kv, manifest.activations, mixed)
        return config, precision, build_model(config, precision)
    except (ConfigError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / MANIFEST} is damaged at what it says of the model ({error}); {REPAIR}"
        ) from None
