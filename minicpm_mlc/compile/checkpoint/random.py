"""A checkpoint without files: random weights in a model's full shapes, to build and measure without
a download.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from minicpm_mlc.compile.checkpoint.weights import Checkpoint
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.compile.model.registry import published_tensors

_PERIOD = 1_048_573  # prime, so that rows of any width start at different places of the block


class RandomCheckpoint(Checkpoint):
    """Deterministic in `seed`; a row's values don't depend on how the rows are asked for.

    Every tensor is one repeated block of normal numbers, entered at a place that depends on the
    tensor's name and scaled so that activations and logits stay near 1.
    """

    def __init__(self, config: ModelConfig | DraftConfig, seed: int = 0):
        self._config = config
        self._seed = seed
        self._shapes = published_tensors(config)
        self._block = np.random.default_rng(seed).standard_normal(_PERIOD, dtype=np.float32)

    def names(self) -> list[str]:
        """Every tensor, in layer order."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The published shape of a tensor."""
        return self._shapes[name]

    @property
    def bytes(self) -> int:
        """What the same checkpoint would weigh in bf16."""
        return 2 * sum(math.prod(shape) for shape in self._shapes.values())

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 rows [start:stop) of a tensor, as a reader of real files gives them."""
        shape = self._shapes[name]
        start, stop, _ = slice(start, stop).indices(shape[0])
        if len(shape) == 1:
            return np.ones(max(0, stop - start), np.float32)
        width = shape[1]
        flat = np.empty(max(0, stop - start) * width, np.float32)
        place = (zlib.crc32(f"{self._seed} {name}".encode()) + start * width) % _PERIOD
        _fill(flat, self._block, place)
        flat *= self._deviation(name, width)
        return flat.reshape(-1, width)

    def _deviation(self, name: str, inputs: int) -> float:
        if name == EMBEDDING:
            return 1 / self._config.scale_emb
        head = 1 / self._config.logit_scale if name == HEAD else 1.0
        return head / math.sqrt(inputs)


def _fill(target: np.ndarray, block: np.ndarray, place: int) -> None:
    """Copies `block`, repeated without end and entered at `place`, into `target`."""
    done = 0
    while done < target.size:
        piece = block[place : place + target.size - done]
        target[done : done + piece.size] = piece
        done, place = done + piece.size, 0
