"""The adapters that a base is compiled with, one after another."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.bundle.small_files import (
    CHAT_TEMPLATE,
    CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    SmallFiles,
)
from minicpm_mlc.compile.checkpoint.lora import Adapter
from minicpm_mlc.compile.checkpoint.weights import Weights
from minicpm_mlc.compile.config.model_config import ModelConfig

ADVICE = "download it again"


class FilesOver(SmallFiles):
    """A base's small files, with the tokenizer of an adapter's folder, where it has one, and
    `changes` of config.json.
    """

    def __init__(self, base: SmallFiles, over: Path | None, changes: dict[str, Any]) -> None:
        super().__init__(base.folder, CheckpointError, ADVICE)
        self._base, self._changes = base, changes
        self._over = SmallFiles(over, CheckpointError, ADVICE)

    def _read(self, name: str) -> bytes | None:
        if name == CONFIG and self._changes:
            return json.dumps(self._base.object(CONFIG) | self._changes, indent=2).encode()
        found = self._over.content(name) if name in (*TOKENIZER_FILES, CHAT_TEMPLATE) else None
        return self._base.content(name) if found is None else found


@dataclass(frozen=True)
class Adapters:
    """In the order in which they are merged; there may be none."""

    each: Sequence[Adapter]

    @classmethod
    def open(cls, given: Sequence[str]) -> Adapters:
        """Of folders, each with ":WEIGHT" behind it or without. Raises CheckpointError."""
        return cls([Adapter(*_folder_and_weight(one)) for one in given])

    def config(self, base: ModelConfig) -> ModelConfig:
        """The model that they make of a base."""
        for adapter in self.each:
            base = adapter.config(base)
        return base

    def files(self, base: SmallFiles, config: ModelConfig) -> SmallFiles:
        """The small files of that model: the last tokenizer that was saved with an adapter."""
        if not self.each:
            return base
        own = [adapter.folder for adapter in self.each if (adapter.folder / TOKENIZER).is_file()]
        changed = {
            "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tie_word_embeddings,
        }
        said = base.object(CONFIG)
        changes = {key: value for key, value in changed.items() if said.get(key, value) != value}
        return FilesOver(base, own[-1] if own else None, changes)

    def weights(self, base: Weights, config: ModelConfig) -> Weights:
        """The base's weights with all of them; `config` is the base's."""
        for adapter in self.each:
            changed = adapter.config(config)
            notes = adapter.notes(config)
            base, config = adapter.weights(base, changed), changed
            base = Weights(base.tensors, [*base.remarks, *notes])
        return base


def _folder_and_weight(given: str) -> tuple[Path, float]:
    folder, _, weight = given.rpartition(":")
    try:
        strength = float(weight)
    except ValueError:
        return Path(given), 1.0
    if not folder:
        return Path(given), 1.0
    if not math.isfinite(strength):
        raise CheckpointError(f"--adapter {given}: the weight is {weight}, expected a number")
    return Path(folder), strength
