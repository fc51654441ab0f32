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
from pathlib import Path
from typing import Any, cast

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.files import write_text, write_whole
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.compile.calibrate.rounding import Moments, compensated
from minicpm_mlc.compile.calibrate.text_run import TextRun
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.model.eagle import Eagle
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.linear import Linear

STATES = "states"
ENTERING = "entering-"  # and the layer's number
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


class Calibration(TextRun):
    """One run. `folder` keeps its progress; that of another run in it is thrown away."""

    def __init__(
        self,
        config: ModelConfig,
        precision: Precision,
        checkpoint: Checkpoint,
        sequences: list[np.ndarray],
        folder: Path,
        draft: tuple[DraftConfig, Precision] | None = None,
    ) -> None:
        """Raises CompileError for a scheme that rounds nothing to integers."""
        require_integers(precision.linear, "--calibrate")
        super().__init__(config, precision, checkpoint, sequences, draft)
        self.folder = folder
        self._pool: ThreadPoolExecutor

    def run(self, progress: Progress = no_progress) -> Calibrated:
        """All layers that `folder` lacks. `progress` counts layers, as the stage "calibration"."""
        self._open_folder()
        layers = self.model.layers
        done, states = self._resume()
        batch = self.batch()
        with ThreadPoolExecutor(os.cpu_count()) as self._pool:
            for number in range(done, len(layers)):
                progress("calibration", number, len(layers))
                self._keep_for_draft(number, states)
                states = self.through(number, layers[number], states, batch)
                received = {"received": self.kernels.received}
                _save(self.folder / STATES, layers=number + 1, states=states, **received)
            if self.model.draft:
                self._round_draft(self.model.draft, states)
        progress("calibration", len(layers), len(layers))
        return Calibrated(self.folder)

    def multiply(
        self, param: Param, linear: Linear, x: np.ndarray, matrix: np.ndarray
    ) -> np.ndarray:
        """Rounds a matrix for its inputs, keeps what was made -> outputs of the rounded one."""
        scheme = param.scheme
        if not isinstance(scheme, GroupScheme):
            return x @ matrix.T
        scheme.require_whole_groups(matrix.shape[1], param.name)
        importance = self.importance(before_attention=param.name.endswith(".qkv"))
        moments = Moments.of(second_moments(x, importance))
        parts, rounded = compensated(matrix, moments, scheme, self._pool)
        _save(self.folder / f"{param.name}.npz", **parts)
        return x @ rounded.T

    def _keep_for_draft(self, number: int, states: np.ndarray) -> None:
        """Keeps the stream before a layer, if the draft head reads it."""
        if self.model.draft and number in self.model.draft.config.feature_layers:
            _save(self.folder / f"{ENTERING}{number}", states=states)

    def _round_draft(self, draft: Eagle, last: np.ndarray) -> None:
        """Rounds a draft head's linears on what the rounded model hands to it: at each token but a
        sequence's last one the features, and the token that follows.
        """
        entering: dict[int, np.ndarray] = {-1: last}
        for number in draft.config.feature_layers:
            with np.load(self.folder / f"{ENTERING}{number}") as kept:
                entering[number] = kept["states"]
        with self.loaded("norm", self.model.norm):
            features: Any = draft.features(cast(Any, entering), self.model.norm)[0]
        rows = np.flatnonzero(self.positions[1:])
        batch = self.batch(self.positions[rows])
        self.stream, self.kernels.received = np.ones((len(rows), 1), np.float32), None
        pools: Any = dict.fromkeys(entry.name for entry in draft.state)
        embedded: Any = self.embedded(self.tokens[rows + 1])
        with self.loaded("draft", draft, leave="draft.head"):
            draft(embedded, draft.entering(features[rows]), pools, batch)

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
            return 0, self.embedded()
        with np.load(self.folder / STATES) as kept:
            self.kernels.received = kept["received"]
            return int(kept["layers"]), kept["states"]

    def _fingerprint(self) -> str:
        """Differs where the outcome could: model, weights, schemes, text."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict()).encode())
        for param in self.model.parameters():
            digest.update(f"{param.name} {param.scheme.key}\n".encode())
        digest.update(self.tokens.tobytes() + self.positions.tobytes())
        for name in self.checkpoint.names():
            digest.update(self.checkpoint.rows(name, 0, 1).tobytes())
        return digest.hexdigest()


def require_integers(scheme: Scheme, option: str) -> GroupScheme:
    """The scheme. Raises CompileError, beginning with the option, for one that rounds nothing to
    integers.
    """
    if not isinstance(scheme, GroupScheme):
        raise CompileError(
            f"{option}: {scheme.name} weights are not rounded to integers; use --quant w4a, or "
            f"leave {option} out"
        )
    return scheme


def second_moments(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The mean of x^T x of inputs float32 [n, k], weighted by their importance [n] -> [k, k],
    float64, or float32 where that would take gigabytes.
    """
    roots = np.sqrt(importance / importance.sum(), dtype=np.float32)[:, None]
    total = np.zeros((x.shape[1], x.shape[1]), np.float64 if x.shape[1] <= WIDE else np.float32)
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS] * roots[start : start + ROWS]
        total += rows.T @ rows  # BLAS computes one triangle
    return total


def _save(path: Path, **arrays: Any) -> None:
    """Writes an archive of arrays, whole or not at all."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)
