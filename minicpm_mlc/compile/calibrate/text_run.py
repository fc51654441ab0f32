"""A model's layers over text, on arrays: one layer's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np

from minicpm_mlc.compile.calibrate.arrays import ArrayKernels
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stacked_rows
from minicpm_mlc.compile.kernels import Kernels
from minicpm_mlc.compile.model.decoder import EMBEDDING
from minicpm_mlc.compile.model.layers import Batch, Layer
from minicpm_mlc.compile.model.parts import Part
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.rope_angles import RopeAngles


class TextRun:
    """The layers of a model over sequences of tokens. `multiply` is what a linear does: here it is
    exact; other runs override it.

    Rows are the tokens of all sequences. The embedding is as it is stored; all else is exact.
    """

    def __init__(
        self,
        config: ModelConfig,
        precision: Precision,
        checkpoint: Checkpoint,
        sequences: list[np.ndarray],
        draft: tuple[DraftConfig, Precision] | None = None,
    ) -> None:
        """`draft`: a draft head whose tensors are in the checkpoint too, and how it is stored."""
        self.config = config
        self.precision = precision
        self.checkpoint = checkpoint
        self.tokens = np.concatenate(sequences)
        self.positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in sequences])
        self.kernels = ArrayKernels(self._multiplied)
        exact = replace(precision, activations="f32")
        head = (draft[0], replace(draft[1], activations="f32")) if draft else None
        self.model = build_model(config, exact, head, cast(Kernels, self.kernels))
        self.stream = np.empty((0, 0), np.float32)  # what the linear at hand is added to
        self._params: dict[int, tuple[Param, np.ndarray]] = {}  # in memory, by the arrays' ids

    def multiply(
        self, param: Param, linear: Linear, x: np.ndarray, matrix: np.ndarray
    ) -> np.ndarray:
        """x [n, columns] @ matrix^T [columns, rows]."""
        return x @ matrix.T

    def through(self, number: int, layer: Layer, states: np.ndarray, batch: Batch) -> np.ndarray:
        """The residual stream [n, hidden] before a layer -> behind it."""
        with self.loaded(f"layers.{number}", layer):
            return self.layer(layer, states, batch)

    def layer(self, layer: Layer, states: np.ndarray, batch: Batch) -> np.ndarray:
        """The same of a layer whose weights are loaded."""
        pools: Any = dict.fromkeys(entry.name for entry in self.model.state)
        self.stream = states
        return cast(Any, layer)(states, pools, batch, [])

    @contextmanager
    def loaded(self, path: str, part: Part, leave: str = "") -> Iterator[None]:
        """While a part's weights are in memory, but for the one of the name `leave`. `path`: the
        part's name in the model.
        """
        weights = [pair for pair in part.weights(path) if pair[0] != leave]
        for name, weight in weights:
            param = weight.param(name)
            array = stacked_rows(param, self.checkpoint, 0, param.rows)
            self._params[id(array)] = param, array
            weight.__dict__["tensors"] = [array]
        try:
            yield
        finally:
            for _, weight in weights:
                del weight.__dict__["tensors"]
            self._params.clear()

    def matrices(self) -> list[tuple[Param, np.ndarray]]:
        """The linears of the loaded layer, float32 [rows, columns]."""
        return [(param, array) for param, array in self._params.values() if param.columns]

    def importance(self, *, before_attention: bool) -> np.ndarray:
        """How much an error in a linear's output counts at each token, float32 [n].

        An error counts in proportion to the stream that it is added to. It counts again at every
        later token that attends to this one: an error before attention as it is, since keys and
        values come from the normed stream; one behind it only as far as it moves that.
        """
        own = 1 / np.maximum((self.stream**2).mean(1), 1e-30)
        own /= np.median(own)
        if self.kernels.received is None:  # in the first layer
            return own
        received = self.kernels.received
        return own + received if before_attention else own * (1 + received)

    def batch(self, positions: np.ndarray | None = None) -> Batch:
        """What all layers share, of rows at the text's positions or at others."""
        c, at = self.config, self.positions if positions is None else positions
        angles = RopeAngles(c.head_dim, c.rope_attention_scale)
        cos_sin = angles.define(at, c.inv_freq).astype(np.float32)
        arrays: Any = (at, cos_sin, at, None)
        return Batch(*arrays, decode=False, sparse=False, tree=None)

    def embedded(self, tokens: np.ndarray | None = None) -> np.ndarray:
        """The residual stream before the first layer, float32 [n, hidden], of the text's tokens or
        of others.
        """
        tables = self.precision.embedding
        used, places = np.unique(self.tokens if tokens is None else tokens, return_inverse=True)
        rows = np.concatenate([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in used.tolist()])
        rows = tables.dequantize(tables.quantize(rows, EMBEDDING))
        return rows[places] * np.float32(self.config.scale_emb)

    def _multiplied(
        self, linear: Linear, x: np.ndarray, matrix: np.ndarray, residual: np.ndarray | None
    ) -> np.ndarray:
        param, _ = self._params[id(matrix)]
        if residual is not None:
            self.stream = residual + np.float32(linear.scale) * (x @ matrix.T)
        return self.multiply(param, linear, x, matrix)
