"""What a file of this package declares of the model that it holds, as `DECLARATION`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.eagle import Eagle

Fields = dict[str, Any]  # of a config


@dataclass(frozen=True)
class ModelDeclaration:
    """A decoder. Its file's name is the `model_type` of its ModelConfig.

    `model_types`, `architectures`: what its config.json may call it.
    `read`: takes the keys of its config.json and gives fields of ModelConfig. Keys that it leaves
        are refused unless they are harmless; it raises ConfigError for maths that it hasn't.
    `part`: the module, which names the published tensors.
    `sparse_settings`: the settings to run InfLLM-v2 with, None if it wasn't trained for it.
    `longer_context`: the config for more tokens, with the length that it reaches; None if none
        was published.
    """

    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    read: Callable[[Keys], Fields]
    part: type[Decoder]
    sparse_settings: Callable[[ModelConfig], SparseConfig | None] = lambda config: config.sparse
    longer_context: Callable[[ModelConfig], ModelConfig | None] = lambda config: None


@dataclass(frozen=True)
class EagleDeclaration:
    """A draft head. Its file's name is the `kind` of its DraftConfig.

    `mark`: a tensor that only heads of this kind have.
    `like`: the fields of DraftConfig that its kind decides, for the head of a base.
    `read`: the same from the keys of its config.json. Raises ConfigError for a key that doesn't
        fit the base.
    `part`: the module, which names the published tensors.
    `token_offsets`: the tensor that places its vocabulary in the base's, if it can have its own.
    """

    mark: str
    like: Callable[[ModelConfig], Fields]
    read: Callable[[Keys, ModelConfig], Fields]
    part: type[Eagle]
    token_offsets: str | None = None
