"""A model's checkpoint with its draft head's beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.model.decoder import HEAD
from minicpm_mlc.compile.model.eagle import DRAFT
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme


@dataclass(frozen=True)
class HeadRows(Checkpoint):
    """A checkpoint whose head is some rows of another's tensor."""

    checkpoint: Checkpoint
    whole: Checkpoint
    name: str
    picked: np.ndarray

    def names(self) -> list[str]:
        return [*(name for name in self.checkpoint.names() if name != HEAD), HEAD]

    def shape(self, name: str) -> tuple[int, ...]:
        return (
            (len(self.picked), *self.whole.shape(self.name)[1:])
            if name == HEAD
            else self.checkpoint.shape(name)
        )

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name != HEAD:
            return self.checkpoint.rows(name, start, stop)
        return np.concatenate(
            [self.whole.rows(self.name, i, i + 1) for i in map(int, self.picked[start:stop])]
        )

    @property
    def bytes(self) -> int:
        return self.checkpoint.bytes


@dataclass(frozen=True)
class BesideCheckpoint(Checkpoint):
    """The base's tensors, and the head's by their prefixed names."""

    base: Checkpoint
    draft: Checkpoint

    def names(self) -> list[str]:
        return [*self.base.names(), *(DRAFT + name for name in self.draft.names())]

    def shape(self, name: str) -> tuple[int, ...]:
        of, own = self._place(name)
        return of.shape(own)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        of, own = self._place(name)
        return of.rows(own, start, stop)

    def carried(self, name: str, scheme: Scheme, start: int, stop: int) -> Parts | None:
        of, own = self._place(name)
        return of.carried(own, scheme, start, stop)

    @property
    def bytes(self) -> int:
        return self.base.bytes + self.draft.bytes

    def _place(self, name: str) -> tuple[Checkpoint, str]:
        return (
            (self.draft, name.removeprefix(DRAFT)) if name.startswith(DRAFT) else (self.base, name)
        )
