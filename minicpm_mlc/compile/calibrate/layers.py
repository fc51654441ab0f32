"""Calibration: the model's layers run over text, one at a time, each linear rounded as it is met.

A linear's input comes from layers that are rounded already, so that it makes up for their errors
too. After each layer what was made, and the residual stream, are written to a folder: memory holds
one layer, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.files import write_text, write_whole
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.compile.calibrate.arrays import ArrayKernels
from minicpm_mlc.compile.calibrate.rounding import Moments, compensated
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import stacked_rows
from minicpm_mlc.compile.kernels import Kernels
from minicpm_mlc.compile.model.decoder import EMBEDDING
from minicpm_mlc.compile.model.layers import Batch, Layer
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.rope_angles import RopeAngles

STATES = "states"
ROWS = 4096  # of inputs at a time
WIDE = 8192  # columns


class Calibrated(Mapping[str, Parts]):
    """Rounded matrices by the names of their parameters, in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Parts:
        path = self._folder / f"{name}.npz"
        if not path.exists():
            raise KeyError(name)
        with np.load(path) as parts:
            return dict(parts)

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self._folder.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Calibration:
    """One run. `folder` keeps its progress; that of another run in it is thrown away."""

    def __init__(
        self,
        config: ModelConfig,
        precision: Precision,
        checkpoint: Checkpoint,
        sequences: list[np.ndarray],
        folder: Path,
    ) -> None:
        """Raises CompileError for a scheme that rounds nothing to integers."""
        if not isinstance(precision.linear, GroupScheme):
            raise CompileError(
                f"--calibrate: {precision.linear.name} weights are not rounded to integers; use "
                "--quant w4, or leave --calibrate out"
            )
        self.config = config
        self.scheme = precision.linear
        self.tables = precision.embedding
        self.checkpoint = checkpoint
        self.folder = folder
        self.tokens = np.concatenate(sequences)
        self.positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in sequences])
        self.kernels = ArrayKernels(self._multiply)
        exact = replace(precision, activations="f32")
        self.model = build_model(config, exact, kernels=cast(Kernels, self.kernels))
        self._names: dict[int, str] = {}  # of the matrices in memory, by their ids
        self._pool: ThreadPoolExecutor

    def run(self, progress: Progress = no_progress) -> Calibrated:
        """All layers that `folder` lacks. `progress` counts layers, as the stage "calibration"."""
        self._open_folder()
        layers = self.model.layers
        done, states = self._resume()
        batch = self._batch()
        with ThreadPoolExecutor(os.cpu_count()) as self._pool:
            for number in range(done, len(layers)):
                progress("calibration", number, len(layers))
                states = self._through(number, layers[number], states, batch)
                received = {"received": self.kernels.received}
                _save(self.folder / STATES, layers=number + 1, states=states, **received)
        progress("calibration", len(layers), len(layers))
        return Calibrated(self.folder)

    def _through(self, number: int, layer: Layer, states: np.ndarray, batch: Batch) -> np.ndarray:
        """Rounds a layer's linears -> the residual stream behind it."""
        weights = list(layer.weights(f"layers.{number}"))
        for name, weight in weights:
            param = weight.param(name)
            array = stacked_rows(param, self.checkpoint, 0, param.rows)
            self._names[id(array)] = name
            weight.__dict__["tensors"] = [array]
        pools: Any = dict.fromkeys(entry.name for entry in self.model.state)
        self._stream = states
        states = cast(Any, layer)(states, pools, batch, [])
        for _, weight in weights:
            del weight.__dict__["tensors"]
        self._names.clear()
        return states

    def _multiply(
        self, linear: Linear, x: np.ndarray, matrix: np.ndarray, residual: np.ndarray | None
    ) -> np.ndarray:
        """Rounds a matrix for its inputs, keeps what was made -> outputs of the rounded one."""
        name = self._names[id(matrix)]
        self.scheme.require_whole_groups(matrix.shape[1], name)
        if residual is not None:
            self._stream = residual + np.float32(linear.scale) * (x @ matrix.T)
        importance = self.importance(before_attention=name.endswith(".qkv"))
        moments = Moments.of(second_moments(x, importance))
        parts, rounded = compensated(matrix, moments, self.scheme, self._pool)
        _save(self.folder / f"{name}.npz", **parts)
        return x @ rounded.T

    def importance(self, *, before_attention: bool) -> np.ndarray:
        """How much an error in a linear's output counts at each token, float32 [n].

        An error counts in proportion to the stream that it is added to. It counts again at every
        later token that attends to this one: an error before attention as it is, since keys and
        values come from the normed stream; one behind it only as far as it moves that.
        """
        own = 1 / np.maximum((self._stream**2).mean(1), 1e-30)
        own /= np.median(own)
        if self.kernels.received is None:  # in the first layer
            return own
        received = self.kernels.received
        return own + received if before_attention else own * (1 + received)

    def _batch(self) -> Batch:
        c = self.config
        angles = RopeAngles(c.head_dim, c.rope_attention_scale)
        cos_sin = angles.define(self.positions, c.inv_freq).astype(np.float32)
        arrays: Any = (self.positions, cos_sin, self.positions, None)
        return Batch(*arrays, decode=False, sparse=False, tree=None)

    def _embedded(self) -> np.ndarray:
        used, places = np.unique(self.tokens, return_inverse=True)
        rows = np.concatenate([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in used.tolist()])
        rows = self.tables.dequantize(self.tables.quantize(rows, EMBEDDING))
        return rows[places] * np.float32(self.config.scale_emb)

    def _open_folder(self) -> None:
        key = self._fingerprint()
        written = self.folder / "key"
        if not written.exists() or written.read_text() != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_text(written, key)

    def _resume(self) -> tuple[int, np.ndarray]:
        """How many layers are done, and the residual stream behind them."""
        if not (self.folder / STATES).exists():
            return 0, self._embedded()
        with np.load(self.folder / STATES) as kept:
            self.kernels.received = kept["received"]
            return int(kept["layers"]), kept["states"]

    def _fingerprint(self) -> str:
        """Differs where the outcome could: model, weights, scheme, text."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict()).encode())
        digest.update(self.scheme.key.encode())
        digest.update(self.tokens.tobytes() + self.positions.tobytes())
        for name in self.checkpoint.names():
            digest.update(self.checkpoint.rows(name, 0, 1).tobytes())
        return digest.hexdigest()


def second_moments(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The mean of x^T x of inputs float32 [n, k], weighted by their importance [n] -> [k, k],
    float64, or float32 where that would take gigabytes.
    """
    shares = (importance / importance.sum())[:, None]
    total = np.zeros((x.shape[1], x.shape[1]), np.float64 if x.shape[1] <= WIDE else np.float32)
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS]
        total += rows.T @ (rows * shares[start : start + ROWS])
    return total


def _save(path: Path, **arrays: Any) -> None:
    """Writes an archive of arrays, whole or not at all."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)
